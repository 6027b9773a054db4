// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kubernetes Events: what is wrong with a Service or this node, told where its owner looks (`kubectl describe`), and that the
//! agent has started (rules 68 and 79).
//!
//! The one loop only puts notes into a queue and never waits. Notes that are too many at once, and those that a server
//! does not take now, wait in a [`Backlog`]. Whatever is never posted is in the log all the same.

use std::{
    collections::{BTreeMap, VecDeque},
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

/// Notes that may wait, for the loop to be heard and then for their turn; more are only logged.
const QUEUE_LENGTH: usize = 256;
/// How long the same note is not posted again. An API server forgets an Event after an hour: what still stands is offered again
/// before that.
pub const SILENCE: Duration = Duration::from_secs(45 * 60);
/// Events that may be posted at once, and the pause for each one after these.
const BURST: u32 = 25;
const PAUSE: Duration = Duration::from_secs(5);
/// The first pause after a server that did not answer, and the longest.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
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
    let mut backlog = Backlog::new(Instant::now());
    loop {
        let due = backlog.due();
        tokio::select! {
            note = notes.recv() => match note {
                Some(note) => backlog.add(note, Timestamp::now(), Instant::now()),
                None => return,
            },
            () = sleep_until(due) => {}
        }
        let Some((note, noted)) = backlog.take(Instant::now()) else { continue };
        match post_one(&client, &node_name, &note, noted).await {
            Err(error) if may_pass(&error) => {
                debug!("an Event is posted later: {error}");
                backlog.put_back(note, noted, Instant::now());
            }
            result => {
                backlog.resume();
                if let Err(error) = result {
                    debug!("an Event is not posted: {error}");
                }
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether the same request may succeed later: the server was not there, had enough to do, or knew us no more. All other
/// refusals stand, an Event that is there already among them.
fn may_pass(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 401 | 408 | 429 | 500..),
        _ => true,
    }
}

async fn post_one(client: &Client, node_name: &str, note: &Note, noted: Timestamp) -> kube::Result<()> {
    let Some(regarding) = refer(client, node_name, &note.subject).await? else { return Ok(()) };
    let event = event(node_name, note, regarding, noted);
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

/// Notes that wait for their turn: a cluster full of mistakes shall not bury its API server, and a server that is away shall
/// be told later. Pure: `now` comes in.
#[derive(Debug)]
struct Backlog {
    /// Each with the time at which it came.
    waiting: VecDeque<(Note, Timestamp)>,
    /// Notes that have come, and when.
    told: BTreeMap<Note, Instant>,
    /// Events that may be posted at once, since when.
    allowed: u32,
    refilled: Instant,
    /// A server that did not answer is not asked before then, and the pause after the next such time.
    not_before: Instant,
    pause: Duration,
}

impl Backlog {
    fn new(now: Instant) -> Self {
        let (waiting, told) = Default::default();
        Self { waiting, told, allowed: BURST, refilled: now, not_before: now, pause: RETRY_PAUSES[0] }
    }

    /// A note comes; the same one is not taken again for a while.
    fn add(&mut self, note: Note, wall: Timestamp, now: Instant) {
        self.told.retain(|_, at| now.duration_since(*at) < SILENCE);
        if self.told.contains_key(&note) {
            return;
        }
        if self.waiting.len() >= QUEUE_LENGTH {
            debug!(?note, "too many Events wait: not posted");
            return;
        }
        self.told.insert(note.clone(), now);
        self.waiting.push_back((note, wall));
    }

    /// When the first note can be posted.
    fn due(&self) -> Option<Instant> {
        let allowed_at = if self.allowed > 0 { self.refilled } else { self.refilled + PAUSE };
        (!self.waiting.is_empty()).then(|| self.not_before.max(allowed_at))
    }

    /// The note that is to be posted now.
    fn take(&mut self, now: Instant) -> Option<(Note, Timestamp)> {
        while self.allowed < BURST && now.duration_since(self.refilled) >= PAUSE {
            self.allowed += 1;
            self.refilled += PAUSE;
        }
        if self.allowed == BURST {
            self.refilled = now;
        }
        if self.allowed == 0 || now < self.not_before {
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.allowed -= 1;
        Some(first)
    }

    /// The server did not take it now. The others come first: it may be this one that it can't take.
    fn put_back(&mut self, note: Note, noted: Timestamp, now: Instant) {
        self.waiting.push_back((note, noted));
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(RETRY_PAUSES[1]);
    }

    /// The server answers.
    fn resume(&mut self) {
        self.pause = RETRY_PAUSES[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(text: &str) -> Note {
        let subject = Subject::Service(ServiceKey::new("default", "web"));
        Note { subject, is_warning: true, reason: "Bad", text: text.into() }
    }

    const WALL: Timestamp = Timestamp::constant(1, 0);

    #[test]
    fn the_same_problem_is_posted_once_and_many_take_turns() {
        let start = Instant::now();
        let mut backlog = Backlog::new(start);
        let offer = |backlog: &mut Backlog, text: &str, now| {
            backlog.add(note(text), WALL, now);
            backlog.take(now).map(|(note, _)| note.text)
        };
        assert_eq!(offer(&mut backlog, "a", start).as_deref(), Some("a"));
        assert_eq!(offer(&mut backlog, "a", start + SILENCE / 2), None);
        assert_eq!(offer(&mut backlog, "a", start + SILENCE).as_deref(), Some("a"));

        let mut now = start + 2 * SILENCE;
        (0..100).for_each(|number| backlog.add(note(&number.to_string()), WALL, now));
        let at_once = std::iter::from_fn(|| backlog.take(now)).count();
        assert_eq!(at_once, BURST as usize);
        for number in BURST..100 {
            now = backlog.due().expect("more");
            assert_eq!(backlog.take(now), Some((note(&number.to_string()), WALL)), "nothing is lost");
        }
        assert_eq!(now, start + 2 * SILENCE + PAUSE * (100 - BURST));
        assert_eq!(backlog.due(), None);
    }

    #[test]
    fn what_a_server_does_not_take_is_offered_again_after_a_growing_pause() {
        let mut now = Instant::now();
        let mut backlog = Backlog::new(now);
        backlog.add(note("a"), WALL, now);
        backlog.add(note("b"), WALL, now);
        for (seconds, text) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().zip(["a", "b"].into_iter().cycle()) {
            let (first, noted) = backlog.take(now).expect("it is due");
            assert_eq!(first.text, text, "in turns");
            backlog.put_back(first, noted, now);
            assert_eq!(backlog.due(), Some(now + Duration::from_secs(seconds)));
            assert_eq!(backlog.take(now), None);
            now = backlog.due().unwrap();
        }
        assert_eq!(backlog.take(now).unwrap().0.text, "a");
        backlog.resume();
        let (second, noted) = backlog.take(now).unwrap();
        backlog.put_back(second, noted, now);
        assert_eq!(backlog.due(), Some(now + RETRY_PAUSES[0]));
    }

    #[test]
    fn notes_that_wait_are_bounded() {
        let now = Instant::now();
        let mut backlog = Backlog::new(now);
        (0..2 * QUEUE_LENGTH).for_each(|number| backlog.add(note(&number.to_string()), WALL, now));
        assert_eq!(backlog.waiting.len(), QUEUE_LENGTH);
        assert_eq!(backlog.told.len(), QUEUE_LENGTH, "those left out may come again");
    }

    #[test]
    fn a_refusal_that_stands_is_not_asked_for_again() {
        let refusal = |code| {
            let status = kube::core::Status::failure("no", "Because").with_code(code);
            kube::Error::Api(status.boxed())
        };
        for (code, expected) in
            [(401, true), (403, false), (404, false), (409, false), (422, false), (429, true), (503, true)]
        {
            assert_eq!(may_pass(&refusal(code)), expected, "{code}");
        }
        assert!(may_pass(&kube::Error::LinesCodecMaxLineLengthExceeded), "a connection that broke");
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
