// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the maps hold now, as far as the agent has written or adopted it.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::Address,
    config::Interface,
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey},
};

use super::{Operation, filter::Filter};

/// Changed by carried-out operations and nothing else, so that it tells the truth after a failed one too.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// How often a frontend has come or gone.
    pub frontend_changes: u64,
    backends: Vec<Backend>,
    /// Service ports that have a name.
    pub names: BTreeSet<u32>,
    /// Admitted sources by Service port.
    source_ranges: BTreeMap<u32, BTreeSet<SourceRangeKey>>,
    /// Offsets at which the table that `State` believes in has been written.
    pub tables: BTreeSet<u32>,
    pub filter: Filter,
    pub node_addresses: BTreeSet<Address>,
    pub interfaces: BTreeMap<u32, Interface>,
}

impl Mirror {
    /// With adopted backends.
    pub fn with_backends(backends: Vec<Backend>) -> Self {
        Self { backends, ..Self::default() }
    }

    /// The element of the backend array.
    pub fn backend(&self, index: u32) -> Backend {
        self.backends.get(index as usize).copied().unwrap_or_default()
    }

    /// All backends by index, the free ones too.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The sources that are admitted to a Service port.
    pub fn source_ranges(&self, service: u32) -> impl Iterator<Item = SourceRangeKey> {
        self.source_ranges.get(&service).into_iter().flatten().copied()
    }

    /// Number of source ranges of all Service ports.
    pub fn count_source_ranges(&self) -> usize {
        self.source_ranges.values().map(BTreeSet::len).sum()
    }

    /// Notes that tables do not hold what they should, because these operations were not carried out.
    pub fn doubt_tables(&mut self, operations: &[Operation]) {
        for operation in operations {
            if let Operation::ChangeTable { offset, .. } = operation {
                self.tables.remove(offset);
            }
        }
    }

    /// Takes over what an operation has written.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::SetBackend { index, backend } => {
                let index = *index as usize;
                if self.backends.len() <= index {
                    self.backends.resize(index + 1, Backend::default());
                }
                self.backends[index] = *backend;
            }
            Operation::FillTable { offset, .. } | Operation::ChangeTable { offset, .. } => {
                self.tables.insert(*offset);
            }
            Operation::Pass(concern) => self.filter.insert(*concern),
            Operation::SetName { service, .. } => {
                self.names.insert(*service);
            }
            Operation::UpsertFrontend { key, frontend } => {
                let former = self.frontends.insert(*key, *frontend);
                self.frontend_changes += u64::from(former.is_none());
            }
            Operation::RemoveFrontend { key } => {
                let former = self.frontends.remove(key);
                self.frontend_changes += u64::from(former.is_some());
            }
            Operation::UpsertSourceRange(key) => {
                self.source_ranges.entry(key.range.service).or_default().insert(*key);
            }
            Operation::RemoveSourceRange(key) => {
                if let Some(ranges) = self.source_ranges.get_mut(&key.range.service) {
                    ranges.remove(key);
                    if ranges.is_empty() {
                        self.source_ranges.remove(&key.range.service);
                    }
                }
            }
            Operation::RemoveName { service } => {
                self.names.remove(service);
            }
            Operation::UpsertNodeAddress(address) => {
                self.node_addresses.insert(*address);
            }
            Operation::RemoveNodeAddress(address) => {
                self.node_addresses.remove(address);
            }
            Operation::UpsertInterface { ifindex, interface } => {
                self.interfaces.insert(*ifindex, *interface);
            }
            Operation::RemoveInterface { ifindex } => {
                self.interfaces.remove(ifindex);
            }
        }
    }
}
