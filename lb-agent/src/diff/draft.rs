// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plan in the making: what one Service needs, reserved piece by piece. What there is no room for is left out and noted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use ipnet::IpNet;
use lb_common::{
    clock::Clock,
    filter::Concern,
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey, Target, backend_flags, backend_state, frontend_flags},
    maps::{SERVICE_NAME_LEN, ServiceName},
};
use litemap::LiteMap;

use super::{
    Operation,
    claims::Judgement,
    extent::Extent,
    filter::concern_of,
    mirror::Mirror,
    pools::{Pools, Release},
    shortage::{Order, Shortage},
    state::{Record, UnitRecord},
};
use crate::compile::{BackendKey, BackendSpec, FrontendPlan, List, Unit, UnitId};

/// How many entries a plan may add to the maps that take any key.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of frontends.
    pub frontends: usize,
    /// Of source ranges.
    pub source_ranges: usize,
}

/// The operations by the step in which they are carried out.
#[derive(Debug, Default)]
pub(super) struct Steps {
    activate: Vec<Operation>,
    pub tables: Vec<Operation>,
    filter: Vec<Operation>,
    names: Vec<Operation>,
    /// Sources that are shut out before others are admitted, which need their room.
    make_room: Vec<Operation>,
    source_ranges: Vec<Operation>,
    pub frontends: Vec<Operation>,
    /// Backends that get no new flows from here on, after the last table that names them has gone out of use.
    drain: Vec<Operation>,
    /// Sources that no frontend admits from here on.
    shut_out: Vec<Operation>,
}

/// See the module's text.
pub struct Draft<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) pools: &'a mut Pools,
    pub(super) now: Instant,
    order: Order,
    room: Room,
    /// Frontends that the Service has been given before.
    held: &'a [FrontendKey],
    pub(super) steps: Steps,
    /// Words of the filter, and bits in them, that this plan sets.
    bits: BTreeSet<(usize, u64)>,
    clock: Clock,
    /// What was taken from the pools, to be given back if the plan comes to nothing.
    pub reserved: Release,
    /// What the Service gives up.
    pub release: Release,
    /// What there was not enough of.
    pub lacking: BTreeSet<Shortage>,
    /// Frontends that are the Service's and are not written.
    pub left_out: BTreeSet<FrontendKey>,
}

impl<'a> Draft<'a> {
    /// An empty one, for a Service with this record.
    pub fn new(mirror: &'a Mirror, pools: &'a mut Pools, now: Instant, clock: Clock, old: &'a Record) -> Self {
        Self {
            mirror,
            pools,
            now,
            order: Order::AddFirst,
            room: Room { frontends: 0, source_ranges: 0 },
            held: &old.frontends,
            steps: Steps::default(),
            bits: BTreeSet::new(),
            clock,
            reserved: Release::default(),
            release: old.withheld.clone(),
            lacking: BTreeSet::new(),
            left_out: BTreeSet::new(),
        }
    }

    /// One that may add so much, in this order.
    pub fn within(self, room: Room, order: Order) -> Self {
        Self { room, order, ..self }
    }

