// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The table of next hops (the FIB's answers): device, Ethernet addresses and MTU of the way to a destination, so that a change of
//! routes costs one look-up per destination, not one per flow.
//!
//! Flows hold the index of an element, which says itself for whom it is: another destination may have taken it since. An element
//! holds under one generation of routes, neighbours and links ([`crate::config::Config::next_hop_generation`]).

use bytemuck::{Pod, Zeroable};

use crate::{address::Family, bits::plain_bits};

/// Elements of the table: 2 MiB per family. As many destinations can be in use at once without asking the kernel anew; with more, some
/// packets ask.
pub const CAPACITY: u32 = 1 << 15;

/// Bits of [`NextHop::flags`].
pub mod next_hop_flags {
    /// The device runs our XDP program natively, so that it takes frames from another device's.
    pub const TAKES_XDP_FRAMES: u32 = 1;
}

/// The way to one destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// [`Stamp`]: written first and last.
    pub stamp: u64,
    /// The destination, in the first words of sixteen bytes.
    pub dst: [u32; 4],
    /// The device that leads there.
    pub ifindex: u32,
    /// The next hop's Ethernet address and the device's own, as they stand at the start of a frame.
    pub macs: [u32; 3],
    /// MTU of the way; 0 where it is not known.
    pub mtu: u32,
    /// [`next_hop_flags`].
    pub flags: u32,
    /// The source address that the kernel would choose for its own packets by this way, like the destination; zero where it was not
    /// asked.
    pub source: [u32; 4],
}

const _: () = assert!(size_of::<NextHop>() == 64);

/// The generation in which an element was found, and a count that is odd while somebody writes (a sequence lock): a reader who finds
/// another stamp afterwards has read two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

plain_bits!(Stamp);

impl Stamp {
    /// The generation; 0 while it is being written, and before that.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether somebody is writing the element.
    #[inline(always)]
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        self.0 & 1 != 0
    }

    /// While it is written by the next one.
    #[inline(always)]
    #[must_use]
    pub const fn claimed(self) -> Self {
        Self((self.0 as u32).wrapping_add(1) as u64)
    }

    /// When that is done.
    #[inline(always)]
    #[must_use]
    pub const fn published(self, generation: u32) -> Self {
        Self((generation as u64) << 32 | (self.0 as u32).wrapping_add(1) as u64)
    }
}

/// The two places where a destination may stand.
#[inline(always)]
#[must_use]
pub fn places<F: Family>(dst: &F::Addr) -> [u32; 2] {
    let (mut hash, mut index) = (0_u64, 0);
    while index < F::WORDS {
        hash = (hash ^ F::word(dst, index) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
        index += 1;
    }
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    let first = (hash >> 40) as u32 & (CAPACITY - 1);
    // Never the same one twice.
    [first, first ^ ((hash >> 16) as u32 & (CAPACITY - 1) | 1)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::{V4, V6};

    proptest! {
        #[test]
        fn a_destination_has_two_places(v4: u32, v6: [u32; 4]) {
            for [first, second] in [places::<V4>(&v4), places::<V6>(&v6)] {
                prop_assert!(first != second && first < CAPACITY && second < CAPACITY);
            }
        }
    }

    #[test]
    fn neighbours_in_a_subnet_stand_apart() {
        let mut places: std::vec::Vec<u32> =
            (0..4_096_u32).map(|host| places::<V4>(&(0x0a00_0000 | host).to_be())[0]).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 3_700, "{}", places.len());
    }

    #[test]
    fn a_stamp_that_is_being_written_holds_for_no_generation() {
        let stamp = Stamp::from_bits(0).claimed().published(7);
        assert_eq!(stamp.generation(), 7);
        assert_eq!(stamp.claimed().generation(), 0);
        assert!(!Stamp::from_bits(0).is_claimed() && stamp.claimed().is_claimed() && !stamp.is_claimed());
        assert_ne!(stamp.claimed().published(7), stamp);
    }
}
