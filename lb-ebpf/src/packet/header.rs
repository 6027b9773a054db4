// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Header formats (Ethernet, IP, TCP, UDP, SCTP): offsets of all fields that are read or written, and what differs between IPv4 and IPv6.

use lb_common::{
    address::{Family, V4, V6},
    bits::join,
    checksum,
    flow::protocol,
    hash,
    verdict::{Reason, Stage, Stop},
    walk::Walk,
};

use super::{Frame, Packet, XdpPacket, wire::Wire};
use crate::kernel::globals;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Length of a VLAN tag (IEEE 802.1Q).
pub const TAG_LEN: usize = 4;
/// Length of a TCP header without options (RFC 9293 section 3.1).
pub const TCP_LEN: usize = 20;
/// Length of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// Length of both ports, with which TCP, UDP and SCTP begin.
pub const PORTS_LEN: usize = 4;
/// Length of an ICMP or ICMPv6 error's header.
pub const ICMP_LEN: usize = 8;
/// Length of an SCTP packet's common header (RFC 9260 section 3.1).
pub const SCTP_LEN: usize = 12;

/// Offsets in the Ethernet header.
pub mod ethernet {
    pub const ETHERTYPE: usize = 12;
}

/// Whether a VLAN tag stands where an Ethertype is looked for: a customer's or a provider's.
#[inline(always)]
pub const fn is_tag(ethertype_be: u16) -> bool {
    const CUSTOMER_BE: u16 = 0x8100_u16.to_be();
    const PROVIDER_BE: u16 = 0x88a8_u16.to_be();
    matches!(ethertype_be, CUSTOMER_BE | PROVIDER_BE)
}

/// The Ethertype behind up to two VLAN tags (IEEE 802.1Q), and where its packet begins. At TC tags are not in the frame but in
/// the buffer's metadata.
#[inline(always)]
pub fn behind_tags(packet: &XdpPacket) -> (u16, u32) {
    let mut offset = ethernet::ETHERTYPE;
    while offset < ethernet::ETHERTYPE + 2 * TAG_LEN {
        match packet.frame(offset + 2).map(|frame| frame.load(offset)) {
            Some(ethertype) if is_tag(ethertype) => offset += TAG_LEN,
            Some(ethertype) => return (ethertype, offset as u32 + 2),
            None => return (0, 0),
        }
    }
    packet.frame(offset + 2).map_or((0, 0), |frame| (frame.load(offset), offset as u32 + 2))
}

/// Offsets in the TCP header.
pub mod tcp {
    pub const SEQUENCE: usize = 4;
    pub const ACKNOWLEDGEMENT: usize = 8;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const CHECK: usize = 16;
}

/// Offsets in the UDP header.
pub mod udp {
    pub const LENGTH: usize = 4;
    pub const CHECK: usize = 6;
}

/// Offsets in an SCTP packet.
pub mod sctp {
    pub const CHECK: usize = 8;
    /// Type of the first chunk.
    pub const CHUNK: usize = 12;
}

/// What the pipeline must know of a fixed IP header.
pub struct Network {
    /// Protocol after the fixed header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length of the IP packet in bytes as its header says, header included; 0 for one too long for the field.
    pub total_len: u32,
}

/// The parts of a [`Family`] that concern packets. Offsets count from the Ethernet header.
pub trait Header: Family<Addr: Wire> {
    const SRC: usize;
    const DST: usize;

