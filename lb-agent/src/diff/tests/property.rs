// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random histories of Services, with failed writes and restarts, against the fake. What must hold after every single
//! write, what after every step, and what at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_common::{
    clock::Clock,
    filter::Concern,
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey, backend_flags, backend_state, frontend_flags},
    maglev,
};
use proptest::prelude::*;

use super::world::{backend, key, spec, unit_id};
use crate::{
    compile::{BackendKey, FrontendPlan, List, ServiceKey, Unit},
    dataplane::fake::Fake,
    diff::{Capacities, Cursor, Dump, GRACE, Operation, SampleSize, State, WriteError, Writer, concern_of},
};

/// The fake, watched: it panics when a write would hurt a packet.
struct Watch {
    fake: Fake,
    now: Instant,
    freed_backends: BTreeMap<u32, (Instant, u32)>,
    /// Tables in use after the last write, and those that went out of use, when.
    tables: BTreeSet<(u32, u32)>,
    freed_tables: Vec<(Instant, (u32, u32))>,
    /// What packets could meet since the last plan began.
    met: Vec<Serving>,
}

/// What each frontend does for a packet: its flags, its affinity, and the slots of its tables.
type Serving = BTreeMap<FrontendKey, (u32, u32, [Vec<u32>; 2])>;

impl Watch {
    fn new(capacities: Capacities) -> Self {
        Self {
            fake: Fake::new(capacities),
            now: Instant::now(),
            freed_backends: BTreeMap::new(),
            tables: BTreeSet::new(),
            freed_tables: Vec::new(),
            met: Vec::new(),
        }
    }

    fn serving(&self) -> Serving {
        let frontends = self.fake.dump().frontends.into_iter();
        let serving = frontends.map(|(key, frontend)| {
            let Frontend { flags, affinity_timeout, targets, .. } = frontend;
            (key, (flags, affinity_timeout, targets.map(|target| self.fake.table(target).to_vec())))
        });
        serving.collect()
    }

    /// At every moment of a plan that was carried out each frontend served as before or as after it.
    fn check_moments(&self) {
        let after = self.serving();
        let Some((before, between)) = self.met.split_first() else { return };
        for moment in between {
            for key in before.keys().chain(after.keys()) {
                let met = moment.get(key);
                assert!(met == before.get(key) || met == after.get(key), "{key:?} served in a third way");
            }
        }
    }

    fn before(&self, operation: &Operation) {
        match operation {
            Operation::SetBackend { index, backend } => {
                let was = self.fake.dump().backends[*index as usize];
                if was.state == backend_state::FREE && backend.state != backend_state::FREE {
                    let (freed, generation) = self.freed_backends.get(index).copied().unwrap_or((self.now - GRACE, 0));
                    assert!(freed + GRACE <= self.now, "index {index} is used again before its time");
                    assert_eq!(backend.generation, generation);
                }
            }
            Operation::FillTable { offset, slots } => {
                let (start, end) = (*offset, offset + slots.len() as u32);
                let is_hit = |(offset, slots): &(u32, u32)| *offset < end && start < offset + slots;
                assert!(!self.tables.iter().any(is_hit), "a table in use is overwritten");
                let resting = self.freed_tables.iter().filter(|(freed, _)| *freed + GRACE > self.now);
                assert!(!resting.map(|(_, table)| table).any(is_hit), "a table is overwritten before its time");
            }
            Operation::ChangeTable { offset, slots } => {
                let resting = self.freed_tables.iter().filter(|(freed, _)| *freed + GRACE > self.now);
                let mut held = self.tables.iter().chain(resting.map(|(_, table)| table));
                let (start, end) = (*offset, offset + slots.len() as u32);
                let is_other = |(offset, slots): &(u32, u32)| {
                    (*offset, offset + slots) != (start, end) && *offset < end && start < offset + slots
                };
                assert!(!held.any(is_other), "another table is overwritten");
            }
            _ => {}
        }
    }

