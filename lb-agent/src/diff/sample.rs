// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the maps should hold, a part at a time: whoever compares it with what they do hold finds out what somebody else has
//! written.

use std::collections::BTreeMap;

use lb_common::{filter::Concern, maglev};

use super::{
    Operation, State,
    draft::service_name,
    filter::concern_of,
    state::{Content, Record, Table, UnitRecord},
    tables::candidates,
};

/// Which Services come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(usize);

/// Sizes of a sample. What goes beyond ends with the Service that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSize {
    /// Elements of maps.
    pub elements: usize,
    /// Slots of lookup tables, which are built for it.
    pub slots: usize,
}

impl State {
    /// The writes that would bring a few Services, and the devices and addresses of this node, into empty maps. Each has been
    /// carried out, so that none should change anything. The next call goes on with the next Services, in no special order.
    #[must_use]
    pub fn sample(&self, cursor: &mut Cursor, size: SampleSize) -> Vec<Operation> {
        let mut sample = Vec::new();
        let devices = self.mirror.interfaces.values().flat_map(|interface| &interface.addresses);
        let addresses = devices.filter(|address| !address.is_unspecified()).chain(&self.mirror.node_addresses);
        addresses.for_each(|address| self.sample_filter(Concern::Node(*address), &mut sample));
        self.pod_devices().for_each(|concern| self.sample_filter(concern, &mut sample));
        let interfaces = self.mirror.interfaces.iter();
        sample.extend(interfaces.map(|(&ifindex, &interface)| Operation::UpsertInterface { ifindex, interface }));
        sample.extend(self.mirror.node_addresses.iter().map(|&address| Operation::UpsertNodeAddress(address)));
        let most = sample.len() + size.elements;
        let mut slots = 0;
        let first = if cursor.0 < self.records.len() { cursor.0 } else { 0 };
        cursor.0 = first;
        for record in self.records.values().skip(first) {
            if sample.len() >= most || slots >= size.slots {
                break;
            }
            slots += self.sample_of(record, &mut sample);
            cursor.0 += 1;
        }
        sample
    }

    /// Returns the slots of its tables.
    fn sample_of(&self, record: &Record, sample: &mut Vec<Operation>) -> usize {
        let mut slots = 0;
        for (id, unit) in record.units.iter() {
            let service = unit.service;
            if self.mirror.names.contains(&service) {
                sample.push(Operation::SetName { service, name: Box::new(service_name(id)) });
            }
            for &index in unit.backends.values() {
                let backend = self.mirror.backend(index);
                self.sample_filter(Concern::Backend(backend.address, backend.port_be, id.protocol), sample);
                sample.push(Operation::SetBackend { index, backend });
            }
            sample.extend(self.mirror.source_ranges(service).map(Operation::UpsertSourceRange));
            for table in unit.tables.iter().filter(|table| self.mirror.tables.contains(&table.extent.offset)) {
                if let Some(built) = build(table, unit) {
                    slots += built.len();
                    sample.push(Operation::ChangeTable { offset: table.extent.offset, slots: built });
                }
            }
        }
        // Last, as they are written: what they lead to is whole by then.
        for key in &record.frontends {
            if let Some(frontend) = self.mirror.frontends.get(key) {
                self.sample_filter(concern_of(key), sample);
                sample.push(Operation::UpsertFrontend { key: *key, frontend: *frontend });
            }
        }
        slots
    }

    fn sample_filter(&self, concern: Concern, sample: &mut Vec<Operation>) {
        if self.mirror.filter.contains(concern) {
            sample.push(Operation::Pass(concern));
        }
    }
}

/// The slots of a table; `None` where nobody has planned it yet since the start.
fn build(table: &Table, unit: &UnitRecord) -> Option<Vec<u32>> {
    let Content::List(list) = &table.content else { return None };
    let list: BTreeMap<_, _> = list.iter().copied().collect();
    let candidates = candidates(&list, &unit.backends);
    // A backend that has gone meanwhile leaves no list behind that can be built.
    let is_whole = !list.is_empty() && candidates.len() == list.len();
    is_whole.then(|| maglev::build_sized(&candidates, table.extent.slots))
}
