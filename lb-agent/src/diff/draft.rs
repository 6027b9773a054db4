// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plan in the making: what one Service needs, reserved piece by piece, so that all of it comes or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use ipnet::IpNet;
use lb_common::{
    address::Address,
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey, Target, backend_flags, backend_state, frontend_flags},
    hash::filter_bit,
    maglev,
    maps::{FILTER_EGRESS, FILTER_INGRESS, SERVICE_NAME_LEN, ServiceName},
};
use litemap::LiteMap;

use super::{
    Operation,
    claims::Judgement,
    extent::Extent,
    mirror::Mirror,
    pools::{Pools, Release},
    state::{Content, Record, Table, UnitRecord},
};
use crate::compile::{BackendKey, BackendSpec, FrontendPlan, List, Unit, UnitId};

/// A map without room for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What there is not enough of.
    pub what: &'static str,
    /// The flag that gives more.
    pub flag: &'static str,
}

const NO_SERVICES: Shortage = Shortage { what: "Service ports", flag: "--max-services" };
const NO_BACKENDS: Shortage = Shortage { what: "backends", flag: "--max-backends" };
const NO_SLOTS: Shortage = Shortage { what: "table slots", flag: "--max-table-slots" };
/// No room for another source range.
pub const NO_SOURCE_RANGES: Shortage = Shortage { what: "source ranges", flag: "--max-source-ranges" };
/// No room for another frontend.
pub const NO_FRONTENDS: Shortage = Shortage { what: "frontends", flag: "--max-frontends" };

/// The operations by the step in which they are carried out.
#[derive(Debug, Default)]
struct Steps {
    activate: Vec<Operation>,
    tables: Vec<Operation>,
    filter: Vec<Operation>,
    names: Vec<Operation>,
    source_ranges: Vec<Operation>,
    frontends: Vec<Operation>,
    /// Backends that get no new flows from here on, after the last table that names them has gone out of use.
    drain: Vec<Operation>,
    /// Sources that no frontend admits from here on.
    shut_out: Vec<Operation>,
}

/// See the module's text.
pub struct Draft<'a> {
    mirror: &'a Mirror,
    pools: &'a mut Pools,
    now: Instant,
    /// Frontends that the Service has been given before.
    held: &'a [FrontendKey],
    steps: Steps,
    /// Filter bits that this plan sets.
    bits: BTreeSet<(u32, u32)>,
    /// What was taken from the pools, to be given back if the plan comes to nothing.
    pub reserved: Release,
    /// What the Service gives up.
    pub release: Release,
}

impl<'a> Draft<'a> {
    /// An empty one, for a Service with this record.
    pub fn new(mirror: &'a Mirror, pools: &'a mut Pools, now: Instant, old: &'a Record) -> Self {
        let (steps, bits, reserved) = (Steps::default(), BTreeSet::new(), Release::default());
        Self { mirror, pools, now, held: &old.frontends, steps, bits, reserved, release: old.withheld.clone() }
    }

    /// Plans a unit that shall be there.
    pub fn unit(
        &mut self,
        id: &UnitId,
        unit: &Unit,
        old: Option<&UnitRecord>,
        judgement: &Judgement,
    ) -> Result<UnitRecord, Shortage> {
        let service = match old {
            Some(old) => old.service,
            None => {
                let index = self.pools.services.take(self.now).ok_or(NO_SERVICES)?;
                self.reserved.services.insert(index);
                index
            }
        };
        if !self.mirror.names.contains(&service) {
            self.steps.names.push(Operation::SetName { service, name: Box::new(service_name(id)) });
        }
        self.source_ranges(service, unit);
        let backends = self.backends(service, unit, old)?;
        let owned: BTreeMap<_, _> = unit.frontends.iter().filter(|(key, _)| judgement.has_won(key)).collect();
        let is_used = |list| owned.values().any(|plan| plan.internal == list || plan.external == list);
        let (cluster, local) = (shares(&unit.cluster, &backends), shares(&unit.local, &backends));
        let used = [(List::Cluster, &cluster), (List::Local, &local)].into_iter();
        let mut lists: Vec<_> =
            used.filter(|(list, shares)| is_used(*list) && !shares.is_empty()).map(|(_, shares)| shares).collect();
        lists.dedup();
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
                affinity_timeout: if *plan == FrontendPlan::REFUSED { 0 } else { unit.affinity_timeout },
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
        let tables = self.tables(&lists, &backends, old, changeable)?;
        let find = |list: &_| tables.iter().find(|table| table.content.is_list(list)).map(|table| table.extent);
        frontends(&find).into_iter().for_each(|(key, frontend)| self.frontend(key, frontend));
        Ok(UnitRecord { service, backends, tables })
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
        let removed_frontends = release
            .frontends
            .iter()
            .filter(|key| mirror.frontends.get(key).is_some_and(|frontend| is_own(frontend.service)))
            .map(|&key| Operation::RemoveFrontend { key });
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
        let removals: Vec<_> =
            removed_frontends.chain(removed_ranges).chain(removed_names).chain(freed_backends).collect();
        let Steps { activate, tables, filter, names, source_ranges, frontends, drain, shut_out } = self.steps;
        let steps = [activate, tables, filter, names, source_ranges, frontends, drain, shut_out, removals];
        (steps.into_iter().flatten().collect(), self.release)
    }

    /// Number of frontends that this plan adds to the map.
    pub fn new_frontends(&self) -> usize {
        let is_new = |operation: &&Operation| matches!(operation, Operation::UpsertFrontend { key, .. } if !self.mirror.frontends.contains_key(key));
        self.steps.frontends.iter().filter(is_new).count()
    }

