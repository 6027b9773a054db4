// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the sources' events to what the maps hold, one Service at a time: `model -> compile -> diff -> write`.
//!
//! One Service's failure stops no other; it is tried again after a growing pause. Nothing at all is written before the
//! sources have told what there is (rule 7).
//!
//! A write that failed is still to be done: until it is, the maps are not complete ([`Services::is_done`]), and the node
//! gets unhealthy with time. What waiting can't mend is only reported: a Service for all of which a map has no room (its plan
//! says so and writes what fits, or the kernel refuses it), and a port that another process holds. Else one Service too many
//! would keep a node's first sync from ever ending: the node would stay without its socket door, with an earlier agent's
//! programs serving ever older state, and be restarted by its probes, to no avail. But nobody is told that such a Service is
//! in the maps: load balancers hear at its health check port that there is nothing here, and what changed of it does not
//! count as programmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use jiff::Timestamp;
use lb_common::frontend::FrontendKey;

use super::{
    Maps,
    conflicts::Conflicts,
    doors::Doors,
    held::Held,
    no_local::NoLocalEndpoints,
    queue::{Queue, Rank},
    report::{Reporter, Scope},
    triggers::{Trigger, Triggers},
};
use crate::{
    compile::{ServiceKey, Unit, UnitId},
    diff::{FRONTEND_TAKEN, State, WriteError},
    health::{Health, HealthPorts},
    model::Model,
    node::ports::SourcePorts,
    problem::Problem,
    source::{Event, Kind, Object, ObjectId},
};

/// The desired state, and which Services are not in the maps as desired.
pub struct Services {
    model: Model,
    queue: Queue<ServiceKey>,
    source_ports: SourcePorts,
    health_ports: HealthPorts,
    no_local: NoLocalEndpoints,
    triggers: Triggers,
    conflicts: Conflicts,
    held: Held,
    /// Whether all Services are being listed anew: until that is complete, some that have gone seem to be there.
    is_relisting: bool,
    /// Whether what the maps held at the start has been compared with what the sources told.
    is_compared: bool,
    /// Services that the maps hold as an earlier agent left them.
    adopted: BTreeSet<ServiceKey>,
    /// Those of them that stay so for now.
    kept: BTreeSet<ServiceKey>,
    /// Services whose last write failed, and may succeed later.
    unwritten: BTreeSet<ServiceKey>,
    /// Services that are not wholly in the maps because there is no room.
    partial: BTreeSet<ServiceKey>,
}

impl Services {
    /// Nothing known yet. `source_ports` are those that no NodePort may have.
    #[must_use]
    pub fn new(model: Model, source_ports: SourcePorts) -> Self {
        Self {
            model,
            queue: Queue::default(),
            source_ports,
            health_ports: HealthPorts::default(),
            no_local: NoLocalEndpoints::default(),
            triggers: Triggers::new(Timestamp::now()),
            conflicts: Conflicts::default(),
            held: Held::default(),
            is_relisting: false,
            is_compared: false,
            adopted: BTreeSet::new(),
            kept: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            partial: BTreeSet::new(),
        }
    }

    /// Ports that are reserved for source translation.
    #[must_use]
    pub const fn source_ports(&self) -> SourcePorts {
        self.source_ports
    }

    /// Load balancers that ask for a Service learn of this health, too.
    #[must_use]
    pub fn answering_for(self, health: &Health) -> Self {
        Self { health_ports: HealthPorts::new(health.clone()), ..self }
    }

    /// Where load balancers ask from now on.
    pub fn listen_on(&mut self, addresses: &[IpAddr]) {
        self.health_ports.set_addresses(addresses).into_iter().for_each(|key| self.queue.push(key));
    }

    /// Leaves ClusterIPs to the node where it answers at them itself. `held` are its addresses on devices that lead nowhere, if they
    /// may have changed.
    pub fn leave_to_node(&mut self, held: Option<BTreeMap<IpAddr, String>>) {
        held.into_iter().for_each(|held| self.held.set(held));
        self.held.leave_to_node(&mut self.model);
    }

