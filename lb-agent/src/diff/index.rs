// SPDX-License-Identifier: MIT OR Apache-2.0
//! Allocator of small indices, with a grace period before one is used again.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Instant,
};

use super::GRACE;

/// Indices `1..limit`; 0 stands for "none" in map values.
#[derive(Clone, Debug)]
pub struct Indices {
    limit: u32,
    /// Lowest index that was never used.
    next: u32,
    free: BTreeSet<u32>,
    /// Freed indices, and when they may be used again. In order of time.
    resting: VecDeque<(Instant, u32)>,
}

impl Indices {
    /// All of `1..limit`, but for those `used` already.
    #[must_use]
    pub fn new(limit: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        let free = (1..next).filter(|index| !used.contains(index)).collect();
        Self { limit, next, free, resting: VecDeque::new() }
    }

    /// The lowest index that is free, if any.
    pub fn take(&mut self, now: Instant) -> Option<u32> {
        self.wake(now);
        self.free.pop_first().or_else(|| {
            (self.next < self.limit).then(|| {
                self.next += 1;
                self.next - 1
            })
        })
    }

    /// How many can be taken now.
    pub fn count_free(&mut self, now: Instant) -> usize {
        self.wake(now);
        self.free.len() + self.limit.saturating_sub(self.next) as usize
    }

    /// Lets what has rested long enough be taken.
    pub fn wake(&mut self, now: Instant) {
        while let Some((_, index)) = self.resting.pop_front_if(|(until, _)| *until <= now) {
            self.free.insert(index);
        }
    }

    /// When the next index will have rested long enough.
    pub fn wake_at(&self) -> Option<Instant> {
        self.resting.front().map(|(until, _)| *until)
    }

    /// Gives back an index that no map has ever held.
    pub fn give_back(&mut self, index: u32) {
        self.free.insert(index);
    }

    /// Frees an index that was in use until `now`.
    pub fn release(&mut self, index: u32, now: Instant) {
        // A corrupt map may have named index 0 as used: it is never handed out.
        if index != 0 {
            self.resting.push_back((now + GRACE, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_index_rests() {
        let start = Instant::now();
        let mut indices = Indices::new(4, &BTreeSet::new());
        assert_eq!([1, 2, 3].map(Some), std::array::from_fn(|_| indices.take(start)));
        assert_eq!(indices.take(start), None);
        indices.release(2, start);
        assert_eq!(indices.take(start + GRACE / 2), None);
        assert_eq!(indices.take(start + GRACE), Some(2));
    }

    #[test]
    fn adopted_indices_are_taken() {
        let mut indices = Indices::new(6, &BTreeSet::from([2, 3]));
        let now = Instant::now();
        assert_eq!([1, 4, 5].map(Some), std::array::from_fn(|_| indices.take(now)));
        assert_eq!(indices.take(now), None);
    }
}
