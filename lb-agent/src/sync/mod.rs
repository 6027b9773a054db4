// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one loop and the one clock: whatever happens arrives here, and whatever is written is written from here.
//!
//! ```text
//!  sources --events--> Services: model -> compile -> diff --+
//!                                                           +--> Maps: State (mirror) + Doors (kernel)
//!  netlink --changes--> Devices: roles, addresses ----------+
//!  scrapes --requests--> what the counters' indices stand for
//! ```
//!
//! A burst is drained before anything is planned; devices come before Services, so that a pod's traffic finds its door
//! open within milliseconds even while thousands of Services are being written. When told to stop the loop just ends:
//! what it has written stays, and goes on forwarding.

mod audit;
mod conflicts;
mod devices;
pub mod doors;
mod exhaustion;
mod held;
mod neighbours;
mod net;
mod no_local;
mod queue;
mod report;
mod services;
mod sweep;
#[cfg(test)]
mod tests;
mod triggers;

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Instant,
};

use jiff::Timestamp;
use lb_common::filter::Concern;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use self::{
    audit::Schedule,
    devices::Told,
    doors::Doors,
    exhaustion::Exhaustion,
    neighbours::Neighbours,
    no_local::NoLocalEndpoints,
    report::Scope,
    sweep::{Sweep, sweep},
};
pub use self::{
    devices::Devices,
    net::{Net, NetOptions},
    no_local::PolicyKind,
    report::Reporter,
    services::Services,
};
use crate::{
    compile::BackendKey,
    dataplane::source_ports,
    diff::State,
    health::{Health, NodeStatus},
    metrics::{Directory, Metrics},
    model::Model,
    node::{net as node_net, state::Change},
    source::Event,
};

/// Services written between two looks at what else has happened.
const SERVICES_A_TURN: usize = 64;

/// Reports taken in between two turns at writing: a source that never pauses must not keep the maps waiting.
const REPORTS_A_TURN: usize = 4096;

/// What the maps hold, and who can change it.
#[derive(Debug)]
pub struct Maps<D> {
    /// The mirror.
    pub state: State,
    /// The maps and programs themselves.
    pub doors: D,
}

/// Whatever can happen.
#[derive(Debug)]
pub struct Inputs {
    /// From the sources.
    pub events: mpsc::Receiver<Event>,
    /// From the kernel.
    pub changes: mpsc::Receiver<Change>,
    /// From scrapes of the metrics.
    pub requests: mpsc::Receiver<oneshot::Sender<Directory>>,
    /// From those who look after something in the kernel.
    pub notices: mpsc::Receiver<Notice>,
}

/// What others see of what was made in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something has been taken out of it, perhaps: it is worth while to look.
    Removal,
    /// What came of a look at the net.
    Net(node_net::Told),
}

/// Takes in what the sources tell while the data plane is opened: nothing is written before they have told all there is.
pub async fn take_in_while<T>(
    opening: impl Future<Output = T>,
    events: &mut mpsc::Receiver<Event>,
    (services, reporter, metrics): (&mut Services, &mut Reporter, &Metrics),
) -> T {
    let mut opening = pin!(opening);
    loop {
        tokio::select! {
            biased;
            opened = &mut opening => return opened,
            // That a source has ended is the loop's to say.
            Some(event) = events.recv() => take_in(event, (services, reporter, metrics), Instant::now()),
        }
    }
}

fn take_in(event: Event, (services, reporter, metrics): (&mut Services, &mut Reporter, &Metrics), now: Instant) {
    metrics.count_change(&event);
    services.take_event(event, reporter, now);
}

/// A channel that the loop can't do without was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoopError {
    /// No source any more.
    #[error("the source of objects has ended")]
    SourceEnded,
    /// No netlink any more.
    #[error("the kernel's reports of devices have ended")]
    NetlinkEnded,
}

/// The loop's own state.
pub struct Loop<D> {
    services: Services,
    devices: Devices,
    maps: Maps<D>,
    reporter: Reporter,
    health: Health,
    metrics: Metrics,
    sweep: Sweep,
    exhaustion: Exhaustion,
    audits: Schedule,
    neighbours: Neighbours,
    net: Net,
    was_done: bool,
}

