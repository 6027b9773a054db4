// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's own loop in this process, on the real maps: objects go in, and a stopwatch stands where they are written.
//!
//! No device gets programs, so nothing of the machine's traffic is touched. Everything runs as in `lb-agent run`: the
//! loop on the main thread, its source on another, a channel between them.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::mpsc as commits,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_agent::{
    dataplane::{Dataplane, Options, SocketOptions, XdpMode},
    diff::{Capacities, Filter, GRACE, Operation, State, WriteError, Writer},
    hash_seed::HashSeed,
    health::Health,
    metrics::{Directory, Metrics},
    model::Model,
    node::{
        addresses::NodePortAddresses,
        roles::{Duty, Selection},
        state::{Link, NodeState},
    },
    problem::Problem,
    source::Event,
    sync::{
        Devices, Inputs, Loop, LoopError, Maps, Reporter, Services,
        doors::{Attached, DoorError, Doors},
        take_in_while,
    },
};
use lb_common::{address::Address, config::Net, maps::TABLES};
use nix::time::ClockId;
use serde::{Deserialize, Serialize};
use shunt_tests::world::Site;
use tokio::sync::{mpsc, oneshot};

use crate::{memory::Resident, objects::Shape, spread::Spread};

/// As in `lb-agent run`.
const QUEUE_LENGTH: usize = 1024;
const WORKERS: usize = 2;

/// How long anything may take before it counts as lost.
const LIMIT: Duration = Duration::from_secs(60);
/// A change waits for the loop to have gone to sleep, as in a cluster.
const IDLE: Duration = Duration::from_millis(1);
/// How many tables of the array are at rest at most; see [`pause`].
const RESTING_TABLES: u32 = 3;

/// What was measured at one size.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inside {
    /// From nothing to the last frontend written, loading the programs included.
    pub cold_start_ms: f64,
    /// What all threads did in that time, the making of the objects included: on a busy machine the better figure.
    pub cold_start_cpu_ms: f64,
    /// Of that, what opening the data plane took: programs verified, maps made. The first objects are taken in meanwhile.
    pub open_ms: f64,
    /// The same with all maps as they should be: nothing is written.
    pub restart_ms: f64,
    /// From handing a changed slice to the loop to its frontend written, or its table changed, in microseconds.
    pub change_us: Spread,
    /// This process after its cold start, and after a restart and the changes.
    pub resident: [Resident; 2],
    /// Lookup tables of all Services, in bytes, before anything was changed.
    pub table_bytes: u64,
}

/// Measures one size, with so many changes.
pub fn measure(shape: Shape, changes: u32) -> Result<Inside> {
    let site = Site::new()?;
    let (open_ms, (cold_start_ms, cold_start_cpu_ms, cold)) = session(&site.bpffs(), shape, |hand| {
        let synced = hand.fill(shape)?;
        let cpu = milliseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?.into());
        Ok((hand.last_commit().unwrap_or(synced), cpu, Resident::of("self")?))
    })?;
    let inside = session(&site.bpffs(), shape, |hand| {
        let restart_ms = hand.fill(shape)?;
        let written = hand.commits.try_iter().count();
        ensure!(written == 0, "{written} frontends were written although all of them stood in the maps already");
        let table_bytes = hand.table_bytes()?;
        let change_us = hand.changes(shape, changes, pause(table_bytes / u64::from(shape.services)))?;
        let resident = [cold, Resident::of("self")?];
        Ok(Inside { cold_start_ms, cold_start_cpu_ms, open_ms, restart_ms, change_us, resident, table_bytes })
    });
    Ok(inside?.1)
}

/// A freed table rests before its space is used again: a Service whose table fills much of the array can't change faster
/// than that.
fn pause(table_bytes: u64) -> Duration {
    let array_bytes = u64::from(Capacities::default().table_slots) * size_of::<u32>() as u64;
    // Beside those at rest there are the one in use and the next one.
    let is_crowded = table_bytes * u64::from(RESTING_TABLES + 2) > array_bytes / 2;
    if is_crowded { GRACE / RESTING_TABLES } else { IDLE }
}

/// Runs a loop on these maps while `body`, on a thread of its own, feeds it. Returns how long the opening of the data plane took,
/// in milliseconds, and what `body` returns.
fn session<T: Send>(bpffs: &Path, shape: Shape, body: impl FnOnce(&mut Hand) -> Result<T> + Send) -> Result<(f64, T)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let start = Instant::now();
    let capacities = shape.capacities();
    let options =
        Options { bpffs: bpffs.to_owned(), capacities, xdp: XdpMode::Off, sockets: SocketOptions::OFF, log: false };
    let (event_sender, mut events) = mpsc::channel(QUEUE_LENGTH);
    let (requests, request_receiver) = mpsc::channel(1);
    let (committed, commits) = commits::channel();
    let health = Health::default();
    let mut hand = Hand { start, events: event_sender, requests, commits, health: health.clone() };
    thread::scope(|scope| {
        // Its senders go with it, which ends the loop.
        let body = scope.spawn(move || body(&mut hand));
        let agent = async move {
            let source_ports = "61000-65535".parse().context("source ports")?;
            let mut services = Services::new(Model::new("node-0".into()), source_ports);
            let (mut reporter, metrics) = (Reporter::default(), Metrics::default());
            let opening = tokio::task::spawn_blocking(move || Dataplane::open(&options));
            let told = (&mut services, &mut reporter, &metrics);
            let dataplane = take_in_while(opening, &mut events, told).await??;
            let opened = milliseconds(start.elapsed());
            let state = State::adopt(dataplane.maps().dump()?, &dataplane.capacities());
            let doors = Stopwatch { dataplane, committed };
            let selection = Selection { uplinks: Vec::new(), pods: Vec::new() };
            let devices =
                Devices::new(NodeState::default(), selection, NodePortAddresses::default(), Default::default());
            let agent = Loop::new(services, devices, Maps { state, doors }, health, metrics).reporting(reporter);
            let (_changes, changes) = mpsc::channel(1);
            let (_notices, notices) = mpsc::channel(1);
            let ended = agent.run(Inputs { events, changes, requests: request_receiver, notices }).await;
            ensure!(ended == LoopError::SourceEnded, "{ended}");
            Ok(opened)
        };
        let opened = runtime.block_on(agent);
        let result = body.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((opened?, result?))
    })
}

