// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kubernetes Events: what is wrong with a Service, told where its owner looks (`kubectl describe service`), and that the
//! agent has started (rules 68 and 79).
//!
//! The one loop only puts notes into a queue and never waits. Whatever can't be posted is in the log all the same.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use tokio::sync::mpsc;
use tracing::debug;

use crate::{compile::ServiceKey, problem::Problem};

/// Notes that may wait; more are only logged.
const QUEUE_LENGTH: usize = 256;
/// How long the same note is not posted again.
const SILENCE: Duration = Duration::from_secs(3600);
/// Events that may be posted at once, and the pause for each one after these.
const BURST: u32 = 25;
const PAUSE: Duration = Duration::from_secs(5);
/// The API takes no longer notes, in bytes.
const MAX_NOTE_LEN: usize = 1024;
/// Who says it, to the API.
const CONTROLLER: &str = "shunt.dev/lb-agent";

/// Something to be posted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    subject: Subject,
    is_warning: bool,
    reason: &'static str,
    text: String,
}

/// What a note is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Service(ServiceKey),
    /// The agent's own.
    Node,
}

/// Where notes are put. The default one forgets them: not every source has an API behind it.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<mpsc::Sender<Note>>);

impl Recorder {
    /// A queue, and its end for [`post`].
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Note>) {
        let (sender, notes) = mpsc::channel(QUEUE_LENGTH);
        (Self(Some(sender)), notes)
    }

    /// A problem of a Service.
    pub fn warn(&self, service: &ServiceKey, problem: &Problem) {
        self.put_warning(Subject::Service(service.clone()), problem);
    }

    /// A problem of this node.
    pub fn warn_node(&self, problem: &Problem) {
        self.put_warning(Subject::Node, problem);
    }

    /// The agent of this node has started.
    pub fn tell_start(&self) {
        let text = "Shunt starts to balance this node's Services".to_owned();
        self.put(Note { subject: Subject::Node, is_warning: false, reason: "Starting", text });
    }

    fn put_warning(&self, subject: Subject, problem: &Problem) {
        let text = format!("{}; {}", problem.cause, problem.remedy);
        self.put(Note { subject, is_warning: true, reason: problem.reason, text });
    }

    fn put(&self, note: Note) {
        if let Some(Err(error)) = self.0.as_ref().map(|sender| sender.try_send(note)) {
            debug!("an Event is not posted: {error}");
        }
    }
}

/// Posts notes until their sender is gone. `node_name` is the agent's own.
pub async fn post(client: Client, node_name: String, mut notes: mpsc::Receiver<Note>) {
    let mut limiter = Limiter::new(Instant::now());
    while let Some(note) = notes.recv().await {
        if !limiter.admits(&note, Instant::now()) {
            debug!(?note, "too many Events: not posted");
            continue;
        }
        if let Err(error) = post_one(&client, &node_name, note).await {
            debug!("an Event is not posted: {error}");
        }
    }
}

async fn post_one(client: &Client, node_name: &str, note: Note) -> kube::Result<()> {
    let Some(regarding) = refer(client, node_name, &note.subject).await? else { return Ok(()) };
    let event = event(node_name, &note, regarding, Timestamp::now());
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await?;
    Ok(())
}

/// `kubectl describe` finds Events by the object's UID, which only the API knows. It is listed because agents may list, but
/// not get. `None` where the object has gone.
async fn refer(client: &Client, node_name: &str, subject: &Subject) -> kube::Result<Option<ObjectReference>> {
    let reference = |kind: &str, name: &str| ObjectReference {
        api_version: Some("v1".into()),
        kind: Some(kind.into()),
        name: Some(name.into()),
        ..Default::default()
    };
    match subject {
        // As the kubelet does it: a Node's UID is its name.
        Subject::Node => Ok(Some(ObjectReference { uid: Some(node_name.into()), ..reference("Node", node_name) })),
        Subject::Service(key) => {
            let services: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
            let named = ListParams::default().fields(&format!("metadata.name={}", key.name));
            let found = services.list(&named).await?.items.into_iter().next();
            Ok(found.map(|service| ObjectReference {
                uid: service.metadata.uid,
                namespace: Some(key.namespace.clone()),
                ..reference("Service", &key.name)
            }))
        }
    }
}

