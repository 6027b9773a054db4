// SPDX-License-Identifier: MIT OR Apache-2.0
//! Allocator of pieces of the table array, in chunks of [`SLOTS_PER_CHUNK`] slots: best fit, neighbours joined again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use lb_common::{frontend::Target, maps::SLOTS_PER_CHUNK};

use super::GRACE;

/// A piece of the table array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Its first slot; a multiple of [`SLOTS_PER_CHUNK`].
    pub offset: u32,
    /// The slots that the table uses; the rest of the last chunk is wasted.
    pub slots: u32,
}

impl Extent {
    /// As frontends refer to it.
    pub const fn target(self) -> Target {
        Target { offset: self.offset, slots: self.slots }
    }

    const fn first_chunk(self) -> u32 {
        self.offset / SLOTS_PER_CHUNK
    }

    const fn chunks(self) -> u32 {
        self.slots.div_ceil(SLOTS_PER_CHUNK)
    }
}

/// What is free in the table array.
#[derive(Clone, Debug)]
pub struct Extents {
    /// First chunk of each hole -> its length. Holes never touch.
    holes: BTreeMap<u32, u32>,
    /// The same as (length, first chunk), for the best fit.
    by_length: BTreeSet<(u32, u32)>,
    /// Freed extents, and when they may be used again. In order of time.
    resting: VecDeque<(Instant, Extent)>,
}

impl Extents {
    /// An empty array of `slots`.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let mut extents = Self { holes: BTreeMap::new(), by_length: BTreeSet::new(), resting: VecDeque::new() };
        extents.insert_hole(0, slots / SLOTS_PER_CHUNK);
        extents
    }

    /// Takes the smallest hole that fits, the first of equals.
    pub fn take(&mut self, slots: u32, now: Instant) -> Option<Extent> {
        self.wake(now);
        let wanted = slots.div_ceil(SLOTS_PER_CHUNK);
        let &(length, start) = self.by_length.range((wanted, 0)..).next()?;
        self.remove_hole(start, length);
        self.insert_hole(start + wanted, length - wanted);
        Some(Extent { offset: start * SLOTS_PER_CHUNK, slots })
    }

    /// Lets what has rested long enough be taken.
    pub fn wake(&mut self, now: Instant) {
        while let Some((_, extent)) = self.resting.pop_front_if(|(until, _)| *until <= now) {
            self.give_back(extent);
        }
    }

    /// When the next extent will have rested long enough.
    pub fn wake_at(&self) -> Option<Instant> {
        self.resting.front().map(|(until, _)| *until)
    }

    /// Takes an extent that adopted frontends refer to; false where it overlaps another or lies outside the array.
    #[must_use]
    pub fn take_at(&mut self, extent: Extent) -> bool {
        if !extent.offset.is_multiple_of(SLOTS_PER_CHUNK) || extent.slots == 0 {
            return false;
        }
        let (start, wanted) = (extent.first_chunk(), extent.chunks());
        let Some((&hole, &length)) = self.holes.range(..=start).next_back() else { return false };
        if start + wanted > hole + length {
            return false;
        }
        self.remove_hole(hole, length);
        self.insert_hole(hole, start - hole);
        self.insert_hole(start + wanted, hole + length - start - wanted);
        true
    }

    /// Gives back an extent that no frontend has ever referred to.
    pub fn give_back(&mut self, extent: Extent) {
        let (mut start, mut length) = (extent.first_chunk(), extent.chunks());
        if let Some((&before, &before_length)) = self.holes.range(..start).next_back()
            && before + before_length == start
        {
            self.remove_hole(before, before_length);
            (start, length) = (before, before_length + length);
        }
        if let Some(&after_length) = self.holes.get(&(start + length)) {
            self.remove_hole(start + length, after_length);
            length += after_length;
        }
        self.insert_hole(start, length);
    }

    /// Slots that are not free, out of all of them: in use, resting, or lost to the rounding to chunks.
    #[must_use]
    pub fn used_slots(&self, all: u32) -> u32 {
        all - self.holes.values().sum::<u32>() * SLOTS_PER_CHUNK
    }

    /// Frees an extent that was in use until `now`.
    pub fn release(&mut self, extent: Extent, now: Instant) {
        self.resting.push_back((now + GRACE, extent));
    }

    fn insert_hole(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.holes.insert(start, length);
            self.by_length.insert((length, start));
        }
    }

    fn remove_hole(&mut self, start: u32, length: u32) {
        self.holes.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_hole_that_fits_is_taken() {
        let now = Instant::now();
        let mut extents = Extents::new(160);
        let taken: Vec<_> = [16, 48, 16, 32].map(|slots| extents.take(slots, now).unwrap()).into();
        extents.give_back(taken[1]);
        extents.give_back(taken[3]);
        // Holes of 3 chunks at 1 and, joined with the rest of the array, of 5 at 5.
        assert_eq!(extents.take(33, now), Some(Extent { offset: 16, slots: 33 }));
        assert_eq!(extents.take(80, now), Some(Extent { offset: 80, slots: 80 }));
        assert_eq!(extents.take(1, now), None);
    }

    #[test]
    fn a_freed_extent_rests() {
        let now = Instant::now();
        let mut extents = Extents::new(32);
        let extent = extents.take(32, now).unwrap();
        extents.release(extent, now);
        assert_eq!(extents.take(16, now + GRACE / 2), None);
        assert!(extents.take(16, now + GRACE).is_some());
    }

    #[test]
    fn only_what_is_free_can_be_adopted() {
        let mut extents = Extents::new(160);
        assert!(extents.take_at(Extent { offset: 32, slots: 20 }));
        for (offset, slots) in [(48, 1), (16, 32), (144, 17), (160, 1), (8, 8), (0, 0)] {
            assert!(!extents.take_at(Extent { offset, slots }), "{slots} slots at {offset}");
        }
        assert!(extents.take_at(Extent { offset: 64, slots: 96 }));
        assert!(extents.take_at(Extent { offset: 0, slots: 32 }));
        assert!(extents.holes.is_empty());
    }

    proptest! {
        #[test]
        fn extents_never_overlap_and_all_room_comes_back(steps in prop::collection::vec((1..200_u32, any::<u8>()), 1..200)) {
            let now = Instant::now();
            let mut extents = Extents::new(2048);
            let mut held: Vec<Extent> = Vec::new();
            for (slots, choice) in steps {
                if choice % 3 == 0 && !held.is_empty() {
                    extents.give_back(held.swap_remove(choice as usize % held.len()));
                } else if let Some(extent) = extents.take(slots, now) {
                    let end = |e: &Extent| e.first_chunk() + e.chunks();
                    prop_assert!(held.iter().all(|h| end(h) <= extent.first_chunk() || end(&extent) <= h.first_chunk()));
                    prop_assert!(extent.offset + extent.slots <= 2048);
                    held.push(extent);
                }
            }
            held.into_iter().for_each(|extent| extents.give_back(extent));
            prop_assert_eq!(extents.holes, BTreeMap::from([(0, 128)]));
        }
    }
}