impl<D: Doors> Loop<D> {
    /// With everything in place, but nothing done yet.
    #[must_use]
    pub fn new(services: Services, devices: Devices, maps: Maps<D>, health: Health, metrics: Metrics) -> Self {
        Self {
            services: services.answering_for(&health),
            devices,
            maps,
            reporter: Reporter::default(),
            health,
            metrics,
            sweep: Sweep::default(),
            exhaustion: Exhaustion::default(),
            audits: Schedule::default(),
            neighbours: Neighbours::default(),
            net: Net::default(),
            was_done: false,
        }
    }

    /// With the net as its flags want it.
    #[must_use]
    pub fn with_net(self, net: Net) -> Self {
        Self { net, ..self }
    }

    /// Tells what is wanted of the net.
    #[must_use]
    pub fn net(&self) -> watch::Receiver<node_net::Wanted> {
        self.net.wanted()
    }

    /// Tells which neighbours shall be asked for, each time when it is time to ask.
    #[must_use]
    pub fn neighbours(&self) -> watch::Receiver<Vec<(u32, IpAddr)>> {
        self.neighbours.subscribe()
    }

    /// Goes on with the problems that were found while the sources told the first things, and tells all as this one does.
    #[must_use]
    pub fn reporting(self, reporter: Reporter) -> Self {
        Self { reporter, ..self }
    }

    /// Runs until an input ends, and says which. Dropping the future at any time is safe: every turn is finished before it
    /// waits.
    pub async fn run(mut self, mut inputs: Inputs) -> LoopError {
        loop {
            let wake_at = self.turn(Instant::now());
            tokio::select! {
                event = inputs.events.recv() => match event {
                    Some(event) => self.take_event(event, Instant::now()),
                    None => return LoopError::SourceEnded,
                },
                change = inputs.changes.recv() => match change {
                    Some(change) => self.take_change(change, Instant::now()),
                    None => return LoopError::NetlinkEnded,
                },
                Some(notice) = inputs.notices.recv() => self.take_notice(notice, Instant::now()),
                // A scrape that has given up meanwhile is none.
                Some(request) = inputs.requests.recv() => drop(request.send(self.directory())),
                () = sleep_until(wake_at) => {}
            }
            self.drain(&mut inputs);
        }
    }

    /// Takes in what else has happened already, so that a burst is planned once.
    fn drain(&mut self, inputs: &mut Inputs) {
        let now = Instant::now();
        for _ in 0..REPORTS_A_TURN {
            let change = inputs.changes.try_recv().map(|change| self.take_change(change, now));
            let event = inputs.events.try_recv().map(|event| self.take_event(event, now));
            if change.is_err() && event.is_err() {
                return;
            }
        }
    }

    fn take_change(&mut self, change: Change, now: Instant) {
        match change {
            Change::FiltersGone => self.audits.hint(now),
            change => self.devices.take_change(change),
        }
    }

