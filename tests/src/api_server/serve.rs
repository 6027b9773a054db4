// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections: one thread accepts them, and each has a thread of its own for its only request.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, sleep},
    time::Duration,
};

use serde_json::Value;

use super::{
    Shared, answer,
    fault::{Fault, Verb},
    resource::Resource,
    store::Store,
    wire::Request,
};

/// How often the acceptor looks whether it is still wanted.
const PAUSE: Duration = Duration::from_millis(5);

/// The server's state.
#[derive(Default)]
pub(super) struct State {
    pub(super) store: Store,
    /// Answers to the later pages of lists, by their tokens.
    pub(super) pages: BTreeMap<String, (u64, Vec<Value>)>,
    pub(super) faults: BTreeMap<(Resource, Verb), VecDeque<Fault>>,
    pub(super) held: BTreeSet<(Resource, Verb)>,
    pub(super) unknown: BTreeSet<Resource>,
    /// Whether lists may be streamed, as the beginning of a watch.
    pub(super) streams_lists: bool,
    /// Fields by which requests can't select.
    pub(super) unknown_fields: BTreeSet<&'static str>,
    /// Versions up to which watches that want bookmarks have been told that nothing happened.
    pub(super) bookmarked: BTreeMap<Resource, u64>,
    pub(super) counts: BTreeMap<(Resource, Verb), usize>,
    pub(super) events: Vec<Value>,
    /// Who is answered; everybody without any.
    pub(super) tokens: Option<Vec<String>>,
    pub(super) last_token: Option<String>,
    /// Open connections by their numbers.
    connections: BTreeMap<u64, TcpStream>,
    last_connection: u64,
    pub(super) is_away: bool,
    pub(super) is_listening: bool,
    pub(super) is_over: bool,
}

impl State {
    pub(super) fn disconnect(&mut self) {
        for stream in std::mem::take(&mut self.connections).into_values() {
            // The peer may have been faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether a connection has not been broken by us.
    pub(super) fn is_open(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }
}

/// Accepts connections until the server is over; while it is away there is nothing to connect to.
pub(super) fn accept(shared: &Arc<Shared>, listener: TcpListener, address: SocketAddr) {
    let mut listener = Some(listener);
    loop {
        let (is_over, is_away) = {
            let state = shared.state();
            (state.is_over, state.is_away)
        };
        if is_over {
            return;
        }
        if is_away {
            listener = None;
        } else if listener.is_none() {
            // Fails while old connections linger: the next round tries again.
            listener = TcpListener::bind(address).ok();
        }
        let is_listening = listener.is_some();
        if shared.state().is_listening != is_listening {
            shared.change(|state| state.is_listening = is_listening);
        }
        match listener.as_ref().map(|listener| listener.set_nonblocking(true).and_then(|()| listener.accept())) {
            Some(Ok((stream, _))) => admit(shared, stream),
            Some(Err(_)) | None => sleep(PAUSE),
        }
    }
}

fn admit(shared: &Arc<Shared>, stream: TcpStream) {
    let twin = stream.set_nonblocking(false).and_then(|()| stream.try_clone());
    let Ok(twin) = twin else { return };
    let connection = shared.change(|state| {
        state.last_connection += 1;
        let connection = state.last_connection;
        state.connections.insert(connection, twin);
        connection
    });
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut stream = stream;
        if let Some(request) = Request::read(&mut stream) {
            // A client that has gone away is no concern of ours.
            let _ = answer::answer(&shared, connection, &request, stream);
        }
        shared.change(|state| state.connections.remove(&connection));
    });
}
