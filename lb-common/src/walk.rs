// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! From an IP header to what stands behind all IP headers: options (RFC 791 section 3.1) and extension headers (RFC 8200
//! section 4), within bounds.
//!
//! A [`Walk`] is one plain word that goes from step to step, so that each step can be a global function of the eBPF programs.
//! Offsets count from the start of the IP header.

use crate::bits::plain_bits;

/// Extension headers that are followed.
pub const MOST_HEADERS: u32 = 6;
/// Bytes of extension headers that are followed.
pub const MOST_BYTES: u32 = 256;
/// No offset of a walk that has not failed is greater.
pub const MOST_OFFSET: u32 = V6_LEN + MOST_BYTES;

const V6_LEN: u32 = 40;

/// Next-header values of the extension headers that are followed (IANA).
mod header {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it. An IPv6 fragment that is all of its datagram is none (RFC 6946).
    Whole,
    /// Its beginning.
    First,
    /// Something behind that.
    Later,
}

/// Why a walk ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The headers contradict each other, or are cut off.
    Malformed,
    /// There are more of them, or more bytes of them, than are followed.
    TooMany,
}

/// How far a walk over a packet's headers has come.
///
/// ```text
///  63            32 31   27 26     24 23       8 7        0
///  | identification | flags | headers | flag, at | protocol |
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk(u64);

plain_bits!(Walk);

impl Walk {
    const FIRST: u64 = 1 << 28;
    const LATER: u64 = 1 << 29;
    const MALFORMED: u64 = 1 << 30;
    const TOO_MANY: u64 = 1 << 31;
    const HAS_FRAGMENT_HEADER: u64 = 1 << 27;
    /// An extension header is what comes next.
    const AT_HEADER: u64 = 1 << 23;
    /// Over a packet whose IP header is not all there.
    pub const MISSING: Self = Self(Self::MALFORMED);

    /// Of an IPv4 packet, from four fields of its header; those of two bytes in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(version_and_len: u8, identification_be: u16, fragment_be: u16, protocol: u8) -> Self {
        let fragment = u16::from_be(fragment_be);
        let part = part_flags(fragment & 0x2000 != 0, fragment & 0x1fff != 0);
        let len = (version_and_len & 0xf) as u64 * 4;
        let is_good = version_and_len >= 0x45 && version_and_len <= 0x4f;
        let fault = if is_good { 0 } else { Self::MALFORMED };
        Self((identification_be as u64) << 32 | fault | part | len << 8 | protocol as u64)
    }

    /// Of an IPv6 packet, from the first byte of its header and its next header.
    #[inline(always)]
    #[must_use]
    pub const fn v6(version_and_class: u8, next_header: u8) -> Self {
        let fault = if version_and_class >> 4 == 6 { 0 } else { Self::MALFORMED };
        Self(fault | header_flag(next_header) | (V6_LEN as u64) << 8 | next_header as u64)
    }

    /// Whether an extension header stands at [`Walk::offset`] that is to be stepped over. Behind the header of a later
    /// fragment there is none: what follows is the middle of something.
    #[inline(always)]
    #[must_use]
    pub const fn is_at_header(self) -> bool {
        self.0 & (Self::AT_HEADER | Self::MALFORMED | Self::TOO_MANY) == Self::AT_HEADER
    }

    /// Steps over an extension header of an IPv6 packet that has `room` bytes from the IP header on. `header` are its first
    /// eight bytes as they stand in memory; any, where they are not all there.
    #[inline(always)]
    #[must_use]
    pub const fn step(self, header: u64, room: u32) -> Self {
        let count = (self.0 >> 24) as u32 & 0x7;
        if count >= MOST_HEADERS {
            return self.failed(Self::TOO_MANY);
        }
        if self.offset() + 8 > room {
            return self.failed(Self::MALFORMED);
        }
        let first = (u64::from_be(header) >> 32) as u32;
        let units = first >> 16 & 0xff;
        let is_fragment = self.protocol() == header::FRAGMENT;
        let len = match self.protocol() {
            header::FRAGMENT => 8,
            header::AUTHENTICATION => 4 * (units + 2),
            _ => 8 * (units + 1),
        };
        let end = self.offset() + len;
        if end > MOST_OFFSET {
            return self.failed(Self::TOO_MANY);
        }
        if end > room || (is_fragment && self.0 & Self::HAS_FRAGMENT_HEADER != 0) {
            return self.failed(Self::MALFORMED);
        }
        let next_header = (first >> 24) as u8;
        // The number of headers stands above what is replaced.
        let kept = ((self.0 & !0x00ff_ffff) + (1 << 24)) | (end as u64) << 8 | next_header as u64;
        if !is_fragment {
            return Self(kept | header_flag(next_header));
        }
        let part = part_flags(first & 1 != 0, first & 0xfff8 != 0);
        let flag = if part == Self::LATER { 0 } else { header_flag(next_header) };
        // Its second word, as a load would give it.
        let identification_be = if cfg!(target_endian = "little") { header >> 32 << 32 } else { header << 32 };
        Self(kept | flag | Self::HAS_FRAGMENT_HEADER | part | identification_be)
    }

    #[inline(always)]
    const fn failed(self, fault: u64) -> Self {
        Self(self.0 | fault)
    }

    /// What stands at the offset: after the walk, the transport protocol.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        self.0 as u8
    }

    /// Offset of what comes next; at most [`MOST_OFFSET`], masked so that the verifier sees a bound.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 >> 8) as u32 & 0x1ff
    }

    /// Which part of a datagram this is.
    #[inline(always)]
    #[must_use]
    pub const fn part(self) -> Part {
        if self.0 & Self::LATER != 0 {
            Part::Later
        } else if self.0 & Self::FIRST != 0 {
            Part::First
        } else {
            Part::Whole
        }
    }

    /// Whose part it is: the datagram's identification as it stands in memory.
    #[inline(always)]
    #[must_use]
    pub const fn identification_be(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What was wrong.
    #[inline(always)]
    #[must_use]
    pub const fn fault(self) -> Option<Fault> {
        if self.0 & Self::MALFORMED != 0 {
            Some(Fault::Malformed)
        } else if self.0 & Self::TOO_MANY != 0 {
            Some(Fault::TooMany)
        } else {
            None
        }
    }
}