    fn take_notice(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Removal => self.audits.hint(now),
            Notice::Net(told) => self.take_net(told, now),
        }
    }

    fn take_event(&mut self, event: Event, now: Instant) {
        take_in(event, (&mut self.services, &mut self.reporter, &self.metrics), now);
    }

    /// Does what there is to do. Returns when to come back although nothing happens; at once if there is more to do.
    pub fn turn(&mut self, now: Instant) -> Option<Instant> {
        self.health.set_turn(now);
        let model = self.services.model();
        self.devices.take_told(Told {
            is_synced: model.is_synced(),
            internal_addresses: model.node().internal_addresses.clone(),
            external_addresses: model.node().external_addresses.clone(),
        });
        self.health.set_node(node_status(model));
        if let Some(seed) = model.hash_seed() {
            self.maps.doors.set_hash_seed(seed);
        }
        self.devices.work(&mut self.maps, &mut self.reporter, now);
        self.services.listen_on(&self.devices.health_check_addresses());
        self.services.leave_to_node(self.devices.take_held());
        self.services.gather(&mut self.maps.state, now);
        if self.services.has_ready() {
            self.health.set_waiting(now);
            self.metrics.set_queued(Timestamp::now());
            self.was_done = false;
        }
        self.services.work(SERVICES_A_TURN, &mut self.maps, &mut self.reporter, now);
        // What was written may concern other Services: a frontend that one gave up is another's now.
        self.services.gather(&mut self.maps.state, now);
        let wall = Timestamp::now();
        for (is_v4, at) in self.services.take_programmed() {
            self.metrics.observe_programming(is_v4, wall.duration_since(at));
        }
        if self.services.is_done() {
            if !self.was_done {
                self.finish(now);
            }
            // Those too that concerned nothing that is served.
            self.metrics.clear_pending();
        }
        self.metrics.set_not_programmed(self.services.count_not_programmed());
        self.audit(now);
        self.services.tell_conflicts(&mut self.reporter, now);
        self.work_net();
        let (ports, reminder) = (self.watch_ports(now), self.reporter.remind(now));
        self.metrics.set_problems(self.reporter.standing(), self.reporter.total());
        if let Some(problems) = self.reporter.changed() {
            self.metrics.name_problems(problems);
        }
        let neighbours = self.neighbours.work(&self.devices, &mut self.maps.doors, now);
        if self.services.has_ready() {
            return Some(now);
        }
        if self.sweep.is_due(now) {
            self.sweep();
        }
        // What was there before the first sync may come back with it.
        let orphans = if self.health.is_synced() { self.maps.doors.close_orphans(now) } else { None };
        let (services, devices, maps) = (self.services.wake_at(), self.devices.wake_at(), self.maps.state.wake_at());
        let timers = [services, devices, maps, self.sweep.wake_at(), orphans, ports, reminder, self.audits.wake_at()];
        timers.into_iter().flatten().chain([neighbours]).min()
    }

    /// Whether source ports run out. Returns when to look again.
    fn watch_ports(&mut self, now: Instant) -> Option<Instant> {
        if self.exhaustion.is_due(now) {
            let count = self.maps.doors.flows_without_port()?;
            let problem = self.exhaustion.judge(count, self.services.source_ports(), now);
            self.reporter.set(Scope::SourcePorts, problem.into_iter().collect());
        }
        self.exhaustion.wake_at()
    }

    /// Before the first sync nothing is known to be needless.
    fn sweep(&mut self) {
        if self.health.is_synced() {
            let mut needed = self.maps.state.needed_filter();
            self.devices.local_addresses().for_each(|address| needed.insert(Concern::Node(address)));
            source_ports(&self.services.source_ports().to_config()).for_each(|concern| needed.insert(concern));
            sweep(&needed, &mut self.maps);
        }
    }

    /// Everything known is in the maps, but for that for which there is no room.
    fn finish(&mut self, now: Instant) {
        self.was_done = true;
        let is_first = !self.health.is_synced();
        let time = Timestamp::now();
        let is_whole = self.services.count_not_programmed() == 0;
        let waiting_since = self.health.set_synced(time, is_whole);
        let duration = waiting_since.map(|since| since.elapsed()).unwrap_or_default();
        if is_whole {
            self.metrics.observe_sync(duration, time);
        }
        for group in NoLocalEndpoints::GROUPS {
            self.metrics.set_no_local_endpoints(group, self.services.no_local_endpoints().count(group));
        }
        if is_first {
            self.maps.doors.take_over().into_iter().for_each(|problem| self.reporter.note(problem, now));
            let services = self.services.model().services().len();
            info!("first sync: {services} Services are in the maps after {} ms", duration.as_millis());
        }
    }

    /// What the indices in the counters' maps stand for at this moment.
    fn directory(&self) -> Directory {
        let state = &self.maps.state;
        let socket = |key: &BackendKey| SocketAddr::new(key.address.into(), key.port);
        Directory {
            services: state.service_ports().map(|(index, unit)| (index, unit.clone())).collect(),
            backends: state.backends().map(|(index, unit, key)| (index, unit.clone(), socket(key))).collect(),
            usage: state.usage().to_vec(),
        }
    }
}

fn node_status(model: &Model) -> NodeStatus {
    match (model.is_node_known(), model.is_node_leaving()) {
        (_, true) => NodeStatus::Leaving,
        (true, false) => NodeStatus::Present,
        (false, false) => NodeStatus::Unknown,
    }
}

async fn sleep_until(wake_at: Option<Instant>) {
    match wake_at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
