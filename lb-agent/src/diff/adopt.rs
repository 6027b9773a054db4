// SPDX-License-Identifier: MIT OR Apache-2.0
//! From what adopted maps hold to a [`State`], so that a restart with the same desired state writes nothing.
//!
//! An agent may have died between any two writes. Whatever is found that nothing refers to as it should is put on the
//! account of the Service to which it belongs, or of a nameless one, and removed when that is planned.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::frontend::{Backend, backend_state};
use litemap::LiteMap;

use super::{
    Capacities, Dump, Operation, State,
    claims::Claims,
    draft::unit_of_name,
    extent::Extent,
    mirror::Mirror,
    pools::Pools,
    state::{Content, Record, Table, UnitRecord},
};
use crate::compile::{BackendKey, ServiceKey, UnitId};

impl State {
    /// Takes over what the maps hold. Capacities are those that the maps really have.
    #[must_use]
    pub fn adopt(dump: Dump, capacities: &Capacities) -> Self {
        let mut found = Found::new(&dump);
        let backends = found.backends(&dump.backends);
        let services = found.unit_of.keys().copied().collect();
        let mut pools = Pools::new(capacities, &services, &backends);
        found.tables(&dump, &mut pools);
        let mut claims = Claims::default();
        for (service, record) in &found.records {
            record.frontends.iter().for_each(|&key| claims.adopt(service, key));
        }
        let mut mirror = Mirror::with_backends(dump.backends);
        mirror.frontends = dump.frontends;
        dump.source_ranges.into_iter().for_each(|key| mirror.apply(&Operation::UpsertSourceRange(key)));
        mirror.names = dump.names.into_keys().collect();
        mirror.filter = dump.filter;
        mirror.node_addresses = dump.node_addresses.into_iter().collect();
        mirror.interfaces = dump.interfaces;
        let tables = found.records.values().flat_map(|record| record.units.values()).flat_map(|unit| &unit.tables);
        mirror.tables = tables.map(|table| table.extent.offset).collect();
        Self {
            capacities: *capacities,
            clock: dump.clock,
            mirror,
            pools,
            records: found.records,
            claims,
            dirty: BTreeSet::new(),
            starved: BTreeSet::new(),
        }
    }
}

/// What was found, sorted by whom it belongs to.
struct Found {
    records: HashMap<ServiceKey, Record>,
    /// Every index of a Service port that a map mentions -> its unit.
    unit_of: BTreeMap<u32, UnitId>,
}

impl Found {
    /// Sorts names, frontends and source ranges.
    fn new(dump: &Dump) -> Self {
        let mut found = Self { records: HashMap::new(), unit_of: BTreeMap::new() };
        for (&service, name) in &dump.names {
            found.add_unit(service, unit_of_name(name));
        }
        for (&key, frontend) in &dump.frontends {
            // In their order.
            found.record(frontend.service).frontends.push(key);
        }
        for key in &dump.source_ranges {
            found.record(key.range.service);
        }
        found
    }

    /// Sorts backends; returns the indices in use.
    fn backends(&mut self, backends: &[Backend]) -> BTreeSet<u32> {
        let mut used = BTreeSet::new();
        let key_of = |backend: &Backend| BackendKey { address: backend.address, port: u16::from_be(backend.port_be) };
        let live = (0..).zip(backends).filter(|(index, backend)| *index != 0 && backend.state != backend_state::FREE);
        let mut live: Vec<_> = live.map(|(index, backend)| (key_of(backend), index, backend)).collect();
        // Each list of backends grows at its end then.
        live.sort_unstable_by_key(|(key, index, _)| (*key, *index));
        for (key, index, backend) in live {
            used.insert(index);
            let (record, id) = self.record_and_id(backend.service);
            let unit = record.units.get_mut(&id).filter(|unit| unit.service == backend.service);
            match unit.filter(|unit| !unit.backends.contains_key(&key)) {
                Some(unit) => drop(unit.backends.insert(key, index)),
                None => drop(record.withheld.backends.insert(index)),
            }
        }
        used
    }

    /// Sorts tables. One that overlaps another is nobody's: the frontend is written anew when its Service is planned.
    fn tables(&mut self, dump: &Dump, pools: &mut Pools) {
        let mut seen = BTreeSet::new();
        for frontend in dump.frontends.values() {
            for target in frontend.targets {
                let extent = Extent { offset: target.offset, slots: target.slots };
                if !seen.insert((frontend.service, extent)) || !pools.extents.take_at(extent) {
                    continue;
                }
                let slots = dump.tables.get(&extent.offset).map(Vec::as_slice).unwrap_or_default();
                self.add_table(frontend.service, Table { extent, content: Content::adopted(slots) });
            }
        }
    }

    fn add_table(&mut self, service: u32, table: Table) {
        let (record, id) = self.record_and_id(service);
        match record.units.get_mut(&id).filter(|unit| unit.service == service) {
            Some(unit) => unit.tables.push(table),
            None => record.withheld.add_extent(table.extent),
        }
    }

    fn record(&mut self, service: u32) -> &mut Record {
        self.record_and_id(service).0
    }

    fn record_and_id(&mut self, service: u32) -> (&mut Record, UnitId) {
        let id = match self.unit_of.get(&service) {
            Some(id) => id.clone(),
            None => self.add_unit(service, None),
        };
        (self.records.entry(ServiceKey::new(&*id.namespace, &*id.name)).or_default(), id)
    }

    /// Adds a unit; a second one of the same name is removed when the Service is planned.
    fn add_unit(&mut self, service: u32, id: Option<UnitId>) -> UnitId {
        let id = id.unwrap_or_else(|| nameless(service));
        let record = self.records.entry(ServiceKey::new(&*id.namespace, &*id.name)).or_default();
        if record.units.contains_key(&id) {
            record.withheld.services.insert(service);
        } else {
            let unit = UnitRecord { service, backends: LiteMap::new(), tables: Vec::new() };
            record.units.insert(id.clone(), unit);
        }
        self.unit_of.insert(service, id.clone());
        id
    }
}

/// The unit of an index without a readable name. No Service has an empty name, so it is removed with the absent.
fn nameless(service: u32) -> UnitId {
    UnitId { namespace: String::new(), name: String::new(), port_name: service.to_string(), protocol: 0, is_v4: true }
}