#[inline(always)]
const fn header_flag(protocol: u8) -> u64 {
    let is_header = matches!(
        protocol,
        header::HOP_BY_HOP | header::ROUTING | header::FRAGMENT | header::AUTHENTICATION | header::DESTINATION_OPTIONS
    );
    if is_header { Walk::AT_HEADER } else { 0 }
}

#[inline(always)]
const fn part_flags(has_more: bool, has_offset: bool) -> u64 {
    if has_offset {
        Walk::LATER
    } else if has_more {
        Walk::FIRST
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    use super::*;

    /// As the programs walk.
    fn walk(next_header: u8, headers: &[u8]) -> Walk {
        let room = V6_LEN + headers.len() as u32;
        let mut walk = Walk::v6(0x60, next_header);
        for _ in 0..=MOST_HEADERS {
            if walk.is_at_header() {
                let at = (walk.offset() - V6_LEN) as usize;
                let header = headers.get(at..at + 8).map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().unwrap()));
                walk = walk.step(header, room);
            }
        }
        walk
    }

    /// An extension header of so many bytes.
    fn header(kind: u8, next: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = next;
        bytes[1] = match kind {
            header::FRAGMENT => 0,
            header::AUTHENTICATION => (len / 4 - 2) as u8,
            _ => (len / 8 - 1) as u8,
        };
        bytes
    }

    fn fragment(next: u8, offset_and_more: u16) -> Vec<u8> {
        let [high, low] = offset_and_more.to_be_bytes();
        vec![next, 0, high, low, 0xde, 0xad, 0xbe, 0xef]
    }

    #[test]
    fn an_ipv4_header_with_options_is_a_longer_one() {
        for words in 5..=15 {
            let walk = Walk::v4(0x40 | words, 0, 0x4000_u16.to_be(), 6);
            assert_eq!((walk.fault(), walk.offset(), walk.protocol()), (None, u32::from(words) * 4, 6));
            assert_eq!((walk.part(), walk.is_at_header()), (Part::Whole, false));
        }
        for wrong in [0x00, 0x44, 0x55, 0x65, 0xff] {
            assert_eq!(Walk::v4(wrong, 0, 0, 6).fault(), Some(Fault::Malformed));
        }
    }

    #[test]
    fn an_ipv4_fragment_has_its_place_and_its_name() {
        for (field, part) in
            [(0x2000, Part::First), (0x2001, Part::Later), (0x1fff, Part::Later), (0x8000, Part::Whole)]
        {
            let walk = Walk::v4(0x45, 0x1234_u16.to_be(), u16::to_be(field), 17);
            assert_eq!((walk.part(), walk.identification_be()), (part, u32::from(0x1234_u16.to_be())));
        }
    }

    #[test]
    fn every_extension_header_is_stepped_over() {
        use header::{AUTHENTICATION, DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING};
        let chain = [
            header(HOP_BY_HOP, DESTINATION_OPTIONS, 16),
            header(DESTINATION_OPTIONS, ROUTING, 8),
            header(ROUTING, header::FRAGMENT, 24),
            fragment(AUTHENTICATION, 1),
            header(AUTHENTICATION, DESTINATION_OPTIONS, 24),
            header(DESTINATION_OPTIONS, 6, 8),
        ];
        let walk = walk(HOP_BY_HOP, &chain.concat());
        assert_eq!((walk.fault(), walk.offset(), walk.protocol()), (None, 40 + 88, 6));
        assert_eq!((walk.part(), walk.identification_be().to_ne_bytes()), (Part::First, [0xde, 0xad, 0xbe, 0xef]));
        assert!(!walk.is_at_header());
    }

    #[test]
    fn nothing_is_read_behind_the_header_of_a_later_fragment() {
        for offset_and_more in [8, 9, 0xfff8] {
            let walk = walk(header::FRAGMENT, &fragment(header::DESTINATION_OPTIONS, offset_and_more));
            assert_eq!((walk.fault(), walk.part(), walk.offset()), (None, Part::Later, 48));
            assert_eq!(walk.protocol(), header::DESTINATION_OPTIONS);
        }
    }

    #[test]
    fn a_fragment_that_is_all_of_its_datagram_is_none() {
        let walk = walk(header::FRAGMENT, &fragment(17, 0));
        assert_eq!((walk.fault(), walk.part(), walk.protocol()), (None, Part::Whole, 17));
    }

    #[test]
    fn two_fragment_headers_contradict_each_other() {
        let twice = [fragment(header::FRAGMENT, 0), fragment(17, 0)].concat();
        assert_eq!(walk(header::FRAGMENT, &twice).fault(), Some(Fault::Malformed));
    }

    #[test]
    fn six_headers_and_256_bytes_are_followed_and_no_more() {
        use header::DESTINATION_OPTIONS as OPTIONS;
        let chain = |count: usize, len: usize| {
            let mut chain = vec![header(OPTIONS, OPTIONS, 8); count - 1];
            chain.push(header(OPTIONS, 6, len));
            walk(OPTIONS, &chain.concat())
        };
        for (count, len, fault) in [
            (6, 8, None),
            (7, 8, Some(Fault::TooMany)),
            (1, 256, None),
            (1, 264, Some(Fault::TooMany)),
            (6, 216, None),
            (6, 224, Some(Fault::TooMany)),
        ] {
            assert_eq!(chain(count, len).fault(), fault, "{count} headers, the last of {len} bytes");
        }
    }

    #[test]
    fn a_packet_that_ends_within_a_header_is_malformed() {
        let whole = [header(0, 43, 16), header(43, 6, 8)].concat();
        for len in 0..whole.len() {
            assert_eq!(walk(0, &whole[..len]).fault(), Some(Fault::Malformed), "{len} bytes");
        }
        assert_eq!(walk(0, &whole).fault(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(next_header: u8, headers in prop::collection::vec(any::<u8>(), 0..400)) {
            let walk = walk(next_header, &headers);
            prop_assert!(!walk.is_at_header());
            prop_assert!(walk.offset() <= MOST_OFFSET);
            if walk.fault().is_none() {
                prop_assert!(walk.offset() as usize <= V6_LEN as usize + headers.len());
            }
            prop_assert_eq!(Walk::from_bits(walk.to_bits()), walk);
        }
    }
}
