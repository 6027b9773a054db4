// SPDX-License-Identifier: MIT OR Apache-2.0
//! The source against a small API server that answers by a script.

mod lists;
mod pauses;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::source::Kind;

/// Longer than anything here may take, back-offs of some seconds among them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers to one request.
enum Answer {
    /// Status and whole body; a watch's body is a line for each event.
    Body(u16, String),
    /// Status 429: to be asked again after so many seconds. The body is what API servers send.
    Busy(u32),
    /// None.
    Silence,
}

/// Answers that are left, by the last part of the path and whether it is a watch, and the requests so far.
#[derive(Default)]
struct Script {
    answers: BTreeMap<(&'static str, bool), VecDeque<Answer>>,
    requests: Vec<String>,
    /// Whether lists may be streamed: the answer to the list is what is told.
    streams_lists: bool,
    /// When each of them came.
    times: Vec<Instant>,
}

const SECRET: &str = "shunt-hash-seed";

type Shared = Arc<Mutex<Script>>;

const KINDS_AND_VERSIONS: [(&str, &str, &str); 5] = [
    (SECRET, "Secret", "v1"),
    ("services", "Service", "v1"),
    ("endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    ("nodes", "Node", "v1"),
    ("servicecidrs", "ServiceCIDR", "networking.k8s.io/v1"),
];

async fn answer(State(script): State<Shared>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default().to_string();
    let Some((plural, kind, version)) =
        KINDS_AND_VERSIONS.into_iter().find(|(plural, ..)| uri.path().ends_with(plural))
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let is_streamed_list = query.contains("sendInitialEvents=true");
    if is_streamed_list && !script.lock().unwrap().streams_lists {
        // As servers do that have the feature switched off.
        let message = "ListOptions is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless \
                       the WatchList feature gate is enabled";
        return (StatusCode::UNPROCESSABLE_ENTITY, status(422, message).to_string()).into_response();
    }
    let is_watch = query.contains("watch=true") && !is_streamed_list;
    let next = {
        let mut script = script.lock().unwrap();
        script.requests.push(uri.to_string());
        script.times.push(Instant::now());
        script.answers.get_mut(&(plural, is_watch)).and_then(VecDeque::pop_front)
    };
    let (status, body) = match next {
        Some(Answer::Body(status, body)) => (status, body),
        Some(Answer::Busy(seconds)) => {
            let headers = [(header::RETRY_AFTER, seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, headers, "Too many requests, please try again later.\n")
                .into_response();
        }
        // Nothing was scripted: an empty list, a watch in which nothing happens.
        None if is_streamed_list => {
            let Answer::Body(status, body) = streamed(&[]) else { unreachable!() };
            (status, body)
        }
        None if !is_watch => (200, list(kind, version, &[])),
        Some(Answer::Silence) | None => std::future::pending().await,
    };
    (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn list(kind: &str, version: &str, names: &[&str]) -> String {
    let items: Vec<_> = names.iter().map(|name| object(name)).collect();
    json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": "5"}, "items": items})
        .to_string()
}

/// A list as the beginning of a watch, which ends with it.
fn streamed(names: &[&str]) -> Answer {
    let end = json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Service", "metadata": {
        "resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}}}});
    let items = names.iter().map(|name| json!({"type": "ADDED", "object": object(name)}));
    Answer::Body(200, items.chain([end]).map(|line| line.to_string() + "\n").collect())
}

fn services(names: &[&str]) -> Answer {
    Answer::Body(200, list("Service", "v1", names))
}

/// An object of which only the name matters.
fn object(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "6"}})
}

fn watched(type_: &str, object: &Value) -> Answer {
    Answer::Body(200, json!({"type": type_, "object": object}).to_string() + "\n")
}

fn status(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message})
}

fn failure(code: u16, message: &str) -> Answer {
    Answer::Body(code, status(code, message).to_string())
}

/// Answers to lists and to watches of Services.
fn script(lists: Vec<Answer>, watches: Vec<Answer>) -> Shared {
    let answers = [(("services", false), lists.into()), (("services", true), watches.into())];
    Arc::new(Mutex::new(Script { answers: answers.into(), ..Script::default() }))
}