    /// Number of source ranges that this plan adds to the map.
    pub fn new_source_ranges(&self) -> usize {
        self.steps.source_ranges.len()
    }

    fn source_ranges(&mut self, service: u32, unit: &Unit) {
        let key = |range: &IpNet| SourceRangeKey::new(service, range.addr().into(), range.prefix_len());
        let wanted: BTreeSet<_> = unit.source_ranges.iter().map(key).collect();
        let held: BTreeSet<_> = self.mirror.source_ranges(service).collect();
        self.steps.source_ranges.extend(wanted.difference(&held).copied().map(Operation::UpsertSourceRange));
        self.steps.shut_out.extend(held.difference(&wanted).copied().map(Operation::RemoveSourceRange));
    }

    fn backends(
        &mut self,
        service: u32,
        unit: &Unit,
        old: Option<&UnitRecord>,
    ) -> Result<LiteMap<BackendKey, u32>, Shortage> {
        let mut backends = LiteMap::with_capacity(unit.backends.len());
        for (key, spec) in &unit.backends {
            let index = match old.and_then(|old| old.backends.get(key)) {
                Some(&index) => index,
                None => {
                    let index = self.pools.backends.take(self.now).ok_or(NO_BACKENDS)?;
                    self.reserved.backends.insert(index);
                    index
                }
            };
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
            self.filter_bit(FILTER_EGRESS, key.address);
        }
        if let Some(old) = old {
            let gone = old.backends.iter().filter(|(key, _)| !backends.contains_key(key));
            self.release.backends.extend(gone.map(|(_, index)| index));
        }
        Ok(backends)
    }

    /// Whether all frontends that lead to a table stay as they are: one that changed otherwise, or went, would serve with the new
    /// table and its old flags until it is written.
    fn is_changed_alone(&self, extent: Extent, wanted: &BTreeMap<FrontendKey, Frontend>) -> bool {
        let held = self.held.iter().chain(&self.release.frontends).chain(wanted.keys());
        let held = held.filter_map(|key| Some((key, self.mirror.frontends.get(key)?)));
        let mut leading = held.filter(|(_, frontend)| frontend.targets.contains(&extent.target()));
        leading.all(|(key, frontend)| wanted.get(key) == Some(frontend))
    }

    /// One table for each list: those of before where they hold the same, else new ones. The unit's only table, if it is
    /// `changeable` and keeps its size, is changed in place: a new one would take as much room again and a write to each
    /// frontend, and a packet, which reads one slot, sees no difference.
    fn tables(
        &mut self,
        lists: &[&BTreeMap<BackendKey, u32>],
        backends: &LiteMap<BackendKey, u32>,
        old: Option<&UnitRecord>,
        changeable: Option<Extent>,
    ) -> Result<Vec<Table>, Shortage> {
        let mut tables: Vec<Table> = Vec::new();
        for list in lists {
            let old_tables = || old.into_iter().flat_map(|old| &old.tables);
            let same = old_tables()
                .find(|table| table.content.is_list(list) && self.mirror.tables.contains(&table.extent.offset));
            if let Some(table) = same {
                tables.push(table.clone());
                continue;
            }
            let slots = maglev::build(&candidates(list, backends));
            let extent = match old_tables().find(|table| table.content.is_adopted(&slots)) {
                Some(table) => table.extent,
                None => self.fill(slots, changeable)?,
            };
            tables.push(Table { extent, content: Content::of_list(list) });
        }
        for table in old.into_iter().flat_map(|old| &old.tables) {
            if tables.iter().all(|kept| kept.extent != table.extent) {
                self.release.add_extent(table.extent);
            }
        }
        Ok(tables)
    }

    fn fill(&mut self, slots: Vec<u32>, changeable: Option<Extent>) -> Result<Extent, Shortage> {
        if let Some(extent) = changeable.filter(|extent| extent.slots as usize == slots.len()) {
            // Not before all that it names, nor what it names no more after that has gone: at the commit point.
            self.steps.frontends.push(Operation::ChangeTable { offset: extent.offset, slots });
            return Ok(extent);
        }
        let extent = self.pools.extents.take(slots.len() as u32, self.now).ok_or(NO_SLOTS)?;
        self.reserved.add_extent(extent);
        self.steps.tables.push(Operation::FillTable { offset: extent.offset, slots });
        Ok(extent)
    }

    fn frontend(&mut self, key: FrontendKey, frontend: Frontend) {
        if !key.address.is_unspecified() && key.address != FrontendKey::any_address(true) {
            self.filter_bit(FILTER_INGRESS, key.address);
        }
        if self.mirror.frontends.get(&key) != Some(&frontend) {
            self.steps.frontends.push(Operation::UpsertFrontend { key, frontend });
        }
    }

    fn filter_bit(&mut self, plane: u32, address: Address) {
        if !self.mirror.filter.contains(plane, &address) && self.bits.insert((plane, filter_bit(address.words_be()))) {
            self.steps.filter.push(Operation::SetFilterBit { plane, address });
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

/// The list as Maglev wants it.
fn candidates(list: &BTreeMap<BackendKey, u32>, backends: &LiteMap<BackendKey, u32>) -> Vec<maglev::Candidate> {
    let candidate = |(key, &weight): (&BackendKey, &u32)| {
        let index = *backends.get(key)?;
        Some(maglev::Candidate { address: key.address, port: key.port, weight, index })
    };
    list.iter().filter_map(candidate).collect()
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
