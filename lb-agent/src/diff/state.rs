// SPDX-License-Identifier: MIT OR Apache-2.0
//! [`State`]: what the maps hold, who holds what in them, and what is free.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use lb_common::{
    address::Address,
    clock::Clock,
    config::{Interface, role},
    filter::Concern,
    flow::protocol,
    frontend::{Backend, FrontendKey, backend_state, frontend_flags},
    maps,
};
use litemap::LiteMap;

use super::{
    Capacities, Filter, Operation, Plan, WriteError, Writer,
    claims::Claims,
    extent::Extent,
    filter::concern_of,
    mirror::Mirror,
    pools::{Pools, Release},
};
use crate::compile::{BackendKey, ServiceKey, UnitId};

/// The mirror of the maps. Made by [`State::adopt`]; changed by planning and by carrying out.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) capacities: Capacities,
    pub(super) clock: Clock,
    pub(super) mirror: Mirror,
    pub(super) pools: Pools,
    /// Hashed: to find a name in a tree of many takes a cache miss for every name on the way.
    pub(super) records: HashMap<ServiceKey, Record>,
    pub(super) claims: Claims,
    /// Services whose plan would be another one now.
    pub(super) dirty: BTreeSet<ServiceKey>,
    /// Services for which a map had no room.
    pub(super) starved: BTreeSet<ServiceKey>,
}

/// What one Service holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record {
    /// A list, as are those below: a tree sets room aside for eleven, and most Services have one.
    pub units: LiteMap<UnitId, UnitRecord>,
    /// Frontends that it has been given, in order.
    pub frontends: Vec<FrontendKey>,
    /// What it gave up, but a failed write left in the maps.
    pub withheld: Release,
}

/// What one unit holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UnitRecord {
    /// Index of the Service port.
    pub service: u32,
    pub backends: LiteMap<BackendKey, u32>,
    /// One for each distinct list that a frontend uses: at most two.
    pub tables: Vec<Table>,
}

/// A lookup table in the array of all tables.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    pub extent: Extent,
    pub content: Content,
}

/// What is known of a table's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// The list with weights from which it was built.
    List(Box<[(BackendKey, u32)]>),
    /// A digest of the slots that were found at the start: all of them would take as much memory as the map itself.
    Adopted(u64),
}

impl Content {
    pub fn of_list(list: &BTreeMap<BackendKey, u32>) -> Self {
        Self::List(list.iter().map(|(key, weight)| (*key, *weight)).collect())
    }

    pub fn is_list(&self, list: &BTreeMap<BackendKey, u32>) -> bool {
        matches!(self, Self::List(own) if own.iter().map(|(key, weight)| (key, weight)).eq(list))
    }

    /// Of a table that was found at the start.
    pub fn adopted(slots: &[u32]) -> Self {
        Self::Adopted(digest(slots))
    }

    /// Whether it was found at the start, and nothing is known of it but the digest.
    pub const fn is_found(&self) -> bool {
        matches!(self, Self::Adopted(_))
    }

    pub fn is_adopted(&self, slots: &[u32]) -> bool {
        matches!(self, Self::Adopted(own) if *own == digest(slots))
    }
}

fn digest(slots: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    slots.hash(&mut hasher);
    hasher.finish()
}