    /// Plans a unit that shall be there. `None` where there is no room for any of it.
    pub fn unit(
        &mut self,
        id: &UnitId,
        unit: &Unit,
        old: Option<&UnitRecord>,
        judgement: &Judgement,
    ) -> Option<UnitRecord> {
        let service = match old {
            Some(old) => old.service,
            None => match self.pools.services.take(self.now) {
                Some(index) => {
                    self.reserved.services.insert(index);
                    index
                }
                None => {
                    self.lacking.insert(Shortage::Services);
                    self.left_out.extend(unit.frontends.keys().filter(|key| judgement.has_won(key)));
                    return None;
                }
            },
        };
        if !self.mirror.names.contains(&service) {
            self.steps.names.push(Operation::SetName { service, name: Box::new(service_name(id)) });
        }
        self.source_ranges(service, unit);
        let backends = self.backends(service, id.protocol, unit, old);
        let owned: BTreeMap<_, _> = unit.frontends.iter().filter(|(key, _)| judgement.has_won(key)).collect();
        let is_used = |list| owned.values().any(|plan| plan.internal == list || plan.external == list);
        let (cluster, local) = (shares(&unit.cluster, &backends), shares(&unit.local, &backends));
        let used = [(List::Cluster, &cluster), (List::Local, &local)].into_iter();
        let mut lists: Vec<_> =
            used.filter(|(list, shares)| is_used(*list) && !shares.is_empty()).map(|(_, shares)| shares).collect();
        lists.dedup();
        let affinity_timeout = self.clock.ticks(unit.affinity_secs);
        // With the lookup tables found by the lists that they are made of.
        let frontends = |table: &dyn Fn(&BTreeMap<BackendKey, u32>) -> Option<Extent>| -> BTreeMap<_, _> {
            let target = |list| {
                let extent = match list {
                    List::Cluster => table(&cluster),
                    List::Local => table(&local),
                    List::Nobody => None,
                };
                extent.map_or_else(Target::default, Extent::target)
            };
            let frontend = |plan: &FrontendPlan| Frontend {
                service,
                flags: plan.flags | list_flags(plan),
                affinity_timeout: if *plan == FrontendPlan::REFUSED { 0 } else { affinity_timeout },
                targets: [plan.internal, plan.external].map(target),
            };
            owned.iter().map(|(key, plan)| (**key, frontend(plan))).collect()
        };
        let only = old.filter(|_| lists.len() == 1).and_then(|old| match &old.tables[..] {
            [only] => Some(only.extent),
            _ => None,
        });
        let changeable = only.filter(|only| {
            let wanted = frontends(&|list| (!list.is_empty()).then_some(*only));
            self.is_changed_alone(*only, &wanted)
        });
        let old_tables = old.map(|old| &old.tables[..]).unwrap_or_default();
        let tables = self.tables(&lists, &backends, old_tables, changeable);
        let find = |list: &_| tables.iter().find(|table| table.content.is_list(list)).map(|table| table.extent);
        let mut frontends: Vec<_> = frontends(&find).into_iter().collect();
        // If there is not room for all, refusals are what is missed least.
        frontends.sort_by_key(|(key, _)| *key == FrontendKey::any_port(key.address));
        frontends.into_iter().for_each(|(key, frontend)| self.frontend(key, frontend));
        Some(UnitRecord { service, backends, tables })
    }

    /// Plans the end of a unit.
    pub fn forget(&mut self, old: &UnitRecord) {
        self.release.services.insert(old.service);
        self.release.backends.extend(old.backends.values());
        old.tables.iter().for_each(|table| self.release.add_extent(table.extent));
    }

    /// The operations, in the order in which they must be carried out. `is_own` says which Service ports are this
    /// Service's: a frontend that another has taken over since is not ours to remove.
    pub fn finish(mut self, is_own: impl Fn(u32) -> bool) -> (Vec<Operation>, Release) {
        let Self { mirror, release, .. } = &mut self;
        let removed_frontends: Vec<_> = release
            .frontends
            .iter()
            .filter(|key| mirror.frontends.get(key).is_some_and(|frontend| is_own(frontend.service)))
            .map(|&key| Operation::RemoveFrontend { key })
            .collect();
        let gone = release.services.iter().flat_map(|&service| mirror.source_ranges(service));
        let removed_ranges = gone.map(Operation::RemoveSourceRange);
        let removed_names = release
            .services
            .iter()
            .filter(|service| mirror.names.contains(service))
            .map(|&service| Operation::RemoveName { service });
        let freed_backends =
            release.backends.iter().filter(|&&index| mirror.backend(index).state != backend_state::FREE).map(
                |&index| {
                    // The address stays: a program that has just come by the old table reads something whole.
                    let former = mirror.backend(index);
                    let generation = former.generation.wrapping_add(1);
                    let backend = Backend { generation, state: backend_state::FREE, ..former };
                    Operation::SetBackend { index, backend }
                },
            );
        let removals: Vec<_> = removed_ranges.chain(removed_names).chain(freed_backends).collect();
        let (first, last) = match self.order {
            Order::AddFirst => (Vec::new(), removed_frontends),
            Order::RemoveFirst => (removed_frontends, Vec::new()),
        };
        let Steps { activate, tables, filter, names, make_room, source_ranges, frontends, drain, shut_out } =
            self.steps;
        let before = [first, activate, tables, filter, names, make_room, source_ranges];
        let after = [frontends, drain, shut_out, last, removals];
        (before.into_iter().chain(after).flatten().collect(), self.release)
    }

