// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent without a kernel: source, model, compile, diff and the one loop, on maps in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_agent::{
    dataplane::fake::Fake,
    diff::{Capacities, Filter, Operation, State, WriteError, Writer},
    events::{self, Recorder},
    hash_seed::HashSeed,
    health::Health,
    metrics::Metrics,
    model::Model,
    node::{
        addresses::NodePortAddresses,
        roles::{Duty, Selection},
        state::{Change, Link, NodeState},
    },
    problem::Problem,
    source::{self, KubeOptions},
    sync::{
        Devices, Inputs, Loop, Maps, Reporter, Services,
        doors::{Attached, DoorError, Doors},
    },
};
use lb_common::address::Address;
use shunt_tests::{api_server::ApiServer, world::wait_until};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::mpsc};

/// The Node that all agents here run on.
pub const NODE: &str = "node-a";
/// For the maps to follow, back-offs of the source included.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Time in which something that must not happen would have.
pub const A_WHILE: Duration = Duration::from_millis(400);

/// Frontends as text, each with the endpoints that get its new flows.
pub type Served = BTreeMap<String, BTreeSet<String>>;

/// Maps in memory that the test can look at while the agent writes them.
#[derive(Clone, Default)]
struct SharedMaps {
    fake: Arc<Mutex<Fake>>,
    /// Flows that found no source port.
    without_port: Arc<AtomicU64>,
    hash_seed: Arc<Mutex<Option<HashSeed>>>,
}

impl SharedMaps {
    fn lock(&self) -> MutexGuard<'_, Fake> {
        self.fake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer for SharedMaps {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        self.lock().write(operation)
    }
}

impl Doors for SharedMaps {
    fn attach(&mut self, _ifindex: u32, _link: &Link, _duty: Duty) -> Result<Attached, DoorError> {
        Ok(Attached::default())
    }

    fn take_over(&mut self) -> Vec<Problem> {
        Vec::new()
    }

    fn is_socket_door_open(&self) -> bool {
        true
    }

    fn flows_without_port(&self) -> Option<u64> {
        Some(self.without_port.load(Ordering::Relaxed))
    }

    fn detach(&mut self, _ifindex: u32) {}

    fn attached(&self) -> BTreeSet<u32> {
        BTreeSet::new()
    }

    fn bump_next_hops(&mut self) {}

    fn set_policy_routing(&mut self, _is_policy_routed: bool) {}

    fn next_hops(&self) -> BTreeSet<(u32, [u8; 6])> {
        BTreeSet::new()
    }

    fn set_node_addresses(&mut self, _addresses: [Address; 2]) {}

    fn set_hash_seed(&mut self, seed: HashSeed) {
        *self.hash_seed.lock().unwrap_or_else(PoisonError::into_inner) = Some(seed);
    }

    fn sweep_filter(&mut self, needed: &Filter) -> Filter {
        needed.clone()
    }
}

/// A running agent.
pub struct Agent {
    maps: SharedMaps,
    health: Health,
    runtime: Option<Runtime>,
    kubeconfig: Option<TempDir>,
    /// Without a sender the loop would end.
    _changes: mpsc::Sender<Change>,
}

impl Agent {
    /// Starts one on empty maps.
    pub fn start(server: &ApiServer) -> Result<Self> {
        Self::adopt(server, empty())
    }

    /// Starts one on maps that an earlier one has left.
    pub fn adopt(server: &ApiServer, maps: Fake) -> Result<Self> {
        Self::with_credentials(server, |options| Self::follow(options, maps))
    }

    /// Starts one on empty maps that has the seed of the flow hash from a Secret.
    pub fn sharing_seed(server: &ApiServer, secret: &str) -> Result<Self> {
        let hash_seed = Some(secret.parse()?);
        Self::with_credentials(server, |options| Self::follow(KubeOptions { hash_seed, ..options }, empty()))
    }

    /// The seed of the flow hash, if it has been told one.
    pub fn hash_seed(&self) -> Option<HashSeed> {
        *self.maps.hash_seed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one on empty maps whose watches last a second.
    pub fn impatient(server: &ApiServer) -> Result<Self> {
        Self::with_credentials(server, |options| Self::follow(KubeOptions { watch_secs: 1, ..options }, empty()))
    }

    fn with_credentials(server: &ApiServer, start: impl FnOnce(KubeOptions) -> Result<Self>) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for the kubeconfig")?;
        let kubeconfig = directory.path().join("kubeconfig");
        server.write_kubeconfig(&kubeconfig, &serde_json::json!({}))?;
        // The source reads the file once, at its start, and that may be a while after this.
        let mut agent = start(KubeOptions::new(Some(kubeconfig), NODE.into()))?;
        agent.kubeconfig = Some(directory);
        Ok(agent)
    }