async fn serve(listener: TcpListener, script: Shared) {
    axum::serve(listener, Router::new().fallback(answer).with_state(script)).await.unwrap();
}

/// Follows the server at a URL, as `node-1`.
fn follow(url: &str) -> mpsc::Receiver<Event> {
    follow_counted(url, ApiRequests::default())
}

fn follow_counted(url: &str, requests: ApiRequests) -> mpsc::Receiver<Event> {
    follow_as(url, |options| KubeOptions { requests, ..options })
}

fn follow_as(url: &str, change: impl FnOnce(KubeOptions) -> KubeOptions) -> mpsc::Receiver<Event> {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("config");
    let text = json!({
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let options = change(KubeOptions::new(Some(kubeconfig), "node-1".into()));
    let (sender, events) = mpsc::channel(16);
    tokio::spawn(async move {
        let _kept = directory;
        run_kube(options, sender).await.unwrap();
    });
    events
}

/// Starts a server with a script.
async fn start(script: &Shared) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, script.clone()));
    address
}

/// Starts a server with a script, and follows it.
async fn follow_script(script: &Shared) -> mpsc::Receiver<Event> {
    follow(&format!("http://{}", start(script).await))
}

async fn next_event(events: &mut mpsc::Receiver<Event>) -> Event {
    time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the source goes on")
}

/// The next event, in short. Where lists begin and end is left out.
async fn next(events: &mut mpsc::Receiver<Event>) -> String {
    let mut event = next_event(events).await;
    while matches!(event, Event::Relisting(_)) {
        event = next_event(events).await;
    }
    match event {
        Event::Apply(object) => format!("apply {}", object.id().name),
        Event::Delete(id) => {
            assert_eq!(id.kind, Kind::Service);
            format!("delete {}", id.name)
        }
        Event::Synced => "synced".into(),
        Event::Problem(problem) => problem.to_string(),
        Event::ServiceCidrsUnknown(are_unknown) => format!("ServiceCIDRs unknown: {are_unknown}"),
        Event::Incomplete(_) | Event::HashSeed(_) | Event::Relisting(_) => {
            unreachable!("an API server's list is whole")
        }
    }
}

/// The next events until everything is synced, in any order.
async fn until_synced(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
    let mut news = Vec::new();
    loop {
        match next(events).await.as_str() {
            "synced" => return news,
            other => news.push(other.to_string()),
        }
    }
}

#[tokio::test]
async fn rules_1_2_5_just_what_concerns_us_is_asked_for() {
    let script = script(vec![services(&["web"])], vec![]);
    let mut events = follow_script(&script).await;
    assert_eq!(until_synced(&mut events).await, ["apply web"]);
    let requests = script.lock().unwrap().requests.clone();
    for (path, selectors) in [
        (
            "/api/v1/services?",
            vec![
                "&fieldSelector=spec.clusterIP%21%3DNone",
                "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
            ],
        ),
        ("/apis/discovery.k8s.io/v1/endpointslices?", vec!["&labelSelector=%21service.kubernetes.io%2Fheadless"]),
        ("/api/v1/nodes?", vec!["&fieldSelector=metadata.name%3Dnode-1"]),
    ] {
        let list = requests.iter().find(|request| request.starts_with(path)).expect(path);
        assert!(selectors.iter().all(|selector| list.contains(selector)), "{list}");
    }
}