    /// The desired state.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Takes in what a source says.
    pub fn take_event(&mut self, event: Event, reporter: &mut Reporter, now: Instant) {
        let trigger = match &event {
            Event::Apply(Object::EndpointSlice(slice)) => {
                self.doubt_kept(slice.metadata.namespace.as_deref().unwrap_or_default());
                self.triggers.read(slice)
            }
            Event::Incomplete(false) => {
                self.adopted.iter().cloned().for_each(|key| self.queue.push(key));
                None
            }
            Event::Apply(Object::Service(_)) => {
                self.held.note_service();
                None
            }
            Event::Delete(ObjectId { kind: Kind::Service, namespace, name }) => {
                self.held.note_service();
                self.adopted.remove(&ServiceKey::new(&**namespace, &**name));
                None
            }
            Event::Delete(ObjectId { kind: Kind::EndpointSlice, namespace, .. }) => {
                self.doubt_kept(namespace);
                None
            }
            Event::Relisting(is_relisting) => {
                self.is_relisting = *is_relisting;
                None
            }
            _ => None,
        };
        for problem in self.model.handle(event) {
            reporter.note(problem, now);
        }
        if let Some((key, trigger)) = trigger.filter(|(key, _)| self.model.is_dirty(key)) {
            self.triggers.wait(key, trigger);
        }
    }

    /// Endpoints have changed in a namespace: Services that stay as they were found there may have lost some. (Not where a
    /// source can't be read: what it does not tell of may be there.)
    fn doubt_kept(&mut self, namespace: &str) {
        if self.model.is_complete() {
            let concerned = self.kept.iter().filter(|key| key.namespace == namespace);
            concerned.cloned().for_each(|key| self.queue.push(key));
        }
    }

    /// Whether a Service stays as an earlier agent left it: what is told of it can't take its place, and all that it was
    /// given is still there and ready. An endpoint that has gone must get no traffic, whatever was told.
    ///
    /// That is for fields alone of which the maps do not tell what was told of them last.
    fn is_kept(&self, key: &ServiceKey, state: &State) -> bool {
        let mut backends = state.backends_of(key).peekable();
        let is_doubtful = !self.model.is_certain(key) || self.model.lacks_good_split(key) && backends.peek().is_some();
        let is_there = |backend| self.model.has_ready_endpoint(&key.namespace, backend);
        self.adopted.contains(key) && is_doubtful && (!self.model.is_complete() || backends.all(is_there))
    }

    /// Finds out what is to be done. Services that the maps hold and no source has ever told of are gone, unless a source
    /// could not read all there is.
    pub fn gather(&mut self, state: &mut State, now: Instant) {
        if !self.model.is_synced() {
            return;
        }
        let is_first = !std::mem::replace(&mut self.is_compared, true);
        if is_first {
            self.adopted = state.services().collect();
        }
        let mut changed = self.model.take_dirty();
        changed.extend(self.adopted.iter().filter(|_| is_first).cloned());
        // Those that can only give something up come first, and then those that want it: nobody serves it between.
        let (there, gone): (BTreeSet<_>, BTreeSet<_>) =
            changed.into_iter().partition(|key| self.model.has_service(key));
        let freed: BTreeSet<FrontendKey> = gone.iter().flat_map(|key| state.frontends_of(key)).copied().collect();
        gone.into_iter().for_each(|key| self.queue.push_as(Rank::First, key));
        for key in there {
            let is_heir = !freed.is_empty() && self.model.wants_any(&key, &freed);
            self.queue.push_as(if is_heir { Rank::Next } else { Rank::Usual }, key);
        }
        state.take_dirty(now).into_iter().for_each(|key| self.queue.push(key));
    }

    /// Brings at most `limit` Services into the maps.
    pub fn work(&mut self, limit: usize, maps: &mut Maps<impl Doors>, reporter: &mut Reporter, now: Instant) {
        for _ in 0..limit {
            let Some(key) = self.queue.pop(now) else { return };
            if self.is_kept(&key, &maps.state) {
                self.keep(key, reporter, now);
                continue;
            }
            self.kept.remove(&key);
            if self.adopted.contains(&key) && self.model.lacks_good_removal(&key) {
                self.model.recover_removal(&key, maps.state.resets_on_removal(&key));
            }
            let (units, mut problems) = self.model.compile(&key);
            problems.extend(source_port_problems(&key, &units, self.source_ports));
            let mut plan = maps.state.plan(&key, self.model.creation_secs(&key), &units, now);
            let is_whole = plan.is_whole();
            // Before the maps: they drop what a load balancer goes on sending to a node without endpoints (kubernetes 85643).
            let check =
                self.model.health_check(&key).map(|check| if is_whole { check } else { check.without_endpoints() });
            self.health_ports.lower(&key, check);
            let (taken, others): (Vec<_>, Vec<_>) =
                std::mem::take(&mut plan.problems).into_iter().partition(|problem| problem.reason == FRONTEND_TAKEN);
            problems.extend(others);
            if self.conflicts.set(&key, taken, now) {
                reporter.set(Scope::Frontends(key.clone()), Vec::new());
            }
            let written = maps.state.carry_out(plan, &mut maps.doors, now);
            // Who gets what this one has given up is planned next: meanwhile nobody serves it.
            maps.state.take_affected().into_iter().for_each(|key| self.queue.push_as(Rank::Next, key));
            if written.is_ok() {
                self.adopted.remove(&key);
                self.no_local.set(&key, &units);
            }
            self.note_written(&key, &written, is_whole);
            // After the maps: who is told that there are endpoints here must find them.
            let outcome = match written {
                Ok(()) => self.health_ports.set(&key, check),
                Err(error) => Err(unwritten_problem(&key, &error)),
            };
            match outcome {
                Ok(()) => self.queue.succeed(&key),
                Err(problem) => {
                    self.queue.fail(key.clone(), now);
                    problems.push(problem);
                }
            }
            reporter.set(Scope::Service(key), problems);
        }
    }