    /// Source address.
    fn src(frame: &Frame<'_>) -> Self::Addr;
    /// Destination address.
    fn dst(frame: &Frame<'_>) -> Self::Addr;
    /// Reads the fixed header; stops what has more headers than that, or contradicts itself.
    fn network(frame: &Frame<'_>) -> Stage<Network>;
    /// TTL or hop limit.
    fn ttl(frame: &Frame<'_>) -> u8;
    /// See [`Network::total_len`].
    fn total_len(frame: &Frame<'_>) -> u32;
    /// Begins the walk over the headers.
    fn walk(frame: &Frame<'_>) -> Walk;
    /// Whether the fixed header says that it is a fragment without a layer-4 header.
    fn is_later_fragment(frame: &Frame<'_>) -> bool;
    /// Whether ICMP may stand behind the headers.
    fn may_be_icmp(frame: &Frame<'_>) -> bool;
    /// Protocol, as it stands in the fixed header.
    fn protocol(frame: &Frame<'_>) -> u8;
    /// Writes both addresses, whose checksum difference is `delta`, and takes one from the TTL where asked; with the header's
    /// checksum.
    fn write_addresses(frame: &Frame<'_>, src: &Self::Addr, dst: &Self::Addr, delta: u16, decrement_ttl: bool);
    /// The cell of an address in the filter.
    fn filter_bit(addr: &Self::Addr) -> u32;
    /// Its bit with port and protocol.
    fn filter_port_bit(addr: &Self::Addr, port_be: u16, protocol: u8) -> u32;
    /// Flags for `bpf_l4_csum_replace` beside those of the pseudo-header.
    fn l4_checksum_flags() -> u64;
}

/// IPv4 (RFC 791 section 3.1).
mod v4 {
    use super::ETHERNET_LEN;
    pub const VERSION_AND_IHL: usize = ETHERNET_LEN;
    pub const TOTAL_LEN: usize = ETHERNET_LEN + 2;
    pub const IDENTIFICATION: usize = ETHERNET_LEN + 4;
    pub const FRAGMENT: usize = ETHERNET_LEN + 6;
    pub const TTL: usize = ETHERNET_LEN + 8;
    pub const PROTOCOL: usize = ETHERNET_LEN + 9;
    pub const CHECK: usize = ETHERNET_LEN + 10;
    /// "More fragments" and the offset.
    pub const FRAGMENT_MASK_BE: u16 = 0x3fff_u16.to_be();
    /// The offset.
    pub const OFFSET_MASK_BE: u16 = 0x1fff_u16.to_be();
}

/// IPv6 (RFC 8200 section 3, section 4).
mod v6 {
    use super::ETHERNET_LEN;
    pub const VERSION: usize = ETHERNET_LEN;
    pub const PAYLOAD_LEN: usize = ETHERNET_LEN + 4;
    pub const NEXT_HEADER: usize = ETHERNET_LEN + 6;
    pub const HOP_LIMIT: usize = ETHERNET_LEN + 7;
}

impl Header for V4 {
    const SRC: usize = ETHERNET_LEN + 12;
    const DST: usize = ETHERNET_LEN + 16;

    #[inline(always)]
    fn src(frame: &Frame<'_>) -> u32 {
        frame.get::<u32, { Self::SRC }>()
    }

    #[inline(always)]
    fn dst(frame: &Frame<'_>) -> u32 {
        frame.get::<u32, { Self::DST }>()
    }

    #[inline(always)]
    fn network(frame: &Frame<'_>) -> Stage<Network> {
        let version_and_ihl: u8 = frame.get::<_, { v4::VERSION_AND_IHL }>();
        if version_and_ihl != 0x45 {
            let has_options = version_and_ihl > 0x45 && version_and_ihl <= 0x4f;
            return Err(if has_options { Stop::RARE } else { Stop::pass(Reason::Malformed) });
        }
        if frame.get::<u16, { v4::FRAGMENT }>() & v4::FRAGMENT_MASK_BE != 0 {
            return Err(Stop::RARE);
        }
        Ok(Network { protocol: Self::protocol(frame), ttl: Self::ttl(frame), total_len: Self::total_len(frame) })
    }

    #[inline(always)]
    fn ttl(frame: &Frame<'_>) -> u8 {
        frame.get::<_, { v4::TTL }>()
    }

    #[inline(always)]
    fn total_len(frame: &Frame<'_>) -> u32 {
        u32::from(u16::from_be(frame.get::<_, { v4::TOTAL_LEN }>()))
    }

    #[inline(always)]
    fn walk(frame: &Frame<'_>) -> Walk {
        let fragment = frame.load(v4::FRAGMENT);
        Walk::v4(frame.load(v4::VERSION_AND_IHL), frame.load(v4::IDENTIFICATION), fragment, Self::protocol(frame))
    }

    #[inline(always)]
    fn may_be_icmp(frame: &Frame<'_>) -> bool {
        Self::protocol(frame) == protocol::ICMP
    }

    #[inline(always)]
    fn is_later_fragment(frame: &Frame<'_>) -> bool {
        frame.get::<u16, { v4::FRAGMENT }>() & v4::OFFSET_MASK_BE != 0
    }

    #[inline(always)]
    fn protocol(frame: &Frame<'_>) -> u8 {
        frame.get::<_, { v4::PROTOCOL }>()
    }

    #[inline(always)]
    fn write_addresses(frame: &Frame<'_>, src: &u32, dst: &u32, delta: u16, decrement_ttl: bool) {
        let mut deltas = u32::from(delta);
        if decrement_ttl {
            frame.put::<u8, { v4::TTL }>(Self::ttl(frame).wrapping_sub(1));
            deltas += u32::from(checksum::TTL_DELTA);
        }
        let check = frame.get::<u16, { v4::CHECK }>();
        frame.put::<u16, { v4::CHECK }>(checksum::apply(check, deltas));
        frame.put::<u32, { Self::SRC }>(*src);
        frame.put::<u32, { Self::DST }>(*dst);
    }

    #[inline(always)]
    fn filter_bit(addr: &u32) -> u32 {
        hash::filter_bit_v4(*addr)
    }

    #[inline(always)]
    fn filter_port_bit(addr: &u32, port_be: u16, protocol: u8) -> u32 {
        hash::filter_port_bit_v4(*addr, port_be, protocol)
    }

    #[inline(always)]
    fn l4_checksum_flags() -> u64 {
        0
    }
}

impl Header for V6 {
    const SRC: usize = ETHERNET_LEN + 8;
    const DST: usize = ETHERNET_LEN + 24;

    #[inline(always)]
    fn src(frame: &Frame<'_>) -> [u32; 4] {
        [
            frame.get::<u32, { Self::SRC }>(),
            frame.get::<u32, { Self::SRC + 4 }>(),
            frame.get::<u32, { Self::SRC + 8 }>(),
            frame.get::<u32, { Self::SRC + 12 }>(),
        ]
    }

    #[inline(always)]
    fn dst(frame: &Frame<'_>) -> [u32; 4] {
        [
            frame.get::<u32, { Self::DST }>(),
            frame.get::<u32, { Self::DST + 4 }>(),
            frame.get::<u32, { Self::DST + 8 }>(),
            frame.get::<u32, { Self::DST + 12 }>(),
        ]
    }

    #[inline(always)]
    fn network(frame: &Frame<'_>) -> Stage<Network> {
        if frame.get::<u8, { v6::VERSION }>() >> 4 != 6 {
            return Err(Stop::pass(Reason::Malformed));
        }
        Ok(Network { protocol: Self::protocol(frame), ttl: Self::ttl(frame), total_len: Self::total_len(frame) })
    }

    #[inline(always)]
    fn ttl(frame: &Frame<'_>) -> u8 {
        frame.get::<_, { v6::HOP_LIMIT }>()
    }

    #[inline(always)]
    fn total_len(frame: &Frame<'_>) -> u32 {
        let payload_len = u32::from(u16::from_be(frame.get::<_, { v6::PAYLOAD_LEN }>()));
        if payload_len == 0 { 0 } else { payload_len + Self::HEADER_LEN as u32 }
    }

    #[inline(always)]
    fn walk(frame: &Frame<'_>) -> Walk {
        Walk::v6(frame.load(v6::VERSION), Self::protocol(frame))
    }

    #[inline(always)]
    fn may_be_icmp(frame: &Frame<'_>) -> bool {
        Self::walk(frame).is_at_header() || Self::protocol(frame) == protocol::ICMPV6
    }

    #[inline(always)]
    fn is_later_fragment(_frame: &Frame<'_>) -> bool {
        false
    }

    #[inline(always)]
    fn protocol(frame: &Frame<'_>) -> u8 {
        frame.get::<_, { v6::NEXT_HEADER }>()
    }

    #[inline(always)]
    fn write_addresses(frame: &Frame<'_>, src: &[u32; 4], dst: &[u32; 4], _delta: u16, decrement_ttl: bool) {
        if decrement_ttl {
            frame.put::<u8, { v6::HOP_LIMIT }>(Self::ttl(frame).wrapping_sub(1));
        }
        frame.put::<u64, { Self::SRC }>(join(src[0], src[1]));
        frame.put::<u64, { Self::SRC + 8 }>(join(src[2], src[3]));
        frame.put::<u64, { Self::DST }>(join(dst[0], dst[1]));
        frame.put::<u64, { Self::DST + 8 }>(join(dst[2], dst[3]));
    }

    #[inline(always)]
    fn filter_bit(addr: &[u32; 4]) -> u32 {
        hash::filter_bit(addr)
    }

    #[inline(always)]
    fn filter_port_bit(addr: &[u32; 4], port_be: u16, protocol: u8) -> u32 {
        hash::filter_port_bit(addr, port_be, protocol)
    }

    #[inline(always)]
    fn l4_checksum_flags() -> u64 {
        globals::l4_csum_v6_flags()
    }
}