    fn after(&mut self, operation: &Operation) {
        let dump = self.fake.dump();
        if let Operation::SetBackend { index, backend } = operation
            && backend.state == backend_state::FREE
        {
            self.freed_backends.insert(*index, (self.now, backend.generation));
        }
        let targets = dump.frontends.values().flat_map(|frontend| frontend.targets);
        let tables = targets.filter(|target| target.slots > 0).map(|target| (target.offset, target.slots)).collect();
        self.freed_tables.extend(self.tables.difference(&tables).map(|&table| (self.now, table)));
        self.tables = tables;
        for (key, frontend) in &dump.frontends {
            self.check_frontend(&dump, key, frontend);
        }
        self.met.push(self.serving());
    }

    /// Every slot names a live backend of the frontend's unit, and the filter lets both sides pass.
    fn check_frontend(&self, dump: &Dump, key: &FrontendKey, frontend: &Frontend) {
        assert!(dump.names.contains_key(&frontend.service), "a frontend without a name");
        assert!(dump.filter.contains(concern_of(key)));
        let indices: BTreeSet<_> = frontend.targets.into_iter().flat_map(|target| self.fake.table(target)).collect();
        for &index in indices {
            let backend = dump.backends[index as usize];
            assert_ne!(backend.state, backend_state::FREE, "a slot names free backend {index}");
            assert_eq!(backend.service, frontend.service, "a slot names another unit's backend {index}");
            let protocol = dump.names[&frontend.service].protocol;
            assert!(dump.filter.contains(Concern::Backend(backend.address, backend.port_be, protocol)));
        }
    }
}

impl Writer for Watch {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        self.before(operation);
        self.fake.write(operation)?;
        self.after(operation);
        Ok(())
    }
}

/// The source's side: what each Service wants now.
struct History {
    state: State,
    watch: Watch,
    capacities: Capacities,
    wanted: BTreeMap<String, (i64, Unit)>,
    failed: BTreeSet<ServiceKey>,
}

