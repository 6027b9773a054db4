// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! ICMP and ICMPv6 for our own packets: which error, for whom, under which IP header.

use lb_common::{
    address::{Family, V4, V6},
    checksum,
    flow::protocol,
    verdict::Reason,
};

use crate::packet::{
    Frame,
    header::{ETHERNET_LEN, Header},
    skb::Request,
};

/// TTL and hop limit of our own packets: Linux' default.
const TTL: u8 = 64;

/// What our own packets need of a family. Offsets count from the Ethernet header.
pub trait Icmp: Header {
    /// Protocol number.
    const ICMP: u8;
    /// Whether ICMP's checksum covers a pseudo-header.
    const ICMP_HAS_PSEUDO_HEADER: bool;

    /// The two words of the error's header, without checksum, as they stand in memory.
    fn error(request: Request) -> [u32; 2];
    /// Whether hosts and routers answer such a packet: not a later fragment, and nothing from or to many (RFC 1122 section
    /// 3.2.2, RFC 4443 section 2.4 (e)). ICMP errors, which nobody answers either, don't come here: see `pipeline`.
    fn is_answerable(frame: &Frame<'_>, src: &Self::Addr, dst: &Self::Addr) -> bool;

    /// Writes the IP header of a packet with `payload_len` bytes behind it.
    fn write_ip(frame: &Frame<'_>, src: &Self::Addr, dst: &Self::Addr, protocol: u8, payload_len: usize);

    /// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
    #[inline(always)]
    fn pseudo_sum(src: &Self::Addr, dst: &Self::Addr, protocol: u8, payload_len: usize) -> u64 {
        let (src, dst) = (Self::first_words(src), Self::first_words(dst));
        let mut sum = u64::from((payload_len as u32).to_be()) + u64::from(u32::from(protocol).to_be());
        let mut index = 0;
        while index < Self::WORDS {
            sum += u64::from(src[index]) + u64::from(dst[index]);
            index += 1;
        }
        sum
    }
}

impl Icmp for V4 {
    const ICMP: u8 = protocol::ICMP;
    const ICMP_HAS_PSEUDO_HEADER: bool = false;

    #[inline(always)]
    fn error(request: Request) -> [u32; 2] {
        if request.reason == Reason::TooBig as u32 {
            // Destination unreachable, fragmentation needed; the MTU as RFC 1191 section 4 has it.
            [0x0304_0000_u32.to_be(), request.mtu.to_be()]
        } else if request.reason == Reason::TtlExpired as u32 {
            // Time exceeded in transit.
            [0x0b00_0000_u32.to_be(), 0]
        } else {
            // Destination unreachable, port unreachable.
            [0x0303_0000_u32.to_be(), 0]
        }
    }

    #[inline(always)]
    fn is_answerable(frame: &Frame<'_>, src: &u32, dst: &u32) -> bool {
        // Multicast and the limited broadcast. Not all of the reserved range: there are clusters that have their addresses there.
        let is_many = |address: u32| address >> 28 == 0xe || address == u32::MAX;
        let (from, to) = (u32::from_be(*src), u32::from_be(*dst));
        // "This" network, and loopback.
        let is_one_sender = from >> 24 != 0 && from >> 24 != 127 && !is_many(from);
        is_one_sender && !is_many(to) && !Self::is_later_fragment(frame)
    }

    #[inline(always)]
    fn write_ip(frame: &Frame<'_>, src: &u32, dst: &u32, protocol: u8, payload_len: usize) {
        let total_len = (Self::HEADER_LEN + payload_len) as u32;
        let words: [u32; 5] = [
            (0x4500_0000 | total_len).to_be(),
            // Don't fragment: then the identification may be zero (RFC 6864).
            0x0000_4000_u32.to_be(),
            (u32::from(TTL) << 24 | u32::from(protocol) << 16).to_be(),
            *src,
            *dst,
        ];
        let check = checksum::finish(words.iter().map(|&word| u64::from(word)).sum());
        frame.store(ETHERNET_LEN, words);
        frame.store(ETHERNET_LEN + 10, check);
    }
}

impl Icmp for V6 {
    const ICMP: u8 = protocol::ICMPV6;
    const ICMP_HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn error(request: Request) -> [u32; 2] {
        if request.reason == Reason::TooBig as u32 {
            // Packet too big.
            [0x0200_0000_u32.to_be(), request.mtu.to_be()]
        } else if request.reason == Reason::TtlExpired as u32 {
            // Hop limit exceeded in transit.
            [0x0300_0000_u32.to_be(), 0]
        } else {
            // Destination unreachable, port unreachable.
            [0x0104_0000_u32.to_be(), 0]
        }
    }

    /// Behind extension headers no later fragment is seen: who walks them asks for no answer.
    #[inline(always)]
    fn is_answerable(_frame: &Frame<'_>, src: &[u32; 4], dst: &[u32; 4]) -> bool {
        let is_multicast = |address: &[u32; 4]| address[0].to_ne_bytes()[0] == 0xff;
        let is_unspecified_or_loopback = src[0] | src[1] | src[2] == 0 && u32::from_be(src[3]) <= 1;
        !is_multicast(src) && !is_multicast(dst) && !is_unspecified_or_loopback
    }

    #[inline(always)]
    fn write_ip(frame: &Frame<'_>, src: &[u32; 4], dst: &[u32; 4], protocol: u8, payload_len: usize) {
        let lengths = (payload_len as u32) << 16 | u32::from(protocol) << 8 | u32::from(TTL);
        frame.store(ETHERNET_LEN, [0x6000_0000_u32.to_be(), lengths.to_be()]);
        frame.store(Self::SRC, *src);
        frame.store(Self::DST, *dst);
    }
}
