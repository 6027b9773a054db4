// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--source dir:PATH`: follows a directory of manifests.
//!
//! Decides when to look; what there is to see is [`Tree`]'s business. The kernel's change notices (inotify) make it quick.
//! A slow poll stands behind them, for what they can't tell: a directory that is replaced as a whole, links to files
//! elsewhere, network file systems.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    panic,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use notify::RecommendedWatcher;
use tokio::{
    sync::mpsc,
    task,
    time::{Instant, timeout, timeout_at},
};

use super::{Event, SourceError};
use crate::{notice, problem::Problem};

mod manifest;
mod tree;

use tree::Tree;

/// A burst of changes is over when nothing has changed for this long: a file half-way through being written is not read.
const QUIET: Duration = Duration::from_millis(50);
/// A burst that doesn't end is looked at all the same.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// How long a change can stay unnoticed where the kernel doesn't tell.
const POLL: Duration = Duration::from_secs(2);

/// Feeds the objects of a directory into `events` until the receiver is dropped.
///
/// # Errors
/// When the directory can't be listed at the start. Later it may vanish and come back: what was known stays.
pub async fn run_dir(path: PathBuf, events: mpsc::Sender<Event>) -> Result<(), SourceError> {
    let mut follower = Follower::new(path);
    let first =
        follower.scan().await.map_err(|source| SourceError::Directory { path: follower.path.clone(), source })?;
    if !send(&events, first).await || !send(&events, vec![Event::Synced]).await {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = events.closed() => return Ok(()),
            () = follower.change() => {}
        }
        let news = follower.look().await;
        if !send(&events, news).await {
            return Ok(());
        }
    }
}

/// Whether the receiver is still there.
async fn send(events: &mpsc::Sender<Event>, news: Vec<Event>) -> bool {
    for event in news {
        if events.send(event).await.is_err() {
            return false;
        }
    }
    true
}

struct Follower {
    path: PathBuf,
    tree: Tree,
    notices: mpsc::Receiver<()>,
    notifier: mpsc::Sender<()>,
    watch: Option<Watch>,
    /// What was said last about the directory itself, so that it is said once.
    complaint: Option<Problem>,
}

/// Change notices of one directory, which may not be the one that stands at its path by now.
struct Watch {
    identity: Identity,
    _watcher: RecommendedWatcher,
}

/// Tells a directory from another one at the same path: device, inode, and birth, since inodes are used again.
#[derive(PartialEq, Eq)]
struct Identity(u64, u64, Option<SystemTime>);

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self(metadata.dev(), metadata.ino(), metadata.created().ok()))
    }
}

impl Follower {
    fn new(path: PathBuf) -> Self {
        let (notifier, notices) = mpsc::channel(1);
        Self { tree: Tree::new(path.clone()), path, notices, notifier, watch: None, complaint: None }
    }

    /// Returns when it is time to look again.
    async fn change(&mut self) {
        let Ok(Some(())) = timeout(POLL, self.notices.recv()).await else { return };
        let latest = Instant::now() + LONGEST_BURST;
        while Instant::now() < latest {
            let quiet = latest.min(Instant::now() + QUIET);
            if timeout_at(quiet, self.notices.recv()).await.is_err() {
                return;
            }
        }
    }

    /// Looks at the directory; if that fails, says so once.
    async fn look(&mut self) -> Vec<Event> {
        match self.scan().await {
            Ok(events) => events,
            Err(error) => self.complain(Some(Problem::new(
                format!("manifest directory {}", self.path.display()),
                error.to_string(),
                "put it back; until then all objects that it held stay in force",
            ))),
        }
    }

    async fn scan(&mut self) -> io::Result<Vec<Event>> {
        // First the watch, then the look: a change in between is seen twice rather than never.
        let complaint = self.rewatch()?;
        let mut tree = std::mem::replace(&mut self.tree, Tree::new(PathBuf::new()));
        let scanned = task::spawn_blocking(move || (tree.scan(), tree)).await;
        let (found, tree) = scanned.or_else(|error| match error.try_into_panic() {
            Ok(panic) => panic::resume_unwind(panic),
            Err(shut_down) => Err(io::Error::other(shut_down)),
        })?;
        self.tree = tree;
        let mut events = found?;
        events.extend(self.complain(complaint));
        Ok(events)
    }

    fn complain(&mut self, complaint: Option<Problem>) -> Vec<Event> {
        let is_new = self.complaint != complaint;
        self.complaint = complaint;
        self.complaint.iter().filter(|_| is_new).cloned().map(Event::Problem).collect()
    }

    /// Watches the directory that stands at the path now. Where that can't be had, the poll must do, and the problem is
    /// returned.
    fn rewatch(&mut self) -> io::Result<Option<Problem>> {
        let identity = Identity::of(&self.path)?;
        if self.watch.as_ref().is_some_and(|watch| watch.identity == identity) {
            return Ok(None);
        }
        self.watch = None;
        match notice::watch(&self.path, self.notifier.clone()) {
            Ok(watcher) => {
                self.watch = Some(Watch { identity, _watcher: watcher });
                Ok(None)
            }
            Err(error) => Ok(Some(Problem::new(
                format!("manifest directory {}", self.path.display()),
                format!("the kernel gives no change notices ({error}): changes are seen within {} s", POLL.as_secs()),
                "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches",
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