    /// Starts one with the credentials in a file.
    pub fn run(kubeconfig: &Path, maps: Fake) -> Result<Self> {
        Self::follow(KubeOptions::new(Some(kubeconfig.to_owned()), NODE.into()), maps)
    }

    /// Starts one on empty maps that looks for credentials where the agent does by default: in a pod, its own.
    pub fn run_in_cluster() -> Result<Self> {
        Self::follow(KubeOptions::new(None, NODE.into()), empty())
    }

    fn follow(options: KubeOptions, maps: Fake) -> Result<Self> {
        let maps = SharedMaps { fake: Arc::new(Mutex::new(maps)), ..SharedMaps::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("a runtime")?;
        let state = State::adopt(maps.lock().dump(), &Capacities::default());
        let selection = Selection { uplinks: Vec::new(), pods: Vec::new() };
        let devices = Devices::new(NodeState::default(), selection, NodePortAddresses::default(), BTreeMap::new());
        let services = Services::new(Model::new(NODE.into()), "61000-65535".parse()?);
        let health = Health::default();
        let (recorder, notes) = Recorder::new();
        recorder.tell_start();
        let agent =
            Loop::new(services, devices, Maps { state, doors: maps.clone() }, health.clone(), Metrics::default());
        let agent = agent.reporting(Reporter::new(recorder));
        let (event_sender, events) = mpsc::channel(1024);
        let (change_sender, changes) = mpsc::channel(1);
        let (_, requests) = mpsc::channel(1);
        let (_, notices) = mpsc::channel(1);
        runtime.spawn(agent.run(Inputs { events, changes, requests, notices }));
        let client = runtime.block_on(source::connect(&options))?;
        runtime.spawn(events::post(client, NODE.into(), notes));
        runtime.spawn(source::run_kube(options, event_sender));
        Ok(Self { maps, health, runtime: Some(runtime), kubeconfig: None, _changes: change_sender })
    }

    /// Whether everything that the first lists held is in the maps.
    pub fn is_synced(&self) -> bool {
        self.health.is_synced()
    }

    /// Waits for that.
    pub fn wait_synced(&self) -> Result<()> {
        wait_until("the first sync", PATIENCE, || Ok(self.is_synced()))
    }

    /// Lets the programs turn a new flow away for want of a source port.
    pub fn turn_flow_away(&self) {
        self.maps.without_port.fetch_add(1, Ordering::Relaxed);
    }

    /// What the maps serve.
    pub fn served(&self) -> Served {
        served(&self.maps.lock())
    }

    /// Waits until the maps serve just that.
    pub fn wait_served(&self, wanted: &Served) -> Result<()> {
        self.wait_served_within(PATIENCE, wanted)
    }

    /// The same, for longer or not as long as usual.
    pub fn wait_served_within(&self, limit: Duration, wanted: &Served) -> Result<()> {
        let waited = wait_until("the maps serving what is wanted", limit, || Ok(self.served() == *wanted));
        waited.with_context(|| format!("wanted {wanted:?}, but there is\n{}", *self.maps.lock()))
    }

    /// That the maps serve just that, and go on doing so for a while.
    pub fn keeps_serving(&self, wanted: &Served) -> Result<()> {
        std::thread::sleep(A_WHILE);
        ensure!(self.served() == *wanted, "wanted {wanted:?}, but there is\n{}", *self.maps.lock());
        Ok(())
    }

    /// Ends it; what it has written stays.
    pub fn stop(mut self) -> Fake {
        self.end();
        self.maps.lock().clone()
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
        self.kubeconfig = None;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// Maps that hold nothing.
pub fn empty() -> Fake {
    Fake::new(Capacities::default())
}

/// Reads the lines `frontend 10.96.0.1:80/TCP -> service 1, ..` and `backend 1 10.0.0.1:80 service 1 active ..`, but not
/// `frontend all of 10.96.0.1 -> ..`, which answers for all other ports.
pub fn served(maps: &Fake) -> Served {
    let text = maps.to_string();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split([' ', ',']).collect()).collect();
    let backends_of = |service: &str| {
        let own = lines.iter().filter(|words| words[0] == "backend" && words[4] == service && words[5] == "active");
        own.map(|words| words[2].to_owned()).collect()
    };
    let frontends = lines.iter().filter(|words| words[0] == "frontend" && words[1] != "all");
    frontends.map(|words| (words[1].to_owned(), backends_of(words[4]))).collect()
}
