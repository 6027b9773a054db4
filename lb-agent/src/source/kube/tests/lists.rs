// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists: streamed or plain, the first and those that follow a gap.

use super::*;

#[tokio::test]
async fn rule_89_lists_are_streamed_by_servers_that_do_so() {
    let gone = watched("ERROR", &status(410, "too old resource version"));
    let lists = vec![streamed(&["web", "dns"]), streamed(&["dns"])];
    let script = script(lists, vec![gone, Answer::Silence]);
    script.lock().unwrap().streams_lists = true;
    let mut events = follow_script(&script).await;
    assert_eq!(until_synced(&mut events).await, ["apply web", "apply dns"]);
    assert_eq!([next(&mut events).await, next(&mut events).await], ["apply dns", "delete web"]);
    let requests = script.lock().unwrap().requests.clone();
    assert!(requests.iter().all(|request| request.contains("watch=true")), "{requests:?}");
}

#[tokio::test]
async fn rule_89_others_are_asked_for_plain_lists_at_once_which_they_have_in_their_cache() {
    let script = script(vec![services(&["web"])], vec![]);
    let (start, mut events) = (Instant::now(), follow_script(&script).await);
    assert_eq!(until_synced(&mut events).await, ["apply web"]);
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    let requests = script.lock().unwrap().requests.clone();
    let lists: Vec<_> = requests.iter().filter(|request| !request.contains("watch=true")).collect();
    assert_eq!(lists.len(), usize::from(KINDS), "{requests:?}");
    let is_cached = |list: &&String| list.contains("resourceVersion=0") && !list.contains("limit=");
    assert!(lists.iter().all(is_cached), "{lists:?}");
}

#[tokio::test]
async fn rule_89_a_server_whose_streamed_lists_come_to_no_end_is_asked_for_plain_ones() {
    let cut = || watched("ADDED", &object("web"));
    let script = script(vec![cut(), cut(), services(&["web", "dns"])], vec![]);
    script.lock().unwrap().streams_lists = true;
    let mut events = follow_script(&script).await;
    let news = until_synced(&mut events).await;
    assert_eq!(news.last().map(String::as_str), Some("apply dns"), "{news:?}");
    let requests = script.lock().unwrap().requests.clone();
    assert_eq!(
        requests.iter().filter(|request| request.contains("/services?") && request.contains("sendInitial")).count(),
        2
    );
}

#[test]
fn rule_89_streamed_lists_are_asked_for_again_an_hour_after_one_that_came_to_no_end() {
    let (mut watch, now) = (Watch::new("services".into(), None, Need::Must), Instant::now());
    assert!(watch.may_stream_lists(now));
    assert!(watch.gives_up_streams(&Failure::End, now));
    assert!(!watch.may_stream_lists(now + PLAIN_LISTS - Duration::from_secs(1)));
    assert!(watch.may_stream_lists(now + PLAIN_LISTS));
}

/// Another server's cache may be older than what we know.
#[tokio::test]
async fn rule_8_no_list_but_the_first_may_be_of_any_version() {
    for streams_lists in [false, true] {
        let gone = || watched("ERROR", &status(410, "too old resource version"));
        let listed = |name: &'static str| if streams_lists { streamed(&[name]) } else { services(&[name]) };
        let watches = vec![gone(), gone(), Answer::Silence];
        let script = script(vec![listed("web"), listed("dns"), listed("tls")], watches);
        script.lock().unwrap().streams_lists = streams_lists;
        let mut events = follow_script(&script).await;
        while next(&mut events).await != "apply tls" {}
        let requests = script.lock().unwrap().requests.clone();
        let is_list = |request: &&String| {
            let is_streamed = request.contains("sendInitialEvents");
            request.starts_with("/api/v1/services?") && (is_streamed || !request.contains("watch=true"))
        };
        let lists: Vec<_> = requests.iter().filter(is_list).collect();
        let is_of_any = |list: &&&String| list.contains("resourceVersion=0");
        assert_eq!((lists.len(), lists.iter().filter(is_of_any).count()), (3, 1), "{lists:#?}");
        assert!(is_of_any(&&lists[0]), "{lists:#?}");
        assert!(
            lists.iter().all(|list| list.contains("labelSelector=") && list.contains("sendInitial") == streams_lists)
        );
    }
}

#[tokio::test]
async fn rule_8_a_gap_in_the_watch_loses_no_delete() {
    let gone = watched("ERROR", &status(410, "too old resource version"));
    let script = script(vec![services(&["web", "dns"]), services(&["dns"])], vec![Answer::Silence]);
    script.lock().unwrap().answers.get_mut(&("services", true)).unwrap().push_front(gone);
    let mut events = follow_script(&script).await;
    assert_eq!(until_synced(&mut events).await[..2], ["apply web", "apply dns"]);
    let mut news = Vec::new();
    while news.last().is_none_or(|last| last != "delete web") {
        news.push(next(&mut events).await);
    }
    assert!(news.contains(&"apply dns".to_string()), "{news:?}");
}

#[tokio::test]
async fn rule_18_who_has_gone_is_told_before_the_end_of_a_list_anew() {
    let gone = watched("ERROR", &status(410, "too old resource version"));
    let script = script(vec![services(&["web", "dns"]), services(&["dns"])], vec![gone, Answer::Silence]);
    let mut events = follow_script(&script).await;
    assert_eq!(until_synced(&mut events).await.len(), 2);
    assert_eq!(next_event(&mut events).await, Event::Relisting(true));
    assert_eq!([next(&mut events).await, next(&mut events).await], ["apply dns", "delete web"]);
    assert_eq!(next_event(&mut events).await, Event::Relisting(false));
}

#[tokio::test]
async fn http_410_at_the_start_of_a_watch_leads_to_a_list_and_not_to_a_loop() {
    let gone = || failure(410, "too old resource version");
    let script = script(vec![services(&["web"]), services(&["dns"])], vec![gone(), Answer::Silence]);
    let mut events = follow_script(&script).await;
    let mut news = Vec::new();
    while news.last().is_none_or(|last| last != "apply dns") {
        news.push(next(&mut events).await);
    }
    news.sort();
    assert_eq!(news, ["apply dns", "apply web", "delete web", "synced"]);
}
