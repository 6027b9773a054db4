// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the server answers to lists, watches and posted Events.

use std::{
    io,
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Shared,
    fault::{Fault, Verb},
    resource::{Id, Resource},
    selector::Selector,
    serve::State,
    wire::{Answer, Manner, Request},
};

/// Pause before a watch in which nothing happens is told the version.
const BOOKMARK_INTERVAL: Duration = Duration::from_millis(100);
const GONE: u16 = 410;

pub(super) fn answer(shared: &Shared, connection: u64, request: &Request, stream: TcpStream) -> io::Result<()> {
    let plain = |stream| Answer::new(stream, Manner::default());
    let is_known = shared.change(|state| {
        state.last_token.clone_from(&request.token);
        let is_accepted = |accepted: &Vec<String>| request.token.as_ref().is_some_and(|own| accepted.contains(own));
        state.tokens.as_ref().is_none_or(is_accepted)
    });
    if !is_known {
        return plain(stream).whole(401, &failure(401, "Unauthorized"));
    }
    if let Some(id) = Id::at(&request.path) {
        return one(shared, &id, request, plain(stream));
    }
    if request.method != "GET" {
        let (status, body) = take_event(shared, request);
        return plain(stream).whole(status, &body);
    }
    let found = Resource::at(&request.path).filter(|(resource, _)| !shared.state().unknown.contains(resource));
    let Some((resource, namespace)) = found else {
        return plain(stream).whole(404, &failure(404, "the server could not find the requested resource"));
    };
    let selected = request.parameter("fieldSelector");
    if let Some(field) = shared.state().unknown_fields.iter().find(|field| selected.contains(**field)) {
        return plain(stream).whole(400, &failure(400, &format!("{field:?} is not a known field selector")));
    }
    let is_streamed = request.parameter("sendInitialEvents") == "true";
    if is_streamed && !shared.state().streams_lists {
        let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return plain(stream).whole(422, &failure(422, message));
    }
    let verb = if request.parameter("watch") == "true" && !is_streamed { Verb::Watch } else { Verb::List };
    let fault = shared.change(|state| {
        *state.counts.entry((resource, verb)).or_default() += 1;
        state.faults.get_mut(&(resource, verb)).and_then(|faults| faults.pop_front())
    });
    let is_held = |state: &mut State| state.is_open(connection) && state.held.contains(&(resource, verb));
    drop(shared.wait_while(Duration::MAX, is_held));
    let answer = Answer::new(stream, fault.map_or(Manner::default(), Fault::manner));
    match (fault, verb) {
        (Some(Fault::HangUp), _) => Ok(()),
        (Some(Fault::Status(status)), _) => answer.whole(status, &failure(status, "this request was to fail")),
        (Some(Fault::GoneInStream), _) => {
            let mut answer = answer.begin()?;
            answer.line(&gone())?;
            answer.end()
        }
        (Some(Fault::Stall), _) => {
            let _silent = answer.begin()?;
            drop(shared.wait_while(Duration::MAX, |state| state.is_open(connection)));
            Ok(())
        }
        (_, Verb::List) if is_streamed => {
            let mut answer = answer.begin()?;
            let version = begin(shared, resource, request, &mut answer)?;
            shared.change(|state| *state.counts.entry((resource, Verb::Watch)).or_default() += 1);
            watch(shared, connection, resource, request, (answer, version))
        }
        (_, Verb::List | Verb::Get | Verb::Update) => {
            let (status, body) = list(&mut shared.state(), resource, namespace, request);
            answer.whole(status, &body)
        }
        (_, Verb::Watch) => {
            let version = request.parameter("resourceVersion").parse().unwrap_or_default();
            watch(shared, connection, resource, request, (answer.begin()?, version))
        }
    }
}

/// One object is asked for, or replaced.
fn one(shared: &Shared, id: &Id, request: &Request, answer: Answer) -> io::Result<()> {
    let verb = if request.method == "PUT" { Verb::Update } else { Verb::Get };
    let fault = shared.change(|state| {
        *state.counts.entry((id.resource, verb)).or_default() += 1;
        state.faults.get_mut(&(id.resource, verb)).and_then(|faults| faults.pop_front())
    });
    if let Some(Fault::Status(status)) = fault {
        return answer.whole(status, &failure(status, "this request was to fail"));
    }
    let (status, body) = shared.change(|state| match (state.store.get(id), verb) {
        (None, _) => (404, failure(404, "there is no such object")),
        (Some(object), Verb::Update) => {
            let new: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            if new["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return (409, failure(409, "the object has been modified"));
            }
            state.store.put(new.clone());
            (200, state.store.get(id).unwrap_or(new))
        }
        (Some(object), _) => (200, object),
    });
    answer.whole(status, &body)
}