fn event(node_name: &str, note: &Note, regarding: ObjectReference, now: Timestamp) -> Event {
    let (type_, action) = if note.is_warning { ("Warning", "Balance") } else { ("Normal", "Start") };
    // Those of objects without a namespace are in `default`.
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".into());
    let name = format!("{}.{:x}", regarding.name.as_deref().unwrap_or_default(), now.as_nanosecond());
    Event {
        metadata: ObjectMeta { namespace: Some(namespace), name: Some(name), ..Default::default() },
        type_: Some(type_.into()),
        action: Some(action.into()),
        reason: Some(note.reason.into()),
        note: Some(shorten(&note.text)),
        regarding: Some(regarding),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(node_name.into()),
        ..Default::default()
    }
}

fn shorten(text: &str) -> String {
    const MARK: &str = "..";
    if text.len() <= MAX_NOTE_LEN {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_NOTE_LEN - MARK.len());
    format!("{}{MARK}", &text[..end])
}

/// Keeps a cluster full of mistakes from burying its API server. Pure: `now` comes in.
#[derive(Debug)]
struct Limiter {
    told: BTreeMap<Note, Instant>,
    allowed: u32,
    refilled: Instant,
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Self { told: BTreeMap::new(), allowed: BURST, refilled: now }
    }

    fn admits(&mut self, note: &Note, now: Instant) -> bool {
        self.told.retain(|_, at| now.duration_since(*at) < SILENCE);
        while self.allowed < BURST && now.duration_since(self.refilled) >= PAUSE {
            self.allowed += 1;
            self.refilled += PAUSE;
        }
        if self.allowed == BURST {
            self.refilled = now;
        }
        if self.allowed == 0 || self.told.contains_key(note) {
            return false;
        }
        self.allowed -= 1;
        self.told.insert(note.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(text: &str) -> Note {
        let subject = Subject::Service(ServiceKey::new("default", "web"));
        Note { subject, is_warning: true, reason: "Bad", text: text.into() }
    }

    #[test]
    fn the_same_problem_is_posted_once_and_many_are_limited() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert!(limiter.admits(&note("a"), start));
        assert!(!limiter.admits(&note("a"), start + SILENCE / 2));
        assert!(limiter.admits(&note("a"), start + SILENCE));

        let now = start + 2 * SILENCE;
        let admitted = (0..100).filter(|number| limiter.admits(&note(&number.to_string()), now)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limiter.admits(&note("later"), now + PAUSE));
        assert!(!limiter.admits(&note("too soon"), now + PAUSE));
    }

    #[test]
    fn rule_79_an_event_says_who_what_and_why() {
        let regarding = ObjectReference { name: Some("node-1".into()), ..Default::default() };
        let start = Note { subject: Subject::Node, is_warning: false, reason: "Starting", text: "x".repeat(2000) };
        let event = event("node-1", &start, regarding, Timestamp::constant(1, 0));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.metadata.name.as_deref(), Some("node-1.3b9aca00"));
        assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Normal"), Some("Starting")));
        assert_eq!(event.note.map(|note| note.len()), Some(MAX_NOTE_LEN));
    }

    #[test]
    fn without_an_api_notes_are_forgotten() {
        Recorder::default().tell_start();
        let (recorder, mut notes) = Recorder::new();
        (0..2 * QUEUE_LENGTH).for_each(|_| recorder.tell_start());
        let queued = std::iter::from_fn(|| notes.try_recv().ok()).count();
        assert_eq!(queued, QUEUE_LENGTH);
    }
}