impl State {
    /// The Services that the maps hold something of. Those that the source does not have may be removed (by planning
    /// them with nothing) once it has synced, not before.
    pub fn services(&self) -> impl Iterator<Item = ServiceKey> + '_ {
        self.records.keys().cloned()
    }

    /// The Services that must be planned again although they did not change: those whose frontend has changed hands, and
    /// those for which there may be room now.
    pub fn take_dirty(&mut self, now: Instant) -> BTreeSet<ServiceKey> {
        if self.pools.wake(now) {
            self.dirty.append(&mut self.starved);
        }
        std::mem::take(&mut self.dirty)
    }

    /// The frontends that a Service has.
    pub fn frontends_of(&self, service: &ServiceKey) -> &[FrontendKey] {
        self.records.get(service).map_or(&[], |record| &record.frontends)
    }

    /// The Services whose frontend has changed hands since the last question.
    pub fn take_affected(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    /// When [`State::take_dirty`] should be asked again although nothing happened.
    pub fn wake_at(&self) -> Option<Instant> {
        self.pools.wake_at().filter(|_| !self.starved.is_empty())
    }

    /// Carries out the plan of a Service up to the first write that fails. What could not be done stays on the
    /// Service's account, and its next plan contains it again.
    ///
    /// # Errors
    /// The write that failed.
    pub fn carry_out(&mut self, plan: Plan, writer: &mut impl Writer, now: Instant) -> Result<(), WriteError> {
        for (index, operation) in plan.operations.iter().enumerate() {
            if let Err(error) = writer.write(operation) {
                self.mirror.doubt_tables(&plan.operations[index..]);
                self.records.entry(plan.service).or_default().withheld = plan.release;
                return Err(error);
            }
            self.mirror.apply(operation);
        }
        for offset in plan.release.extents.keys() {
            self.mirror.tables.remove(offset);
        }
        self.pools.rest(&plan.release, now);
        let is_removal =
            |operation| matches!(operation, &Operation::RemoveFrontend { .. } | &Operation::RemoveSourceRange(_));
        if plan.operations.iter().any(is_removal) {
            // These need no rest: whoever waits for room may have it now.
            self.dirty.append(&mut self.starved);
        }
        Ok(())
    }

    /// Carries out operations that don't depend on each other. Those that fail are planned again the next time.
    pub fn carry_out_each(&mut self, operations: &[Operation], writer: &mut impl Writer) -> Vec<WriteError> {
        let mut errors = Vec::new();
        for operation in operations {
            match writer.write(operation) {
                Ok(()) => self.mirror.apply(operation),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// Whether there is room for more than a few flows of each family, IPv4 and IPv6.
    #[must_use]
    pub const fn families(&self) -> [bool; 2] {
        self.capacities.families
    }

    /// Whether the programs know a device.
    #[must_use]
    pub fn has_interface(&self, ifindex: u32) -> bool {
        self.mirror.interfaces.contains_key(&ifindex)
    }

    /// Plans which local addresses answer NodePorts. Removals come first: the map is small.
    #[must_use]
    pub fn plan_node_addresses(&self, wanted: &BTreeSet<Address>) -> Vec<Operation> {
        let held = &self.mirror.node_addresses;
        let mut operations: Vec<_> =
            held.difference(wanted).map(|&address| Operation::RemoveNodeAddress(address)).collect();
        for address in wanted {
            self.plan_passing(Concern::Node(*address), &mut operations);
            if !held.contains(address) {
                operations.push(Operation::UpsertNodeAddress(*address));
            }
        }
        operations
    }

    /// Plans the devices. Their addresses pass the filter: replies to translated sources arrive there.
    #[must_use]
    pub fn plan_interfaces(&self, wanted: &BTreeMap<u32, Interface>) -> Vec<Operation> {
        let held = &self.mirror.interfaces;
        let gone = held.keys().filter(|ifindex| !wanted.contains_key(ifindex));
        let mut operations: Vec<_> = gone.map(|&ifindex| Operation::RemoveInterface { ifindex }).collect();
        for (&ifindex, interface) in wanted {
            for address in interface.addresses.iter().filter(|address| !address.is_unspecified()) {
                self.plan_passing(Concern::Node(*address), &mut operations);
            }
            if interface.role & role::POD != 0 {
                self.plan_passing(Concern::PodDevice(ifindex), &mut operations);
            }
            if held.get(&ifindex) != Some(interface) {
                operations.push(Operation::UpsertInterface { ifindex, interface: *interface });
            }
        }
        operations
    }

    /// The filter as it is.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.mirror.filter
    }

    /// The filter that lets through what the maps hold now, and nothing else.
    #[must_use]
    pub fn needed_filter(&self) -> Filter {
        let mut filter = Filter::default();
        self.mirror.frontends.keys().for_each(|key| filter.insert(concern_of(key)));
        let devices = self.mirror.interfaces.values().flat_map(|interface| &interface.addresses);
        let addresses = devices.filter(|address| !address.is_unspecified()).chain(&self.mirror.node_addresses);
        addresses.for_each(|address| filter.insert(Concern::Node(*address)));
        self.pod_devices().for_each(|concern| filter.insert(concern));
        let protocols: HashMap<u32, u8> = self.units().map(|(id, unit)| (unit.service, id.protocol)).collect();
        let backends = self.mirror.backends().iter().filter(|backend| backend.state != backend_state::FREE);
        for Backend { address, port_be, service, .. } in backends {
            // A Service port that nobody holds any more may have been of any protocol.
            let known = protocols.get(service).copied();
            let any = [protocol::TCP, protocol::UDP, protocol::SCTP];
            let protocols = any.into_iter().filter(|own| known.is_none_or(|known| known == *own));
            protocols.for_each(|protocol| filter.insert(Concern::Backend(*address, *port_be, protocol)));
        }
        filter
    }

    /// What lets packets of pods to backends themselves be looked at.
    pub(super) fn pod_devices(&self) -> impl Iterator<Item = Concern> {
        let pods = self.mirror.interfaces.iter().filter(|(_, interface)| interface.role & role::POD != 0);
        pods.map(|(&ifindex, _)| Concern::PodDevice(ifindex))
    }

    /// Takes note of what a sweep has left in the filter.
    pub fn set_filter(&mut self, filter: Filter) {
        self.mirror.filter = filter;
    }

    /// Name, entries and capacity of the maps that can get full.
    #[must_use]
    pub fn usage(&self) -> [(&'static str, u64, u64); 5] {
        let Capacities { frontends, backends, table_slots, services, source_ranges, .. } = self.capacities;
        let live = self.mirror.backends().iter().filter(|backend| backend.state != backend_state::FREE).count();
        let used = self.mirror.frontends.len();
        [
            (maps::FRONTENDS, used as u64, frontends.into()),
            (maps::BACKENDS, live as u64, backends.into()),
            (maps::TABLES, self.pools.extents.used_slots(table_slots).into(), table_slots.into()),
            (maps::SERVICE_NAMES, self.mirror.names.len() as u64, services.into()),
            (maps::SOURCE_RANGES, self.mirror.count_source_ranges() as u64, source_ranges.into()),
        ]
    }

    /// All Service ports with their indices.
    pub fn service_ports(&self) -> impl Iterator<Item = (u32, &UnitId)> {
        self.units().map(|(id, unit)| (unit.service, id))
    }

    /// All backends with their indices.
    pub fn backends(&self) -> impl Iterator<Item = (u32, &UnitId, &BackendKey)> {
        self.units().flat_map(|(id, unit)| unit.backends.iter().map(move |(key, &index)| (index, id, key)))
    }

    /// How often a frontend has come or gone.
    #[must_use]
    pub const fn frontend_changes(&self) -> u64 {
        self.mirror.frontend_changes
    }

    /// The addresses at which there are frontends, those for all addresses of this node aside; each as often as it has ports. And
    /// whether that one says that it is a ClusterIP, which one of them does.
    pub fn frontend_addresses(&self) -> impl Iterator<Item = (Address, bool)> + '_ {
        let keys = self.mirror.frontends.keys().filter(|key| !key.is_node_port());
        keys.map(|key| (key.address, *key == FrontendKey::any_port(key.address)))
    }

    /// The backends of one Service.
    pub fn backends_of(&self, service: &ServiceKey) -> impl Iterator<Item = &BackendKey> {
        let units = self.records.get(service).into_iter().flat_map(|record| record.units.values());
        units.flat_map(|unit| unit.backends.keys())
    }

    /// Whether frontends of a Service say that connections are reset when their backend goes.
    #[must_use]
    pub fn resets_on_removal(&self, service: &ServiceKey) -> bool {
        let mut held = self.records.get(service).into_iter().flat_map(|record| &record.frontends);
        held.any(|key| {
            let frontend = self.mirror.frontends.get(key);
            frontend.is_some_and(|frontend| frontend.flags & frontend_flags::RESET_ON_REMOVAL != 0)
        })
    }

    fn units(&self) -> impl Iterator<Item = (&UnitId, &UnitRecord)> {
        self.records.values().flat_map(|record| record.units.iter())
    }

    fn plan_passing(&self, concern: Concern, operations: &mut Vec<Operation>) {
        if !self.mirror.filter.contains(concern) {
            operations.push(Operation::Pass(concern));
        }
    }
}
