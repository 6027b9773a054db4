// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the sources' events to what the maps hold, one Service at a time: `model -> compile -> diff -> write`.
//!
//! One Service's failure stops no other; it is tried again after a growing pause. Nothing at all is written before the
//! sources have told what there is (rule 7).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use jiff::Timestamp;
use lb_common::frontend::FrontendKey;

use super::{
    Maps,
    doors::Doors,
    no_local::NoLocalEndpoints,
    queue::Queue,
    report::{Reporter, Scope},
    triggers::{Trigger, Triggers},
};
use crate::{
    compile::{ServiceKey, Unit, UnitId},
    diff::State,
    health::{Health, HealthPorts},
    model::Model,
    node::checks::PortRange,
    problem::Problem,
    source::{Event, Kind, Object, ObjectId},
};

/// The desired state, and which Services are not in the maps as desired.
pub struct Services {
    model: Model,
    queue: Queue<ServiceKey>,
    source_ports: PortRange,
    health_ports: HealthPorts,
    no_local: NoLocalEndpoints,
    triggers: Triggers,
    /// Whether what the maps held at the start has been compared with what the sources told.
    is_compared: bool,
    /// Services that the maps hold as an earlier agent left them.
    adopted: BTreeSet<ServiceKey>,
}

impl Services {
    /// Nothing known yet. `source_ports` are those that no NodePort may have.
    #[must_use]
    pub fn new(model: Model, source_ports: PortRange) -> Self {
        Self {
            model,
            queue: Queue::default(),
            source_ports,
            health_ports: HealthPorts::default(),
            no_local: NoLocalEndpoints::default(),
            triggers: Triggers::new(Timestamp::now()),
            is_compared: false,
            adopted: BTreeSet::new(),
        }
    }

    /// Ports that are reserved for source translation.
    #[must_use]
    pub const fn source_ports(&self) -> PortRange {
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

    /// The desired state.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Takes in what a source says.
    pub fn take_event(&mut self, event: Event, reporter: &mut Reporter, now: Instant) {
        let trigger = match &event {
            Event::Apply(Object::EndpointSlice(slice)) => self.triggers.read(slice),
            Event::Incomplete(false) => {
                self.adopted.iter().cloned().for_each(|key| self.queue.push(key));
                None
            }
            Event::Delete(ObjectId { kind: Kind::Service, namespace, name }) => {
                self.adopted.remove(&ServiceKey::new(&**namespace, &**name));
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

    /// Finds out what is to be done. Services that the maps hold and no source has ever told of are gone, unless a source
    /// could not read all there is.
    pub fn gather(&mut self, state: &mut State, now: Instant) {
        if !self.model.is_synced() {
            return;
        }
        if !self.is_compared {
            self.is_compared = true;
            self.adopted = state.services().collect();
            self.adopted.iter().cloned().for_each(|key| self.queue.push(key));
        }
        self.model.take_dirty().into_iter().for_each(|key| self.queue.push(key));
        state.take_dirty(now).into_iter().for_each(|key| self.queue.push(key));
    }

    /// Brings at most `limit` Services into the maps.
    pub fn work(&mut self, limit: usize, maps: &mut Maps<impl Doors>, reporter: &mut Reporter, now: Instant) {
        for _ in 0..limit {
            let Some(key) = self.queue.pop(now) else { return };
            let (units, mut problems) = self.model.compile(&key);
            problems.extend(source_port_problems(&key, &units, self.source_ports));
            if self.adopted.contains(&key) && !self.model.is_certain(&key) {
                for problem in &mut problems {
                    problem.remedy.push_str("; until then the Service stays as it was before the agent started");
                }
                self.queue.succeed(&key);
                reporter.set(Scope::Service(key), problems);
                continue;
            }
            let mut plan = maps.state.plan(&key, self.model.creation_secs(&key), &units, now);
            problems.append(&mut plan.problems);
            let written = maps.state.carry_out(plan, &mut maps.doors, now).map_err(|error| {
                Problem::new(
                    format!("Service {key}"),
                    format!("can't be written: {error}"),
                    "it is tried again by itself; if it stays, restart the agent",
                )
            });
            if written.is_ok() {
                self.adopted.remove(&key);
                self.triggers.finish(&key);
                self.no_local.set(&key, &units);
            }
            // After the maps: who is told that there are endpoints here must find them.
            let opened = self.health_ports.set(&key, self.model.health_check(&key));
            if written.is_ok() && opened.is_ok() {
                self.queue.succeed(&key);
            } else {
                self.queue.fail(key.clone(), now);
            }
            problems.extend(written.err().into_iter().chain(opened.err()));
            reporter.set(Scope::Service(key), problems);
        }
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

    /// Whether everything that the sources told is in the maps, but for what failed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_compared && !self.queue.has_ready()
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.queue.has_ready()
    }

    /// When something that failed is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.queue.wake_at()
    }
}

/// NodePorts among the ports of source translation: replies to outside clients would be taken for new connections.
fn source_port_problems(key: &ServiceKey, units: &BTreeMap<UnitId, Unit>, source_ports: PortRange) -> Vec<Problem> {
    let is_node_port = |frontend: &&FrontendKey| {
        [true, false].iter().any(|&is_v4| frontend.address == FrontendKey::any_address(is_v4))
    };
    let frontends = units.values().flat_map(|unit| unit.frontends.keys());
    let mut ports: Vec<u16> = frontends.filter(is_node_port).map(|frontend| u16::from_be(frontend.port_be)).collect();
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