#[tokio::test]
async fn rule_1_a_server_that_can_not_leave_headless_services_out_is_asked_for_all() {
    // What Kubernetes up to 1.30 says.
    let refusal = failure(400, r#""spec.clusterIP" is not a known field selector: only "metadata.name""#);
    let script = script(vec![refusal, services(&["web"])], vec![]);
    assert_eq!(until_synced(&mut follow_script(&script).await).await, ["apply web"]);
    let requests = script.lock().unwrap().requests.clone();
    let selecting = |request: &&String| request.starts_with("/api/v1/services?") && request.contains("fieldSelector");
    assert_eq!(requests.iter().filter(selecting).count(), 1, "{requests:?}");
}

#[tokio::test]
async fn rule_7_synced_comes_after_all_first_lists() {
    let script = script(vec![services(&["web"])], vec![]);
    script.lock().unwrap().answers.insert(("endpointslices", false), [Answer::Silence].into());
    let mut events = follow_script(&script).await;
    assert_eq!(next(&mut events).await, "apply web");
    assert!(time::timeout(Duration::from_millis(300), events.recv()).await.is_err());
}

#[tokio::test]
async fn rule_6_a_server_without_service_cidrs_is_as_good_as_one_with_none() {
    // The second is what a server says of an API group that it has not got.
    let plain = Answer::Body(404, "404 page not found\n".into());
    for refusal in [failure(404, "not here"), plain] {
        let script = script(vec![services(&["web"])], vec![]);
        script.lock().unwrap().answers.insert(("servicecidrs", false), [refusal].into());
        assert_eq!(until_synced(&mut follow_script(&script).await).await, ["apply web"]);
    }
}

#[tokio::test]
async fn rule_6_service_cidrs_that_may_not_be_read_are_unknown_and_asked_for_again_within_seconds() {
    let script = script(vec![services(&["web"])], vec![]);
    // As of a server that has yet to read the roles.
    let refusals = (0..2).map(|_| failure(403, "servicecidrs is forbidden"));
    script.lock().unwrap().answers.insert(("servicecidrs", false), refusals.collect());
    let mut events = follow_script(&script).await;
    let mut news = until_synced(&mut events).await;
    news.sort();
    assert_eq!(
        (news.len(), news[1..].to_vec()),
        (3, vec!["ServiceCIDRs unknown: true".into(), "apply web".to_string()])
    );
    assert!(
        news[0].contains("can't list servicecidrs: servicecidrs is forbidden (HTTP 403); allow the user of"),
        "{news:?}"
    );
    let start = Instant::now();
    assert_eq!(next(&mut events).await, "ServiceCIDRs unknown: false");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn rule_6_service_cidrs_stay_as_known_while_they_may_not_be_read_later() {
    let cidr = Answer::Body(200, list("ServiceCIDR", "networking.k8s.io/v1", &["kubernetes"]));
    let script = script(vec![], vec![]);
    script.lock().unwrap().answers.extend([
        (("servicecidrs", false), [cidr].into()),
        (("servicecidrs", true), [failure(403, "no"), failure(404, "no"), Answer::Silence].into()),
    ]);
    let mut events = follow_script(&script).await;
    assert_eq!(until_synced(&mut events).await, ["apply kubernetes"]);
    assert!(next(&mut events).await.contains("can't watch servicecidrs: no (HTTP 403)"));
    // The server has no such kind any more: as good as an empty list.
    let gone = next_event(&mut events).await;
    assert!(matches!(&gone, Event::Delete(id) if id.kind == Kind::ServiceCidr), "{gone:?}");
}

/// Without the cluster's seed every node goes on with one of its own: with a warning, and nothing else waits for it.
#[tokio::test]
async fn a_secret_that_gives_no_seed_is_a_warning_that_says_what_to_do() {
    let malformed = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"hash-seed": "MTIz"}});
    for (answer, cause, remedy) in [
        (
            failure(404, "secrets \"shunt-hash-seed\" not found"),
            "not found (HTTP 404)",
            "create it (manifests/hash-seed.yaml",
        ),
        (failure(403, "secrets is forbidden"), "is forbidden (HTTP 403)", "let the agent's user get and update it"),
        (Answer::Body(200, malformed.to_string()), "exactly 32 hex digits", "remove that key from the Secret"),
    ] {
        let script = script(vec![services(&["web"])], vec![]);
        script.lock().unwrap().answers.insert((SECRET, false), [answer].into());
        let url = format!("http://{}", start(&script).await);
        let name = format!("kube-system/{SECRET}").parse().unwrap();
        let mut news =
            until_synced(&mut follow_as(&url, |options| KubeOptions { hash_seed: Some(name), ..options })).await;
        news.sort();
        let [problem, applied] = &news[..] else { panic!("{news:?}") };
        assert_eq!(applied, "apply web");
        assert!(
            problem.starts_with("Secret kube-system/shunt-hash-seed: gives no seed for the flow hash: "),
            "{problem}"
        );
        assert!(problem.contains(cause) && problem.contains(remedy), "{problem}");
        assert!(problem.contains("until then this node has a seed of its own"), "{problem}");
    }
}