/// The far end of the loop's channels.
struct Hand {
    start: Instant,
    events: mpsc::Sender<Event>,
    requests: mpsc::Sender<oneshot::Sender<Directory>>,
    commits: commits::Receiver<Instant>,
    health: Health,
}

impl Hand {
    fn send(&self, event: Event) -> Result<()> {
        self.events.blocking_send(event).context("the loop has ended")
    }

    /// Sends all objects and waits until they are in the maps. Returns the time since the start.
    fn fill(&self, shape: Shape) -> Result<f64> {
        shape.objects().try_for_each(|object| self.send(Event::Apply(object)))?;
        self.send(Event::Synced)?;
        while !self.health.is_synced() {
            ensure!(self.start.elapsed() < LIMIT, "the maps were not written within {LIMIT:?}");
            thread::sleep(Duration::from_micros(100));
        }
        Ok(milliseconds(self.start.elapsed()))
    }

    /// When the last frontend so far was written, counted from the start.
    fn last_commit(&self) -> Option<f64> {
        self.commits.try_iter().last().map(|at| milliseconds(at - self.start))
    }

    fn table_bytes(&self) -> Result<u64> {
        let (sender, directory) = oneshot::channel();
        self.requests.blocking_send(sender).context("the loop has ended")?;
        let directory = directory.blocking_recv().context("the loop has ended")?;
        let slots = directory.usage.iter().find(|(name, ..)| *name == TABLES).context("no usage of the tables")?.1;
        Ok(slots * size_of::<u32>() as u64)
    }

    /// Changes one endpoint after the other.
    fn changes(&self, shape: Shape, count: u32, pause: Duration) -> Result<Spread> {
        let mut spread = Spread::recorder()?;
        for round in 0..count {
            thread::sleep(pause);
            let event = Event::Apply(shape.changed_slice(round));
            let sent = Instant::now();
            self.send(event)?;
            let committed = self.commits.recv_timeout(LIMIT).context("a change was not written")?;
            spread.record(committed - sent);
        }
        Ok(spread.finish())
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The data plane, and the time of every frontend and every changed table written.
struct Stopwatch {
    dataplane: Dataplane,
    committed: commits::Sender<Instant>,
}

impl Writer for Stopwatch {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        self.dataplane.write(operation)?;
        let is_commit = match operation {
            Operation::UpsertFrontend { key, .. } => key.port_be != 0,
            Operation::ChangeTable { .. } => true,
            _ => false,
        };
        if is_commit {
            // Nobody listens any more at the end.
            let _ = self.committed.send(Instant::now());
        }
        Ok(())
    }
}

impl Doors for Stopwatch {
    fn attach(&mut self, ifindex: u32, link: &Link, duty: Duty) -> Result<Attached, DoorError> {
        Doors::attach(&mut self.dataplane, ifindex, link, duty)
    }

    fn take_over(&mut self) -> Vec<Problem> {
        Doors::take_over(&mut self.dataplane)
    }

    fn is_socket_door_open(&self) -> bool {
        self.dataplane.is_socket_door_open()
    }

    fn detach(&mut self, ifindex: u32) {
        self.dataplane.detach(ifindex);
    }

    fn attached(&self) -> BTreeSet<u32> {
        self.dataplane.attached()
    }

    fn bump_next_hops(&mut self) {
        self.dataplane.bump_next_hops();
    }

    fn set_policy_routing(&mut self, is_policy_routed: bool) {
        Doors::set_policy_routing(&mut self.dataplane, is_policy_routed);
    }

    fn next_hops(&self) -> BTreeSet<(u32, [u8; 6])> {
        self.dataplane.next_hops()
    }

    fn net(&self) -> Net {
        Doors::net(&self.dataplane)
    }

    fn set_net(&mut self, net: Net) {
        Doors::set_net(&mut self.dataplane, net);
    }

    fn set_hash_seed(&mut self, _seed: HashSeed) {}

    fn set_node_addresses(&mut self, addresses: [Address; 2]) {
        self.dataplane.set_node_addresses(addresses);
    }

    fn sweep_filter(&mut self, needed: &Filter) -> Filter {
        self.dataplane.sweep_filter(needed)
    }
}
