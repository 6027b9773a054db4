// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries out operations on the kernel's maps.
//!
//! In memory-mapped arrays every word is stored by itself, and a program may read between two stores. The order below
//! makes that harmless; it is stores in program order that count, which `Release` guarantees.

use std::{io, sync::atomic::Ordering};

use lb_common::{
    frontend::{Backend, backend_state},
    maps::{self, SLOTS_PER_CHUNK},
};

use super::maps::{Maps, PerCpu};
use crate::diff::{Operation, WriteError, Writer, filter_position};

impl Writer for Maps {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        match operation {
            Operation::SetBackend { index, backend } => self.set_backend(*index, backend),
            Operation::FillTable { offset, slots } => self.fill_table(*offset, slots),
            Operation::SetFilterBit { plane, address } => {
                let (word, bit) = filter_position(*plane, address);
                self.filter.long_words()[word].fetch_or(bit, Ordering::Release);
                Ok(())
            }
            Operation::SetName { service, name } => {
                reset(&self.service_counters, *service, maps::SERVICE_COUNTERS)?;
                self.names.insert(service, name).map_err(refused(maps::SERVICE_NAMES))
            }
            Operation::RemoveName { service } => self.names.remove(service).map_err(refused(maps::SERVICE_NAMES)),
            Operation::UpsertFrontend { key, frontend } => {
                self.frontends.insert(key, frontend).map_err(refused(maps::FRONTENDS))
            }
            Operation::UpsertSourceRange(key) => self.source_ranges.insert(key).map_err(refused(maps::SOURCE_RANGES)),
            Operation::RemoveSourceRange(key) => self.source_ranges.remove(key).map_err(refused(maps::SOURCE_RANGES)),
            Operation::RemoveFrontend { key } => self.frontends.remove(key).map_err(refused(maps::FRONTENDS)),
            Operation::UpsertNodeAddress(address) => {
                self.node_addresses.insert(address, &0).map_err(refused(maps::NODE_ADDRESSES))
            }
            Operation::RemoveNodeAddress(address) => {
                self.node_addresses.remove(address).map_err(refused(maps::NODE_ADDRESSES))
            }
            Operation::UpsertInterface { ifindex, interface } => {
                self.interfaces.insert(ifindex, interface).map_err(refused(maps::INTERFACES))
            }
            Operation::RemoveInterface { ifindex } => {
                self.interfaces.remove(ifindex).map_err(refused(maps::INTERFACES))
            }
        }
    }
}

impl Maps {
    /// The generation comes first, so that flows of a former owner are stale before anything else changes; the word with
    /// the state comes last, when the rest is whole.
    fn set_backend(&self, index: u32, backend: &Backend) -> Result<(), WriteError> {
        const GENERATION: usize = 5;
        const STATE: usize = 4;
        let capacity = self.backends.capacity();
        let out_of_range = WriteError::OutOfRange { map: maps::BACKENDS, index, capacity };
        let element = self.backends.element(index).ok_or(out_of_range)?;
        let was_free = self.backends.get(index).is_none_or(|before| before.state == backend_state::FREE);
        if was_free && backend.state != backend_state::FREE {
            reset(&self.backend_counters, index, maps::BACKEND_COUNTERS)?;
        }
        let words: [u32; 8] = bytemuck::cast(*backend);
        for word in [GENERATION, 0, 1, 2, 3, 6, 7, STATE] {
            element[word].store(words[word], Ordering::Release);
        }
        Ok(())
    }

    /// In any order: nobody reads these slots until a frontend refers to them.
    fn fill_table(&self, offset: u32, slots: &[u32]) -> Result<(), WriteError> {
        let capacity = self.tables.capacity() * SLOTS_PER_CHUNK;
        let out_of_range = WriteError::OutOfRange { map: maps::TABLES, index: offset, capacity };
        let start = offset as usize;
        let target = self.tables.words().get(start..start + slots.len()).ok_or(out_of_range)?;
        target.iter().zip(slots).for_each(|(to, &from)| to.store(from, Ordering::Release));
        Ok(())
    }
}

/// A new owner of an index starts to count at zero.
fn reset<V: bytemuck::Pod>(counters: &PerCpu<V>, index: u32, map: &'static str) -> Result<(), WriteError> {
    counters.reset(index).map_err(refused(map))
}

fn refused(map: &'static str) -> impl Fn(io::Error) -> WriteError {
    move |cause| WriteError::Refused { map, cause }
}
