// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small Kubernetes API server, and everything that goes wrong with big ones, on demand.
//!
//! It keeps Services, EndpointSlices, Nodes, ServiceCIDRs and Secrets under one count of versions; answers lists in pages and
//! watches with selectors, bookmarks and time-outs; and records the Events that are posted to it. A [`Fault`] strikes one
//! request, [`ApiServer::hold`] keeps requests waiting, and [`ApiServer::go_away`] refuses all of them. It never decides by
//! itself to misbehave.

mod answer;
mod fault;
mod in_world;
mod resource;
mod selector;
mod serve;
mod store;
mod wire;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub use self::{
    fault::{Fault, Verb},
    in_world::world_and_server,
    resource::Resource,
};
use self::{resource::Id, serve::State};

/// How long [`ApiServer::wait`] waits by default: longer than the agent's longest back-off that tests can meet.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server's threads and its owner share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked has failed its test already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and lets everybody look.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// Waits until the state is as wanted, or for a while.
    fn wait_while(&self, limit: Duration, is_wanting: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_timeout_while(self.state(), limit, is_wanting);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A running server; dropping it ends it.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts one in the network namespace of the calling thread; port 0 takes any that is free.
    ///
    /// # Errors
    /// When the address can't be had.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("can't listen on {address}"))?;
        let address = listener.local_addr().context("can't tell the own address")?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        // The thread stays in this namespace, so that it can listen again after an absence.
        let acceptor = thread::spawn(move || serve::accept(&own, listener, address));
        Ok(Self { shared, address, acceptor: Some(acceptor) })
    }

    /// The same, on the loopback device.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start_locally() -> Result<Self> {
        /// Each has an address of its own: while it is away nobody else takes its port.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        Self::start(SocketAddr::from(([127, 0, 78, NEXT.fetch_add(1, Ordering::Relaxed)], 0)))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for it, with these credentials (an object such as `{"token": ..}`).
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_kubeconfig(&self, path: &Path, user: &Value) -> io::Result<()> {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": self.url()}}],
            "users": [{"name": "somebody", "user": user}],
            "contexts": [{"name": "only", "context": {"cluster": "here", "user": "somebody"}}],
            "current-context": "only",
        });
        fs::write(path, kubeconfig.to_string())
    }

    /// Streams lists from now on, as servers do since Kubernetes 1.34: they count as lists, and the watch that follows as one.
    #[must_use]
    pub fn streaming_lists(self) -> Self {
        self.shared.change(|state| state.streams_lists = true);
        self
    }

    /// Creates or replaces an object.
    ///
    /// # Panics
    /// When it is of no kind that the server knows, or has no name.
    pub fn apply(&self, object: Value) {
        self.shared.change(|state| state.store.put(object));
    }

    /// Creates or replaces the objects of a manifest in YAML.
    ///
    /// # Errors
    /// When it isn't YAML.
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).context("not YAML")?;
        objects.into_iter().for_each(|object| self.apply(object));
        Ok(())
    }

    /// Deletes an object, if it is there. Namespaced ones are in `default`.
    pub fn delete(&self, resource: Resource, name: &str) {
        self.shared.change(|state| state.store.remove(&Id::new(resource, "default", name)));
    }

    /// An object of the namespace `default`, as it is now.
    #[must_use]
    pub fn object(&self, resource: Resource, name: &str) -> Option<Value> {
        self.shared.state().store.get(&Id::new(resource, "default", name))
    }

    /// Forgets the history: a watch that starts from an older version is told 410 in its stream.
    pub fn forget_history(&self) {
        self.shared.change(|state| state.store.forget_history());
    }

    /// Lets the next request of this kind go wrong; several in the order in which they were given.
    pub fn inject(&self, resource: Resource, verb: Verb, fault: Fault) {
        self.shared.change(|state| state.faults.entry((resource, verb)).or_default().push_back(fault));
    }

    /// Faults that have not struck yet.
    #[must_use]
    pub fn pending_faults(&self) -> usize {
        self.shared.state().faults.values().map(|faults| faults.len()).sum()
    }

    /// Lets requests of this kind wait, until [`ApiServer::release`].
    pub fn hold(&self, resource: Resource, verb: Verb) {
        self.shared.change(|state| state.held.insert((resource, verb)));
    }

    /// Answers the requests that wait.
    pub fn release(&self, resource: Resource, verb: Verb) {
        self.shared.change(|state| state.held.remove(&(resource, verb)));
    }

    /// Breaks all connections at once.
    pub fn disconnect(&self) {
        self.shared.change(State::disconnect);
    }

    /// Breaks all connections, and refuses new ones.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn go_away(&self) -> Result<()> {
        self.shared.change(|state| {
            state.is_away = true;
            state.disconnect();
        });
        self.wait("going away", |state| !state.is_listening)
    }

    /// Listens again.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn come_back(&self) -> Result<()> {
        self.shared.change(|state| state.is_away = false);
        self.wait("coming back", |state| state.is_listening)
    }

    /// Does as if a kind of objects had not been invented.
    pub fn forget_kind(&self, resource: Resource) {
        self.shared.change(|state| state.unknown.insert(resource));
    }

    /// Does as if nothing could be selected by a field.
    pub fn forget_field(&self, path: &'static str) {
        self.shared.change(|state| state.unknown_fields.insert(path));
    }

    /// From now on only who has one of these tokens is answered.
    pub fn accept_tokens(&self, tokens: &[&str]) {
        self.shared.change(|state| state.tokens = Some(tokens.iter().map(|token| (*token).to_owned()).collect()));
    }

    /// The token that came with the last request.
    #[must_use]
    pub fn last_token(&self) -> Option<String> {
        self.shared.state().last_token.clone()
    }

    /// How many requests of a kind there have been.
    #[must_use]
    pub fn count(&self, resource: Resource, verb: Verb) -> usize {
        self.shared.state().counts.get(&(resource, verb)).copied().unwrap_or_default()
    }

    /// Waits until there have been that many requests of a kind.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_for(&self, resource: Resource, verb: Verb, count: usize) -> Result<()> {
        let what = format!("request {count} to {verb:?} {}", resource.plural());
        self.wait(&what, |state| state.counts.get(&(resource, verb)).is_some_and(|now| *now >= count))
    }

    /// Waits until a watch of this kind has been told by a bookmark how far it has come.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_for_bookmark(&self, resource: Resource) -> Result<()> {
        let what = format!("a bookmark for {}", resource.plural());
        self.wait(&what, |state| state.bookmarked.get(&resource).is_some_and(|told| *told == state.store.version()))
    }

    /// The Events that were posted, oldest first, each as it is after the last change to it.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.shared.state().events.clone()
    }

    /// Waits until an Event as wanted has been posted.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_for_event(&self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let find = |state: &State| state.events.iter().find(|event| is_wanted(event)).cloned();
        self.wait(what, |state| find(state).is_some())?;
        find(&self.shared.state()).context("an Event that was there a moment ago")
    }

    fn wait(&self, what: &str, mut is_so: impl FnMut(&mut State) -> bool) -> Result<()> {
        let start = Instant::now();
        drop(self.shared.wait_while(PATIENCE, |state| !is_so(state)));
        ensure!(start.elapsed() < PATIENCE, "the API server: {what} did not happen within {PATIENCE:?}");
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.is_over = true;
            state.disconnect();
        });
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in there has been printed, and nobody is left to tell.
            let _ = acceptor.join();
        }
    }
}