    /// What can't be added is not admitted: a source too few, never one too many.
    fn source_ranges(&mut self, service: u32, unit: &Unit) {
        let key = |range: &IpNet| SourceRangeKey::new(service, range.addr().into(), range.prefix_len());
        let wanted: BTreeSet<_> = unit.source_ranges.iter().map(key).collect();
        let held: BTreeSet<_> = self.mirror.source_ranges(service).collect();
        let gone: Vec<_> = held.difference(&wanted).copied().map(Operation::RemoveSourceRange).collect();
        let mut new: Vec<_> = wanted.difference(&held).copied().map(Operation::UpsertSourceRange).collect();
        let makes_room = self.order == Order::RemoveFirst && !new.is_empty();
        if makes_room {
            self.room.source_ranges += gone.len();
        }
        if new.len() > self.room.source_ranges {
            self.lacking.insert(Shortage::SourceRanges);
            new.truncate(self.room.source_ranges);
        }
        self.room.source_ranges -= new.len();
        self.steps.source_ranges.extend(new);
        if makes_room { &mut self.steps.make_room } else { &mut self.steps.shut_out }.extend(gone);
    }

    /// Those that are there already, and as many new ones as there is room for: first those that get new flows, and of them
    /// those on this node, which no other can stand in for.
    fn backends(
        &mut self,
        service: u32,
        protocol: u8,
        unit: &Unit,
        old: Option<&UnitRecord>,
    ) -> LiteMap<BackendKey, u32> {
        let index_of = |key: &BackendKey| old.and_then(|old| old.backends.get(key)).copied();
        let mut new: Vec<_> = unit.backends.iter().filter(|(key, _)| index_of(key).is_none()).collect();
        let are_scarce = new.len() > self.pools.backends.count_free(self.now);
        if are_scarce {
            new.sort_by_key(|(_, spec)| (!spec.active, !spec.local));
            self.lacking.insert(Shortage::Backends);
        }
        let taken: BTreeMap<_, _> = new.iter().map_while(|(key, _)| Some((**key, self.take_backend()?))).collect();
        let mut backends = LiteMap::with_capacity(unit.backends.len());
        for (key, spec) in &unit.backends {
            let Some(index) = index_of(key).or_else(|| taken.get(key).copied()) else { continue };
            backends.insert(*key, index);
            let wanted = Backend {
                address: key.address,
                port_be: key.port.to_be(),
                state: if spec.active { backend_state::ACTIVE } else { backend_state::DRAINING },
                flags: backend_flags_of(key, *spec, unit),
                generation: self.mirror.backend(index).generation,
                service,
                pad: 0,
            };
            if self.mirror.backend(index) != wanted {
                let step = if spec.active { &mut self.steps.activate } else { &mut self.steps.drain };
                step.push(Operation::SetBackend { index, backend: wanted });
            }
            self.pass(Concern::Backend(key.address, key.port.to_be(), protocol));
        }
        if let Some(old) = old {
            let gone = old.backends.iter().filter(|(key, _)| !backends.contains_key(key));
            self.release.backends.extend(gone.map(|(_, index)| index));
        }
        backends
    }

    fn take_backend(&mut self) -> Option<u32> {
        let index = self.pools.backends.take(self.now)?;
        self.reserved.backends.insert(index);
        Some(index)
    }

