// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a server is left alone after an error.

use super::*;

/// Time between one request for Services and the next, of the first so many.
async fn pauses(script: &Shared, requests: usize) -> Vec<Duration> {
    pauses_of::<Lean<Service>>(script, requests, Need::Must).await
}

async fn pauses_of<K>(script: &Shared, requests: usize, need: Need) -> Vec<Duration>
where
    K: Resource<DynamicType = ()> + Into<Object> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    // No network: the clock is ours.
    let client = Client::new(Router::new().fallback(answer).with_state(script.clone()), "default");
    let (sender, mut events) = mpsc::channel(16);
    let (url, origin, unlisted) = ("http://test".into(), "a test".into(), AtomicU8::new(1));
    let server = Server { url, origin, events: sender, unlisted, asked: AskedPause::default() };
    tokio::spawn(async move { server.follow::<K>(&client, watcher::Config::default(), None, need).await });
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let is_over = || script.lock().unwrap().times.len() >= requests;
    for _ in 0..100_000 {
        if is_over() {
            break;
        }
        time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_over(), "{:?}", script.lock().unwrap().requests);
    let times = script.lock().unwrap().times.clone();
    times[..requests].windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_while_a_server_fails() {
    let lists = (0..6).map(|_| failure(500, "no quorum")).chain([services(&["web"])]).collect();
    let pauses = pauses(&script(lists, vec![]), 7).await;
    assert!(pauses[5] > pauses[0] * 5, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn rule_6_what_may_not_be_read_is_asked_for_again_within_seconds_and_what_is_not_there_within_minutes() {
    for (code, requests, longest) in [(403, 53, 30), (404, 11, 600)] {
        let script = script(vec![], vec![]);
        let refusals = (0..requests).map(|_| failure(code, "no"));
        script.lock().unwrap().answers.insert(("servicecidrs", false), refusals.collect());
        let pauses = pauses_of::<ServiceCIDR>(&script, requests, Need::May).await;
        let last = *pauses.last().unwrap();
        assert!(last <= Duration::from_secs(longest + 1) && last >= Duration::from_secs(longest / 4), "{pauses:?}");
    }
}

/// A server whose history is shorter than a list takes.
#[tokio::test(start_paused = true)]
async fn pauses_grow_while_every_list_is_forgotten_at_once() {
    let lists = (0..60).map(|_| services(&["web"])).collect();
    let watches = (0..60).map(|_| failure(410, "too old resource version")).collect();
    let pauses = pauses(&script(lists, watches), 120).await;
    // List, watch, list ..: only the first list follows at once.
    let before_lists: Vec<_> = pauses.iter().skip(1).step_by(2).collect();
    assert!(*before_lists[0] < Duration::from_millis(100), "{before_lists:?}");
    assert!(before_lists[1..].iter().all(|pause| **pause >= Duration::from_millis(400)), "{before_lists:?}");
    assert!(**before_lists.last().unwrap() > Duration::from_secs(10), "{before_lists:?}");
}

/// `refuses` stands for what a server does while it is restarted, until it can tell that it has forgotten.
#[tokio::test(start_paused = true)]
async fn a_restarted_server_that_has_forgotten_is_listed_within_three_seconds() {
    for refusals in [0, 1, 5, 25] {
        let watches = (0..refusals).map(|_| failure(403, "not yet")).chain([failure(410, "too old")]).collect();
        let script = script(vec![services(&["web"]), services(&["dns"])], watches);
        let pauses = pauses(&script, refusals + 3).await;
        let (last, refused) = pauses[1..].split_last().unwrap();
        assert!(*last < Duration::from_millis(100), "{pauses:?}");
        assert!(refused.iter().all(|pause| *pause <= Duration::from_secs(2) + Duration::from_millis(50)), "{pauses:?}");
    }
}

/// One that takes two minutes, by a slow link, would never end.
#[tokio::test(start_paused = true)]
async fn rule_89_a_plain_list_has_minutes() {
    let pauses = pauses(&script(vec![Answer::Silence, services(&["web"])], vec![]), 2).await;
    assert!(pauses[0] >= Duration::from_secs(300), "{pauses:?}");
}
