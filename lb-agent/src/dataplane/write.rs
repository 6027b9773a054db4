// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries out operations on the kernel's maps.
//!
//! In memory-mapped arrays every word is stored by itself, and a program may read between two stores. The order below
//! makes that harmless; it is stores in program order that count, which `Release` guarantees.

use std::{io, sync::atomic::Ordering};

use lb_common::{
    filter::Concern,
    frontend::{Backend, Target, backend_state},
    maps::{self, SLOTS_PER_CHUNK},
};

use super::maps::{MapError, Maps};
use crate::diff::{Operation, WriteError};

impl Maps {
    /// Carries out one operation.
    ///
    /// # Errors
    /// When the kernel refuses, or the operation means an element outside of an array.
    pub fn write(&self, operation: &Operation) -> Result<(), WriteError> {
        match operation {
            Operation::SetBackend { index, backend } => self.set_backend(*index, backend),
            Operation::FillTable { offset, slots } | Operation::ChangeTable { offset, slots } => {
                self.write_table(*offset, slots)
            }
            Operation::Pass(concern) => {
                self.pass(*concern);
                Ok(())
            }
            Operation::SetName { service, name } => {
                // A new owner of an index starts to count at zero.
                self.service_counters.reset(*service);
                self.names.insert(service, name).map_err(refused(maps::SERVICE_NAMES))
            }
            Operation::RemoveName { service } => self.names.remove(service).map_err(refused(maps::SERVICE_NAMES)),
            Operation::UpsertFrontend { key, frontend } => {
                self.frontends.insert(key, &frontend.tagged(key)).map_err(refused(maps::FRONTENDS))
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
    /// Whether a map holds what an operation writes; so it is with one that was carried out, unless somebody else has written.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn holds(&self, operation: &Operation) -> Result<bool, MapError> {
        Ok(match operation {
            Operation::SetBackend { index, backend } => self.backends.get(*index).as_ref() == Some(backend),
            Operation::FillTable { offset, slots } | Operation::ChangeTable { offset, slots } => {
                let target = Target { offset: *offset, slots: slots.len() as u32 };
                self.table(target).as_ref() == Some(slots)
            }
            Operation::Pass(concern) => self.passes(*concern),
            Operation::SetName { service, name } => self.names.get(service)?.as_ref() == Some(&**name),
            Operation::RemoveName { service } => self.names.get(service)?.is_none(),
            Operation::UpsertFrontend { key, frontend } => self.frontends.get(key)? == Some(frontend.tagged(key)),
            Operation::RemoveFrontend { key } => self.frontends.get(key)?.is_none(),
            Operation::UpsertSourceRange(key) => self.source_ranges.covers(key)?,
            Operation::RemoveSourceRange(key) => !self.source_ranges.covers(key)?,
            Operation::UpsertNodeAddress(address) => self.node_addresses.get(address)?.is_some(),
            Operation::RemoveNodeAddress(address) => self.node_addresses.get(address)?.is_none(),
            Operation::UpsertInterface { ifindex, interface } => {
                self.interfaces.get(ifindex)?.as_ref() == Some(interface)
            }
            Operation::RemoveInterface { ifindex } => self.interfaces.get(ifindex)?.is_none(),
        })
    }
}

/// Words of a backend by their place.
const STATE: usize = 4;
const GENERATION: usize = 5;

/// In which order the words of a backend are stored.
///
/// One that is freed is free before it has its new generation: a packet that read the table a moment earlier must not
/// find the new generation and take it for that of a backend in use, for its flow would never be stale. Any other is
/// whole before the word with its state says so.
const fn order(state: u8) -> [usize; 8] {
    match state {
        backend_state::FREE => [STATE, GENERATION, 0, 1, 2, 3, 6, 7],
        _ => [GENERATION, 0, 1, 2, 3, 6, 7, STATE],
    }
}

impl Maps {
    /// Lets packets pass the filter.
    pub(super) fn pass(&self, concern: Concern) {
        for (word, bits) in concern.bits() {
            self.filter.long_words()[word].fetch_or(bits, Ordering::Release);
        }
    }

    /// Whether the filter lets packets pass.
    pub(super) fn passes(&self, concern: Concern) -> bool {
        let words = self.filter.long_words();
        concern.bits().all(|(word, bits)| words[word].load(Ordering::Relaxed) & bits == bits)
    }

    fn set_backend(&self, index: u32, backend: &Backend) -> Result<(), WriteError> {
        let capacity = self.backends.capacity();
        let out_of_range = WriteError::OutOfRange { map: maps::BACKENDS, index, capacity };
        let element = self.backends.element(index).ok_or(out_of_range)?;
        // A new owner of an index starts to count at zero.
        let is_free = |backend: &Backend| backend.state == backend_state::FREE;
        if self.backends.get(index).as_ref().is_some_and(is_free) && !is_free(backend) {
            self.backend_counters.reset(index);
        }
        let words: [u32; 8] = bytemuck::cast(*backend);
        for word in order(backend.state) {
            element[word].store(words[word], Ordering::Release);
        }
        Ok(())
    }

    /// In any order: a packet reads one slot, and each is right by itself. What is right already is left alone: other CPUs have
    /// it in their caches.
    fn write_table(&self, offset: u32, slots: &[u32]) -> Result<(), WriteError> {
        let capacity = self.tables.capacity() * SLOTS_PER_CHUNK;
        let out_of_range = WriteError::OutOfRange { map: maps::TABLES, index: offset, capacity };
        let start = offset as usize;
        let target = self.tables.words().get(start..start + slots.len()).ok_or(out_of_range)?;
        let differing = target.iter().zip(slots).filter(|(to, from)| to.load(Ordering::Relaxed) != **from);
        differing.for_each(|(to, &from)| to.store(from, Ordering::Release));
        Ok(())
    }
}

fn refused(map: &'static str) -> impl Fn(io::Error) -> WriteError {
    move |cause| WriteError::Refused { map, cause }
}

#[cfg(test)]
mod tests {
    use lb_common::address::Address;

    use super::*;

    /// What a packet can read while one backend takes the place of another.
    fn between(old: Backend, new: Backend) -> Vec<Backend> {
        let (mut words, new_words): ([u32; 8], [u32; 8]) = (bytemuck::cast(old), bytemuck::cast(new));
        let stored = order(new.state).into_iter().map(|word| {
            words[word] = new_words[word];
            bytemuck::cast(words)
        });
        stored.collect()
    }

    #[test]
    fn a_backend_in_use_never_shows_the_generation_that_it_gets_when_freed() {
        let address: Address = std::net::Ipv4Addr::new(10, 0, 0, 1).into();
        let used = Backend {
            address,
            port_be: 80,
            state: backend_state::ACTIVE,
            generation: 7,
            ..bytemuck::Zeroable::zeroed()
        };
        let freed = Backend { address, state: backend_state::FREE, generation: 8, ..bytemuck::Zeroable::zeroed() };
        let freeing = between(used, freed);
        assert!(freeing.iter().all(|seen| seen.generation == 7 || seen.state == backend_state::FREE), "{freeing:?}");
        assert_eq!(freeing.last(), Some(&freed));

        let next = Backend { address: std::net::Ipv4Addr::new(10, 0, 0, 2).into(), generation: 8, ..used };
        let taking = between(freed, next);
        assert!(taking.iter().all(|seen| seen.state == backend_state::FREE || *seen == next), "{taking:?}");
    }
}