    /// Whether all frontends that lead to a table stay as they are: one that changed otherwise, or went, would serve with the new
    /// table and its old flags until it is written.
    fn is_changed_alone(&self, extent: Extent, wanted: &BTreeMap<FrontendKey, Frontend>) -> bool {
        let held = self.held.iter().chain(&self.release.frontends).chain(wanted.keys());
        let held = held.filter_map(|key| Some((key, self.mirror.frontends.get(key)?)));
        let mut leading = held.filter(|(_, frontend)| frontend.targets.contains(&extent.target()));
        leading.all(|(key, frontend)| wanted.get(key) == Some(frontend))
    }

    fn frontend(&mut self, key: FrontendKey, frontend: Frontend) {
        if !self.mirror.frontends.contains_key(&key) {
            let Some(left) = self.room.frontends.checked_sub(1) else {
                self.lacking.insert(Shortage::Frontends);
                self.left_out.insert(key);
                return;
            };
            self.room.frontends = left;
        }
        self.pass(concern_of(&key));
        if self.mirror.frontends.get(&key) != Some(&frontend) {
            self.steps.frontends.push(Operation::UpsertFrontend { key, frontend });
        }
    }

    fn pass(&mut self, concern: Concern) {
        let missing: Vec<_> = concern.bits().filter(|bits| !self.mirror.filter.has(*bits)).collect();
        let mut is_new = false;
        for bits in missing {
            is_new |= self.bits.insert(bits);
        }
        if is_new {
            self.steps.filter.push(Operation::Pass(concern));
        }
    }
}

/// Where a backend is, and in which lists: an affinity entry that names it may be used where such a list serves (rule 56).
fn backend_flags_of(key: &BackendKey, spec: BackendSpec, unit: &Unit) -> u8 {
    let is_in = |list: &BTreeMap<BackendKey, u32>| list.get(key).is_some_and(|weight| *weight > 0);
    let flags = [
        (spec.local, backend_flags::LOCAL),
        (is_in(&unit.cluster), backend_flags::IN_CLUSTER),
        (is_in(&unit.local), backend_flags::IN_LOCAL),
    ];
    flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag)
}

/// The flags that say which list serves.
fn list_flags(plan: &FrontendPlan) -> u32 {
    let of = |list, flag| if list == List::Local { flag } else { 0 };
    of(plan.internal, frontend_flags::INTERNAL_LOCAL) | of(plan.external, frontend_flags::EXTERNAL_LOCAL)
}

/// A list without what makes no difference to its table: backends without weight or unknown, and common factors.
fn shares(list: &BTreeMap<BackendKey, u32>, backends: &LiteMap<BackendKey, u32>) -> BTreeMap<BackendKey, u32> {
    let counts = |(key, weight): &(&BackendKey, &u32)| **weight > 0 && backends.contains_key(key);
    let divisor = list.iter().filter(counts).fold(0, |divisor, (_, &weight)| gcd(divisor, weight));
    list.iter().filter(counts).map(|(key, weight)| (*key, weight / divisor)).collect()
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The name of a unit, as the map holds it.
pub fn service_name(id: &UnitId) -> ServiceName {
    let mut name = ServiceName {
        text: [0; SERVICE_NAME_LEN],
        protocol: id.protocol,
        ip_version: if id.is_v4 { 4 } else { 6 },
        pad: [0; 2],
    };
    // DNS labels: three of at most 63 bytes and two separators always fit.
    for (to, from) in name.text.iter_mut().zip(id.to_string().into_bytes()) {
        *to = from;
    }
    name
}

/// The unit of a name that the map holds; `None` where it is not one of ours.
pub fn unit_of_name(name: &ServiceName) -> Option<UnitId> {
    let end = name.text.iter().position(|&byte| byte == 0).unwrap_or(SERVICE_NAME_LEN);
    let text = std::str::from_utf8(&name.text[..end]).ok()?;
    let (namespace, rest) = text.split_once('/')?;
    let (service, port_name) = rest.split_once(':').unwrap_or((rest, ""));
    let is_v4 = match name.ip_version {
        4 => true,
        6 => false,
        _ => return None,
    };
    Some(UnitId {
        namespace: namespace.to_owned(),
        name: service.to_owned(),
        port_name: port_name.to_owned(),
        protocol: name.protocol,
        is_v4,
    })
}