fn selector(request: &Request) -> Selector {
    let labels = Selector::default().and(request.parameter("labelSelector"), true);
    labels.and(request.parameter("fieldSelector"), false)
}

fn failure(code: u16, message: &str) -> Value {
    let reason = if code == GONE { "Expired" } else { "" };
    json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}

fn gone() -> Value {
    json!({"type": "ERROR", "object": failure(GONE, "too old resource version")})
}

/// A page of a list. All pages show the same moment.
fn list(state: &mut State, resource: Resource, namespace: Option<&str>, request: &Request) -> (u16, Value) {
    let (version, mut items) = match request.parameter("continue") {
        "" => (state.store.version(), state.store.list(resource, namespace, &selector(request))),
        token => match state.pages.remove(token) {
            Some(page) => page,
            None => return (GONE, failure(GONE, "The provided continue parameter is too old")),
        },
    };
    let limit = request.parameter("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let rest = items.split_off(limit.min(items.len()));
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if !rest.is_empty() {
        let token = format!("{}-{version}-{}", resource.plural(), rest.len());
        metadata["remainingItemCount"] = json!(rest.len());
        metadata["continue"] = json!(token);
        state.pages.insert(token, (version, rest));
    }
    let list = json!({
        "apiVersion": resource.api_version(),
        "kind": format!("{}List", resource.kind()),
        "metadata": metadata,
        "items": items,
    });
    (200, list)
}

/// A list as the beginning of a watch. Returns its version.
fn begin(shared: &Shared, resource: Resource, request: &Request, answer: &mut Answer) -> io::Result<u64> {
    let (version, items) = {
        let state = shared.state();
        (state.store.version(), state.store.list(resource, None, &selector(request)))
    };
    for object in items {
        answer.line(&typed("ADDED", resource, object))?;
    }
    let end = json!({"metadata": {
        "resourceVersion": version.to_string(),
        "annotations": {"k8s.io/initial-events-end": "true"},
    }});
    answer.line(&typed("BOOKMARK", resource, end))?;
    Ok(version)
}

/// Tells what changes until the time-out, or until somebody breaks the connection.
fn watch(
    shared: &Shared,
    connection: u64,
    resource: Resource,
    request: &Request,
    (mut answer, mut version): (Answer, u64),
) -> io::Result<()> {
    let selector = selector(request);
    let wants_bookmarks = request.parameter("allowWatchBookmarks") == "true";
    let limit = request.parameter("timeoutSeconds").parse().map_or(Duration::MAX, Duration::from_secs);
    let start = Instant::now();
    while start.elapsed() < limit {
        let nothing_new = |state: &mut State| state.is_open(connection) && state.store.version() == version;
        let (changes, now) = {
            let state = shared.wait_while(BOOKMARK_INTERVAL, nothing_new);
            if !state.is_open(connection) {
                return Ok(());
            }
            (state.store.changes_since(version, resource, &selector), state.store.version())
        };
        let Ok(changes) = changes else {
            answer.line(&gone())?;
            break;
        };
        for (what, object) in changes {
            answer.line(&typed(what, resource, object))?;
        }
        if wants_bookmarks && version == now {
            let bookmark = json!({"metadata": {"resourceVersion": now.to_string()}});
            answer.line(&typed("BOOKMARK", resource, bookmark))?;
            shared.change(|state| state.bookmarked.insert(resource, now));
        }
        version = now;
    }
    answer.end()
}

fn typed(what: &str, resource: Resource, mut object: Value) -> Value {
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind());
    json!({"type": what, "object": object})
}

/// Records an Event that is posted, or a change to one.
fn take_event(shared: &Shared, request: &Request) -> (u16, Value) {
    let is_event = request.path.contains("/events");
    let Some(event) = serde_json::from_slice::<Value>(&request.body).ok().filter(|_| is_event) else {
        return (422, failure(422, "only Events can be written here"));
    };
    shared.change(|state| {
        let name = |event: &Value| event["metadata"]["name"].clone();
        let same = state.events.iter_mut().find(|former| name(former) == name(&event));
        match (request.method.as_str(), same) {
            ("POST", None) => {
                state.events.push(event.clone());
                (201, event)
            }
            ("PATCH", Some(former)) => {
                former
                    .as_object_mut()
                    .into_iter()
                    .for_each(|former| former.extend(event.as_object().cloned().unwrap_or_default()));
                (200, former.clone())
            }
            ("POST", Some(_)) => (409, failure(409, "it exists already")),
            _ => (404, failure(404, "no such Event")),
        }
    })
}
