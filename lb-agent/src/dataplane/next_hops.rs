// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables of next hops (the FIB's answers), read while programs write them.

use std::sync::atomic::Ordering;

use lb_common::flow::next_hop::{NextHop, Stamp};

use super::{
    maps::{MapError, Shared},
    pins::Pins,
};

/// The table of one family.
#[derive(Debug)]
pub struct NextHops(Shared<NextHop>);

impl NextHops {
    /// 64-bit words in an element, of which the first is its stamp.
    const WORDS: usize = size_of::<NextHop>() / size_of::<u64>();

    /// Opens the pinned one.
    ///
    /// # Errors
    /// When it is missing or has another layout.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        Shared::open(pins, name).map(Self)
    }

    /// Device and Ethernet address of each next hop of these generations. What changes meanwhile may be met or not.
    pub fn of_generations(&self, generations: [u32; 2]) -> impl Iterator<Item = (u32, [u8; 6])> {
        let stamps = self.0.long_words().iter().step_by(Self::WORDS);
        let stamps = stamps.map(|word| Stamp::from_bits(word.load(Ordering::Acquire)));
        let held = (0..).zip(stamps).filter(move |(_, stamp)| generations.contains(&stamp.generation()));
        held.filter_map(|(index, stamp)| {
            let next_hop = self.0.get(index)?;
            (next_hop.stamp == stamp.to_bits() && next_hop.ifindex != 0)
                .then(|| (next_hop.ifindex, destination(&next_hop)))
        })
    }
}

/// The Ethernet address that frames are sent to: the first six bytes of one.
fn destination(next_hop: &NextHop) -> [u8; 6] {
    let bytes: [u8; 12] = bytemuck::cast(next_hop.macs);
    let [a, b, c, d, e, f, ..] = bytes;
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_with_its_destination() {
        let macs: [u32; 3] = bytemuck::cast([1_u8, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(destination(&NextHop { macs, ..NextHop::default() }), [1, 2, 3, 4, 5, 6]);
    }
}