    /// Takes note of how much of a Service is in the maps now.
    fn note_written(&mut self, key: &ServiceKey, written: &Result<(), WriteError>, is_whole: bool) {
        let (is_unwritten, is_partial) = match written {
            Ok(()) => (false, !is_whole),
            Err(error) => (!error.is_final(), error.is_final()),
        };
        for (set, is_in) in [(&mut self.unwritten, is_unwritten), (&mut self.partial, is_partial)] {
            if is_in {
                set.insert(key.clone());
            } else {
                set.remove(key);
            }
        }
        if !is_unwritten && !is_partial {
            self.triggers.finish(key);
        }
    }

    /// Tells of conflicts that last although everything is known and planned.
    pub fn tell_conflicts(&mut self, reporter: &mut Reporter, now: Instant) {
        if !self.queue.has_ready() && !self.is_relisting {
            let due = self.conflicts.take_due(now);
            due.into_iter().for_each(|(key, problems)| reporter.set(Scope::Frontends(key), problems));
        }
    }

    /// Leaves a Service as it is in the maps. Whoever asks for its health is answered, as its traffic is served.
    fn keep(&mut self, key: ServiceKey, reporter: &mut Reporter, now: Instant) {
        self.unwritten.remove(&key);
        self.triggers.forget(&key);
        let mut problems = self.model.problems_while_kept(&key);
        match self.health_ports.set(&key, self.model.health_check(&key)) {
            Ok(()) => self.queue.succeed(&key),
            Err(problem) => {
                self.queue.fail(key.clone(), now);
                problems.push(problem);
            }
        }
        reporter.set(Scope::Service(key.clone()), problems);
        self.kept.insert(key);
    }

    /// Changes of endpoints that have got into the maps since the last time.
    pub fn take_programmed(&mut self) -> Vec<Trigger> {
        self.triggers.take_programmed()
    }

    /// Services whose traffic is dropped here because all their endpoints are elsewhere.
    #[must_use]
    pub fn no_local_endpoints(&self) -> &NoLocalEndpoints {
        &self.no_local
    }

    /// Services that are not in the maps as they should be: a write failed, or there is no room.
    #[must_use]
    pub fn count_not_programmed(&self) -> usize {
        self.unwritten.union(&self.partial).count()
    }

    /// Whether everything that the sources told is in the maps, but for what can't be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_compared && !self.queue.has_ready() && self.unwritten.is_empty()
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.queue.has_ready()
    }

    /// When something that failed is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let conflicts = self.conflicts.wake_at().filter(|_| !self.is_relisting);
        self.queue.wake_at().into_iter().chain(conflicts).min()
    }
}

fn unwritten_problem(key: &ServiceKey, error: &WriteError) -> Problem {
    let remedy = if error.is_final() {
        "make room in the map, or raise its size and restart the agent; it is tried again"
    } else {
        "it is tried again by itself, and the node gets unhealthy meanwhile; if it stays, restart the agent"
    };
    Problem::new(format!("Service {key}"), format!("can't be written: {error}"), remedy)
}

/// NodePorts among the ports of source translation: replies to outside clients would be taken for new connections.
fn source_port_problems(key: &ServiceKey, units: &BTreeMap<UnitId, Unit>, source_ports: SourcePorts) -> Vec<Problem> {
    let frontends = units.values().flat_map(|unit| unit.frontends.keys());
    let mut ports: Vec<u16> =
        frontends.filter(|frontend| frontend.is_node_port()).map(|frontend| u16::from_be(frontend.port_be)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
        .into_iter()
        .filter(|&port| source_ports.contains(port))
        .map(|port| {
            Problem::new(
                format!("Service {key}"),
                format!("its NodePort {port} is one of the ports {source_ports} for source translation"),
                "choose another nodePort, or other --source-ports",
            )
        })
        .collect()
}
