// SPDX-License-Identifier: MIT OR Apache-2.0
//! All that is allocated, and what a Service gives up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use lb_common::frontend::FrontendKey;

use super::{
    Capacities,
    extent::{Extent, Extents},
    index::Indices,
};

/// Allocators of everything that has an index or an offset.
#[derive(Clone, Debug)]
pub struct Pools {
    pub services: Indices,
    pub backends: Indices,
    pub extents: Extents,
}

/// What a Service holds no more. It is removed from the maps, rests, and is used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    pub frontends: BTreeSet<FrontendKey>,
    pub services: BTreeSet<u32>,
    pub backends: BTreeSet<u32>,
    /// Offset -> slots.
    pub extents: BTreeMap<u32, u32>,
}

impl Release {
    pub fn add_extent(&mut self, extent: Extent) {
        self.extents.insert(extent.offset, extent.slots);
    }

    fn extents(&self) -> impl Iterator<Item = Extent> {
        self.extents.iter().map(|(&offset, &slots)| Extent { offset, slots })
    }
}

impl Pools {
    /// Pools of which nothing is used yet but these indices.
    pub fn new(capacities: &Capacities, services: &BTreeSet<u32>, backends: &BTreeSet<u32>) -> Self {
        Self {
            services: Indices::new(capacities.services, services),
            backends: Indices::new(capacities.backends, backends),
            extents: Extents::new(capacities.table_slots),
        }
    }

    /// Takes back what was reserved for a plan that came to nothing.
    pub fn give_back(&mut self, reserved: &Release) {
        reserved.services.iter().for_each(|&index| self.services.give_back(index));
        reserved.backends.iter().for_each(|&index| self.backends.give_back(index));
        reserved.extents().for_each(|extent| self.extents.give_back(extent));
    }

    /// Lets what has rested long enough be taken. Returns whether there was anything.
    pub fn wake(&mut self, now: Instant) -> bool {
        let has_rested = self.wake_at().is_some_and(|at| at <= now);
        self.services.wake(now);
        self.backends.wake(now);
        self.extents.wake(now);
        has_rested
    }

    /// When something will next have rested long enough.
    pub fn wake_at(&self) -> Option<Instant> {
        [self.services.wake_at(), self.backends.wake_at(), self.extents.wake_at()].into_iter().flatten().min()
    }

    /// Lets rest what is gone from the maps.
    pub fn rest(&mut self, release: &Release, now: Instant) {
        release.services.iter().for_each(|&index| self.services.release(index, now));
        release.backends.iter().for_each(|&index| self.backends.release(index, now));
        release.extents().for_each(|extent| self.extents.release(extent, now));
    }
}
