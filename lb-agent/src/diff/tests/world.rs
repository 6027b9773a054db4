// SPDX-License-Identifier: MIT OR Apache-2.0
//! A state, the fake that it writes to, and small Services to plan.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use lb_common::{address::Address, flow::protocol, frontend::FrontendKey};

use crate::{
    compile::{BackendKey, BackendSpec, FrontendPlan, List, ServiceKey, Unit, UnitId},
    dataplane::fake::Fake,
    diff::{Capacities, Plan, State},
    problem::Problem,
};

pub struct World {
    pub state: State,
    pub fake: Fake,
    pub now: Instant,
    pub capacities: Capacities,
}

impl World {
    pub fn new(capacities: Capacities) -> Self {
        let fake = Fake::new(capacities);
        let state = State::adopt(fake.dump(), &capacities);
        Self { state, fake, now: Instant::now(), capacities }
    }

    /// The agent dies and another adopts the maps.
    pub fn restart(&mut self) {
        self.state = State::adopt(self.fake.dump(), &self.capacities);
        self.now += Duration::from_millis(100);
    }

    /// Plans a Service of one unit.
    pub fn plan(&mut self, name: &str, created: i64, unit: Unit) -> Plan {
        let desired = BTreeMap::from([(unit_id(name), unit)]);
        self.state.plan(&ServiceKey::new("default", name), created, &desired, self.now)
    }

    /// Plans it and carries it out, as far as the fake lets it.
    pub fn want(&mut self, name: &str, created: i64, unit: Unit) -> Vec<Problem> {
        let plan = self.plan(name, created, unit);
        self.carry_out(plan)
    }

    pub fn remove(&mut self, name: &str) -> Vec<Problem> {
        let plan = self.state.plan(&ServiceKey::new("default", name), 0, &BTreeMap::new(), self.now);
        self.carry_out(plan)
    }

    pub fn carry_out(&mut self, plan: Plan) -> Vec<Problem> {
        let problems = plan.problems.clone();
        // A failure is what some tests want; they look at the fake.
        let _ = self.state.carry_out(plan, &mut self.fake, self.now);
        problems
    }

    /// The unit that a frontend leads to.
    pub fn owner(&self, n: u8) -> Option<String> {
        let dump = self.fake.dump();
        let name = dump.names[&dump.frontends.get(&key(n))?.service];
        Some(String::from_utf8_lossy(&name.text).trim_end_matches('\0').to_owned())
    }
}

pub fn address(n: u8) -> Address {
    Ipv4Addr::new(10, 0, 0, n).into()
}

pub fn frontend(n: u8) -> Address {
    Ipv4Addr::new(10, 96, 0, n).into()
}

pub fn key(n: u8) -> FrontendKey {
    FrontendKey::new(frontend(n), 80_u16.to_be(), protocol::TCP)
}

pub fn backend(n: u8) -> BackendKey {
    BackendKey { address: address(n), port: 8080 }
}

pub fn spec(active: bool, local: bool) -> BackendSpec {
    BackendSpec { active, local }
}

pub fn unit_id(name: &str) -> UnitId {
    UnitId {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        port_name: "http".to_owned(),
        protocol: protocol::TCP,
        is_v4: true,
    }
}

/// Backends with weights in the cluster list, none in the local one, and frontends that use a list for everybody.
pub fn unit(backends: &[(u8, u32)], frontends: &[(u8, List)]) -> Unit {
    Unit {
        backends: backends.iter().map(|&(n, _)| (backend(n), spec(true, false))).collect(),
        cluster: backends.iter().map(|&(n, weight)| (backend(n), weight)).collect(),
        local: BTreeMap::new(),
        frontends: frontends
            .iter()
            .map(|&(n, list)| (key(n), FrontendPlan { internal: list, external: list, flags: 0 }))
            .collect(),
        ..Unit::default()
    }
}
