// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Fragments: only the first one of a datagram has its ports, which later ones find in a map of their own.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;

/// Ticks for which later fragments are awaited: hosts give up on a datagram after 30 seconds (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TICKS: u32 = 30;

/// A datagram, by what all of its fragments bear, as they arrive (RFC 791 section 3.2, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Identification, as it stands in the packet: two bytes in IPv4, four in IPv6.
    pub identification_be: u32,
    /// IP protocol number of what was cut into fragments.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// What the first fragment told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment {
    /// Source port, network byte order.
    pub sport_be: u16,
    /// Destination port, network byte order.
    pub dport_be: u16,
    /// Tick of the first fragment.
    pub last_seen: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<Fragment>() == 8);