impl History {
    fn new(capacities: Capacities) -> Self {
        let watch = Watch::new(capacities);
        let state = State::adopt(watch.fake.dump(), &capacities);
        Self { state, watch, capacities, wanted: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// Plans a Service as it is wanted, and carries it out. Returns the number of operations.
    fn sync(&mut self, service: &ServiceKey) -> usize {
        let wanted = self.wanted.get(&service.name);
        let created = wanted.map_or(0, |(created, _)| *created);
        let desired = wanted.map(|(_, unit)| (unit_id(&service.name), unit.clone())).into_iter().collect();
        let plan = self.state.plan(service, created, &desired, self.watch.now);
        let (operations, has_room) = (plan.operations.len(), plan.lacking.is_empty());
        let now = self.watch.now;
        self.watch.met = vec![self.watch.serving()];
        match self.state.carry_out(plan, &mut self.watch, now) {
            Ok(()) => {
                if has_room {
                    self.watch.check_moments();
                }
                self.check_none_gone(service);
                self.failed.remove(service)
            }
            Err(_) => self.failed.insert(service.clone()),
        };
        operations
    }

    /// After a plan that was carried out no table of the Service names an endpoint that is not among those that it has now,
    /// and none of its frontends leads where it no longer wants to be reached.
    fn check_none_gone(&self, service: &ServiceKey) {
        let dump = self.watch.fake.dump();
        let name = format!("default/{}:http", service.name);
        let is_its = |frontend: &Frontend| {
            String::from_utf8_lossy(&dump.names[&frontend.service].text).trim_end_matches('\0') == name
        };
        let wanted = self.wanted.get(&service.name).map(|(_, unit)| unit);
        for (key, frontend) in dump.frontends.iter().filter(|(_, frontend)| is_its(frontend)) {
            let Some(plan) = wanted.and_then(|unit| unit.frontends.get(key)) else { panic!("{key:?} of {name} stays") };
            for (target, list) in frontend.targets.into_iter().zip([plan.internal, plan.external]) {
                let list = wanted.map(|unit| if list == List::Local { &unit.local } else { &unit.cluster });
                for &index in self.watch.fake.table(target) {
                    let held = dump.backends[index as usize];
                    let key = BackendKey { address: held.address, port: u16::from_be(held.port_be) };
                    assert!(
                        list.is_some_and(|list| list.get(&key).is_some_and(|weight| *weight > 0)),
                        "{key:?} has gone"
                    );
                }
            }
        }
    }

    /// As the loop of the agent: until nothing is dirty. Returns the number of operations.
    fn settle(&mut self) -> usize {
        let mut operations = 0;
        for _ in 0..20 {
            let dirty = self.state.take_dirty(self.watch.now);
            if dirty.is_empty() {
                return operations;
            }
            operations += dirty.iter().map(|service| self.sync(service)).sum::<usize>();
        }
        panic!("Services keep each other dirty");
    }

    fn sync_all(&mut self) -> usize {
        let mut all: BTreeSet<_> = self.state.services().collect();
        all.extend(self.wanted.keys().map(|name| ServiceKey::new("default", name)));
        let operations: usize = all.iter().map(|service| self.sync(service)).sum();
        operations + self.settle()
    }

    fn usage_when_all_has_rested(&mut self) -> [(&'static str, u64, u64); 5] {
        self.state.take_dirty(self.watch.now);
        self.state.usage()
    }

    fn step(&mut self, step: Step) {
        self.watch.now += Duration::from_millis(step.millis);
        if step.fails {
            self.watch.fake.fail_after(step.millis as usize % 12);
        }
        let name = format!("s{}", step.service);
        match step.unit {
            Some(unit) => self.wanted.insert(name.clone(), (step.created, unit)),
            None => self.wanted.remove(&name),
        };
        self.sync(&ServiceKey::new("default", name));
        self.settle();
        self.check_sample();
        if step.restarts {
            self.state = State::adopt(self.watch.fake.dump(), &self.capacities);
            self.watch.now += GRACE;
        }
    }

    /// An audit finds nothing that it would have to put right, also after writes that failed.
    fn check_sample(&self) {
        let all = SampleSize { elements: usize::MAX / 2, slots: usize::MAX };
        for operation in self.state.sample(&mut Cursor::default(), all) {
            assert!(self.watch.fake.holds(&operation), "{operation:?}");
        }
    }

    /// The fake holds what is wanted, and nothing else.
    fn check(&self) {
        let dump = self.watch.fake.dump();
        let mut winners: BTreeMap<FrontendKey, (i64, &str)> = BTreeMap::new();
        for (name, (created, unit)) in &self.wanted {
            for key in unit.frontends.keys() {
                let winner = winners.entry(*key).or_insert((*created, name));
                *winner = (*winner).min((*created, name));
            }
        }
        assert_eq!(dump.frontends.keys().collect::<Vec<_>>(), winners.keys().collect::<Vec<_>>());
        assert_eq!(dump.names.len(), self.wanted.len());
        let ranges: usize = self.wanted.values().map(|(_, unit)| unit.source_ranges.len()).sum();
        assert_eq!(dump.source_ranges.len(), ranges);
        let live = dump.backends.iter().filter(|backend| backend.state != backend_state::FREE).count();
        assert_eq!(live, self.wanted.values().map(|(_, unit)| unit.backends.len()).sum::<usize>());
        for (key, (_, name)) in winners {
            self.check_frontend(&dump, &key, name);
        }
    }

    fn check_frontend(&self, dump: &Dump, key: &FrontendKey, name: &str) {
        let frontend = dump.frontends[key];
        let text = String::from_utf8_lossy(&dump.names[&frontend.service].text).into_owned();
        assert_eq!(text.trim_end_matches('\0'), format!("default/{name}:http"));
        let unit = &self.wanted[name].1;
        let plan = unit.frontends[key];
        for range in &unit.source_ranges {
            let key = SourceRangeKey::new(frontend.service, range.addr().into(), range.prefix_len());
            assert!(dump.source_ranges.contains(&key), "{range} of {name} is missing");
        }
        for backend in dump.backends.iter().filter(|backend| backend.service == frontend.service) {
            check_list_flags(backend, unit);
        }
        assert_eq!(frontend.flags, plan.flags | list_flags(&plan));
        assert_eq!(frontend.affinity_timeout, Clock::new(1_000).ticks(unit.affinity_secs));
        for (target, list) in frontend.targets.into_iter().zip([plan.internal, plan.external]) {
            let list = if list == List::Local { &unit.local } else { &unit.cluster };
            let keys: Vec<_> = list.keys().collect();
            let candidates: Vec<_> = (0..)
                .zip(list)
                .map(|(index, (key, &weight))| maglev::Candidate {
                    address: key.address,
                    port: key.port,
                    weight,
                    index,
                })
                .collect();
            // Where there is hardly room a table may be smaller than it should be, and get in its own way when it grows.
            let is_scarce = self.capacities.table_slots < roomy().table_slots && target.slots > 0;
            let size = maglev::table_size(candidates.iter().map(|candidate| u64::from(candidate.weight)).sum());
            assert!(target.slots <= size || is_scarce && maglev::SIZES.contains(&target.slots), "{target:?}");
            let expected =
                if is_scarce { maglev::build_sized(&candidates, target.slots) } else { maglev::build(&candidates) };
            let expected = expected.into_iter().map(|position| keys[position as usize].address);
            let held = self.watch.fake.table(target).iter().map(|&index| dump.backends[index as usize].address);
            assert!(held.eq(expected), "{key:?} of {name} has another table");
        }
    }
}

fn check_list_flags(held: &Backend, unit: &Unit) {
    let key = BackendKey { address: held.address, port: u16::from_be(held.port_be) };
    for (list, flag) in [(&unit.cluster, backend_flags::IN_CLUSTER), (&unit.local, backend_flags::IN_LOCAL)] {
        let is_in = held.state != backend_state::FREE && list.get(&key).is_some_and(|weight| *weight > 0);
        assert!(held.state == backend_state::FREE || is_in == (held.flags & flag != 0), "{key:?}");
    }
}

fn list_flags(plan: &FrontendPlan) -> u32 {
    let lists = [(plan.internal, frontend_flags::INTERNAL_LOCAL), (plan.external, frontend_flags::EXTERNAL_LOCAL)];
    lists.into_iter().filter(|(list, _)| *list == List::Local).map(|(_, flag)| flag).sum()
}

/// One change of the source.
#[derive(Clone, Debug)]
struct Step {
    service: u8,
    created: i64,
    unit: Option<Unit>,
    millis: u64,
    fails: bool,
    restarts: bool,
}

/// Overlapping ranges, and one that is the other's prefix.
const RANGES: [&str; 4] = ["192.0.2.0/24", "192.0.2.0/25", "192.0.2.7/32", "198.51.100.0/24"];

fn units() -> impl Strategy<Value = Unit> {
    let backends = prop::collection::btree_map(1..8_u8, (0..3_u32, any::<bool>(), any::<bool>()), 0..5);
    let list = prop_oneof![Just(List::Cluster), Just(List::Local)];
    let frontends = prop::collection::btree_map(1..6_u8, (list.clone(), list, 0..4_u32), 0..4);
    let ranges = prop::collection::btree_set(prop::sample::select(RANGES.to_vec()), 0..3);
    (backends, frontends, ranges, 0..3_u32).prop_map(|(backends, frontends, ranges, affinity_secs)| {
        let listed = || backends.iter().filter(|(_, (_, active, _))| *active);
        Unit {
            backends: backends.iter().map(|(&n, &(_, active, local))| (backend(n), spec(active, local))).collect(),
            cluster: listed().map(|(&n, &(weight, ..))| (backend(n), weight)).collect(),
            local: listed().filter(|(_, (.., local))| *local).map(|(&n, &(weight, ..))| (backend(n), weight)).collect(),
            frontends: frontends
                .iter()
                .map(|(&n, &(internal, external, flags))| (key(n), FrontendPlan { internal, external, flags }))
                .collect(),
            affinity_secs,
            source_ranges: ranges.into_iter().map(|range| range.parse().unwrap()).collect(),
        }
    })
}

fn steps(fails: f64, restarts: f64) -> impl Strategy<Value = Vec<Step>> {
    let step = (
        0..4_u8,
        0..3_i64,
        prop::option::weighted(0.8, units()),
        0..3000_u64,
        prop::bool::weighted(fails),
        prop::bool::weighted(restarts),
    )
        .prop_map(|(service, created, unit, millis, fails, restarts)| Step {
            service,
            created,
            unit,
            millis,
            fails,
            restarts,
        });
    prop::collection::vec(step, 1..25)
}

fn roomy() -> Capacities {
    Capacities {
        frontends: 64,
        backends: 256,
        table_slots: 65_536,
        flows: 16,
        families: [true; 2],
        services: 64,
        source_ranges: 64,
        affinity: 1,
        fragments: 16,
        interfaces: 16,
        node_addresses: 16,
        sockets: 16,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_maps_hold_what_is_wanted(steps in steps(0.0, 0.2)) {
        let mut history = History::new(roomy());
        for step in steps {
            let restarts = step.restarts;
            history.step(step);
            if restarts {
                prop_assert_eq!(history.sync_all(), 0, "a restart changes nothing");
            }
            history.check();
            prop_assert_eq!(history.sync_all(), 0, "the same again is nothing to do");
        }
        history.wanted.clear();
        history.sync_all();
        prop_assert_eq!(history.watch.fake.to_string(), "");
    }

    #[test]
    fn failed_writes_are_made_good(steps in steps(0.4, 0.2)) {
        let mut history = History::new(roomy());
        for step in steps {
            history.step(step);
        }
        history.watch.now += GRACE;
        history.watch.fake.fail_after(usize::MAX);
        history.failed.clear();
        history.sync_all();
        history.check();
        prop_assert!(history.failed.is_empty());
        prop_assert_eq!(history.sync_all(), 0);
    }

    #[test]
    fn scarcity_hurts_no_packet_and_passes(steps in steps(0.1, 0.1)) {
        let scarce = Capacities { frontends: 5, backends: 8, table_slots: 4 * 416, flows: 16, families: [true; 2], services: 4, source_ranges: 4, affinity: 1, fragments: 16, interfaces: 16, node_addresses: 16, sockets: 16 };
        let mut history = History::new(scarce);
        for step in steps {
            history.step(step);
        }
        history.watch.fake.fail_after(usize::MAX);
        history.sync_all();
        prop_assert_eq!(history.sync_all(), 0, "the same again is nothing to do");
        history.failed.clear();
        // What was lacking comes by itself once there is room, and nothing was lost on the way.
        while history.wanted.len() > 1 {
            let (gone, _) = history.wanted.pop_last().unwrap();
            history.sync(&ServiceKey::new("default", gone));
            history.settle();
        }
        history.watch.now += GRACE;
        history.settle();
        history.check();
        history.wanted.clear();
        history.sync_all();
        history.watch.now += GRACE;
        let usage: Vec<_> = history.usage_when_all_has_rested().into_iter().map(|(map, used, _)| (map, used)).collect();
        prop_assert!(usage.iter().all(|(_, used)| *used == 0), "{usage:?}");
    }
}
