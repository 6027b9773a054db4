// SPDX-License-Identifier: MIT OR Apache-2.0
//! Following a directory live: that changes of all sorts are noticed, and in time.

use std::{os::unix::fs::symlink, time::Instant as Clock};

use tempfile::TempDir;

use super::*;
use crate::source::Object;

/// Longer than anything here may take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn web(last: u8) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.{last}}}\n")
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the source goes on")
}

/// The last part of the address of the Service that is applied next.
async fn applied(events: &mut mpsc::Receiver<Event>) -> String {
    match next(events).await {
        Event::Apply(Object::Service(service)) => service.spec.unwrap().cluster_ip.unwrap().replace("10.96.0.", ""),
        other => panic!("not a Service: {other:?}"),
    }
}

/// A directory with one Service, followed, after the first look.
async fn followed(path: &Path) -> mpsc::Receiver<Event> {
    fs::write(path.join("web.yaml"), web(1)).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(run_dir(path.into(), sender));
    assert_eq!(applied(&mut events).await, "1");
    assert_eq!(next(&mut events).await, Event::Synced);
    events
}

/// Changes are seen sooner than by the poll: once in a while at least, on a machine that may stop for as long.
async fn are_noticed(events: &mut mpsc::Receiver<Event>, directory: &Path) {
    for last in 10..20 {
        let start = Clock::now();
        fs::write(directory.join("web.yaml"), web(last)).unwrap();
        assert_eq!(applied(events).await, last.to_string());
        if start.elapsed() < POLL / 2 {
            return;
        }
    }
    panic!("seen by the poll, not by a notice");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_at_the_start() {
    let directory = TempDir::new().unwrap();
    let (sender, mut events) = mpsc::channel(1);
    let error = run_dir(directory.path().join("none"), sender).await.unwrap_err();
    assert!(error.to_string().starts_with("can't read the manifest directory /"), "{error}");
    assert_eq!(events.recv().await, None);
}

#[tokio::test]
async fn changes_are_noticed_at_once() {
    let directory = TempDir::new().unwrap();
    let mut events = followed(directory.path()).await;
    are_noticed(&mut events, directory.path()).await;

    fs::write(directory.path().join(".web.tmp"), web(3)).unwrap();
    fs::rename(directory.path().join(".web.tmp"), directory.path().join("web.yaml")).unwrap();
    assert_eq!(applied(&mut events).await, "3");

    fs::remove_file(directory.path().join("web.yaml")).unwrap();
    assert!(matches!(next(&mut events).await, Event::Delete(_)));
}

/// How long a burst of notices, one every ten milliseconds, keeps the follower from looking.
async fn wait_in_burst_of(notices: u32) -> Duration {
    let mut follower = Follower::new(PathBuf::new());
    let notifier = follower.notifier.clone();
    tokio::spawn(async move {
        for _ in 0..notices {
            let _ = notifier.try_send(());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let start = Instant::now();
    follower.change().await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_file_half_way_through_being_written_is_not_read() {
    let last_notice = Duration::from_millis(190);
    assert_eq!(wait_in_burst_of(20).await.as_millis(), (last_notice + QUIET).as_millis());
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_does_not_end_is_looked_at_all_the_same() {
    let wait = wait_in_burst_of(1_000).await;
    assert!((LONGEST_BURST..LONGEST_BURST + QUIET).contains(&wait), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_notice_there_is_the_poll() {
    assert_eq!(wait_in_burst_of(0).await.as_millis(), POLL.as_millis());
}

#[tokio::test]
async fn our_own_reading_is_no_change() {
    let directory = TempDir::new().unwrap();
    let mut follower = Follower::new(directory.path().into());
    fs::write(directory.path().join("web.yaml"), web(1)).unwrap();
    follower.scan().await.unwrap();
    follower.scan().await.unwrap();
    assert!(timeout(QUIET * 4, follower.notices.recv()).await.is_err());
}

#[tokio::test]
async fn a_directory_swapped_by_a_link_is_followed_to_the_new_one() {
    let directory = TempDir::new().unwrap();
    let [old, new, link] = ["old", "new", "link"].map(|name| directory.path().join(name));
    for path in [&old, &new] {
        fs::create_dir(path).unwrap();
    }
    symlink("old", &link).unwrap();
    let mut events = followed(&link).await;
    fs::write(new.join("web.yaml"), web(2)).unwrap();
    symlink("new", directory.path().join("next")).unwrap();
    fs::rename(directory.path().join("next"), &link).unwrap();
    assert_eq!(applied(&mut events).await, "2");

    are_noticed(&mut events, &new).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_is_named_once_and_followed_again() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("manifests");
    fs::create_dir(&path).unwrap();
    let mut follower = Follower::new(path.clone());
    fs::write(path.join("web.yaml"), web(1)).unwrap();
    assert_eq!(follower.look().await.len(), 1);

    fs::remove_dir_all(&path).unwrap();
    let news = follower.look().await;
    assert!(matches!(&news[..], [Event::Problem(problem)] if problem.subject.ends_with("/manifests")), "{news:?}");
    assert!(follower.look().await.is_empty());

    // Before Linux 6.13 times are those of the kernel's own tick, and a new directory may have the old one's inode.
    tokio::time::sleep(Duration::from_millis(20)).await;
    fs::create_dir(&path).unwrap();
    fs::write(path.join("web.yaml"), web(2)).unwrap();
    assert!(matches!(&follower.look().await[..], [Event::Apply(_)]));
    follower.change().await;
    follower.look().await;
    fs::write(path.join("web.yaml"), web(3)).unwrap();
    timeout(PATIENCE, follower.notices.recv()).await.expect("the new directory is watched");
    assert!(matches!(&follower.look().await[..], [Event::Apply(_)]));
}

#[tokio::test]
async fn the_source_ends_with_its_receiver() {
    let directory = TempDir::new().unwrap();
    let (sender, receiver) = mpsc::channel(16);
    let source = tokio::spawn(run_dir(directory.path().into(), sender));
    drop(receiver);
    timeout(PATIENCE, source).await.expect("it ends in time").unwrap().unwrap();
}