#[tokio::test]
async fn a_watch_tells_changes() {
    let watches = vec![watched("ADDED", &object("dns")), watched("DELETED", &object("web"))];
    let mut events = follow_script(&script(vec![services(&["web"])], watches)).await;
    let mut news = until_synced(&mut events).await;
    while news.len() < 3 {
        news.push(next(&mut events).await);
    }
    assert_eq!(news, ["apply web", "apply dns", "delete web"]);
}

#[tokio::test]
async fn a_refusal_says_what_to_allow_and_is_said_once() {
    let forbidden = || failure(403, "services is forbidden");
    let mut events = follow_script(&script(vec![forbidden(), forbidden(), services(&["web"])], vec![])).await;
    let problem = next(&mut events).await;
    assert!(problem.starts_with("Kubernetes API server http://127.0.0.1:"), "{problem}");
    assert!(problem.contains("can't list services: services is forbidden (HTTP 403); allow the user of"), "{problem}");
    assert_eq!(until_synced(&mut events).await, ["apply web"]);
}

#[tokio::test]
async fn http_429_is_waited_out_and_named_for_what_it_is() {
    let script = script(vec![Answer::Busy(3), services(&["web"])], vec![]);
    let start = Instant::now();
    let mut events = follow_script(&script).await;
    let problem = next(&mut events).await;
    assert!(problem.contains("HTTP 429"), "{problem}");
    assert!(problem.contains("see what overloads the server") && !problem.contains("reaches it"), "{problem}");
    assert_eq!(until_synced(&mut events).await, ["apply web"]);
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Where a server will be, and none is yet. `number` is of one test alone: no other takes the port meanwhile.
async fn nobodys_address(number: u8) -> SocketAddr {
    let listener = TcpListener::bind(format!("127.0.77.{number}:0")).await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn requests_to_the_api_are_counted() {
    let address = nobodys_address(1).await;
    let requests = ApiRequests::default();
    let mut events = follow_counted(&format!("http://{address}"), requests.clone());
    next(&mut events).await;
    let count = |code| requests.count(code, "GET", &address.to_string());
    assert!(count("<error>") > 0 && count("200") == 0);

    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(serve(listener, script(vec![failure(503, "no quorum"), services(&["web"])], vec![])));
    until_synced(&mut events).await;
    assert_eq!(count("503"), 1);
    // Services, slices, the Node and ServiceCIDRs.
    assert!(count("200") >= 4, "{}", count("200"));
}

#[tokio::test]
async fn rule_8_a_server_that_is_not_there_is_named_and_waited_for() {
    let address = nobodys_address(2).await;
    let mut events = follow(&format!("http://{address}"));
    let problem = next(&mut events).await;
    assert!(problem.contains(&format!("http://{address}/: can't list")), "{problem}");
    assert!(problem.contains("Connection refused") && problem.contains("correct kubeconfig /"), "{problem}");

    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(serve(listener, script(vec![services(&["web"])], vec![])));
    let news = until_synced(&mut events).await;
    assert_eq!(news.last().map(String::as_str), Some("apply web"), "{news:?}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_an_error_at_the_start() {
    let options = KubeOptions::new(Some("/nonexistent/config".into()), "node-1".into());
    let error = run_kube(options, mpsc::channel(1).0).await.unwrap_err();
    assert!(error.to_string().starts_with("can't use kubeconfig /nonexistent/config: "), "{error}");
}

/// rustls has no cryptography of its own: without a feature of `kube` that brings some, the first connection would panic.
#[tokio::test]
async fn a_server_without_tls_behind_an_https_url_is_named() {
    let address = start(&script(vec![], vec![])).await;
    let problem = next(&mut follow(&format!("https://{address}"))).await;
    assert!(problem.contains(&format!("https://{address}/: can't list")), "{problem}");
    assert!(problem.contains("received corrupt message"), "{problem}");
}
