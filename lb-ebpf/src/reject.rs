// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Rejecting: the packet is turned into an ICMP port-unreachable to its sender (RFC 792; RFC 4443 section 3.1), from this
//! node's address, quoting the IP header and the layer-4 header. TC only.

use aya_ebpf::{bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, helpers::generated::bpf_skb_adjust_room};
use lb_common::{
    address::{Family, V4, V6},
    checksum,
    config::family_index,
    flow::protocol,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    clock,
    header::{ETHERNET_LEN, Header, TCP_LEN, UDP_LEN, ethernet, tcp, udp},
    maps, offload,
    packet::{Frame, Packet, SkbPacket, swapped},
};

/// Length of an ICMP or ICMPv6 error's header.
const ICMP_LEN: usize = 8;
/// TTL and hop limit of our own packets: Linux' default.
const TTL: u8 = 64;

/// What our own packets need of a family. Offsets count from the Ethernet header.
pub trait Icmp: Header {
    /// Protocol number.
    const ICMP: u8;
    /// Type and code of "port unreachable", network byte order.
    const PORT_UNREACHABLE_BE: u16;
    /// Whether ICMP's checksum covers a pseudo-header.
    const ICMP_HAS_PSEUDO_HEADER: bool;

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
    const PORT_UNREACHABLE_BE: u16 = 0x0303_u16.to_be();
    const ICMP_HAS_PSEUDO_HEADER: bool = false;

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
    const PORT_UNREACHABLE_BE: u16 = 0x0104_u16.to_be();
    const ICMP_HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn write_ip(frame: &Frame<'_>, src: &[u32; 4], dst: &[u32; 4], protocol: u8, payload_len: usize) {
        let lengths = (payload_len as u32) << 16 | u32::from(protocol) << 8 | u32::from(TTL);
        frame.store(ETHERNET_LEN, [0x6000_0000_u32.to_be(), lengths.to_be()]);
        frame.store(Self::SRC, *src);
        frame.store(Self::DST, *dst);
    }
}

/// Turns the packet into the error. It is then to be sent out of the device that it came in by.
#[inline(always)]
pub fn turn_into_error<F: Icmp>(packet: &mut SkbPacket) -> Stage<()> {
    let config = maps::config()?;
    let budget = maps::reject_budget().ok_or(Stop::drop(Reason::MapMissing))?;
    if !budget.take(clock::now(), config.rejects_per_tick) {
        return Err(Stop::drop(Reason::RejectLimit));
    }
    let is_tcp = is_tcp::<F>(packet)?;
    // The whole TCP header: where its checksum is left to the device, the kernel refuses to cut it off.
    if is_tcp {
        turn_round::<F, { TCP_LEN / 4 }>(packet, tcp::CHECK)
    } else {
        turn_round::<F, { UDP_LEN / 4 }>(packet, udp::CHECK)
    }
}

#[inline(always)]
fn is_tcp<F: Icmp>(packet: &SkbPacket) -> Stage<bool> {
    let frame = packet.frame(ETHERNET_LEN + F::HEADER_LEN).ok_or(Stop::drop(Reason::RejectFailed))?;
    Ok(F::protocol(&frame) == protocol::TCP)
}

/// `WORDS` is the length of the layer-4 header that is quoted, and `check` the offset of its checksum.
#[inline(always)]
fn turn_round<F: Icmp, const WORDS: usize>(packet: &mut SkbPacket, check: usize) -> Stage<()> {
    let failed = Stop::drop(Reason::RejectFailed);
    let l4 = ETHERNET_LEN + F::HEADER_LEN;
    let quote_len = F::HEADER_LEN + 4 * WORDS;
    let headers_len = ETHERNET_LEN + F::HEADER_LEN + ICMP_LEN;
    let shift = F::HEADER_LEN + ICMP_LEN;

    let frame = packet.frame(l4 + 4 * WORDS).ok_or(failed)?;
    let macs: [u32; 3] = frame.load(0);
    let header: [u32; WORDS] = frame.load(l4);
    let is_offloaded = offload::cut(packet, l4, l4 + 4 * WORDS)?;
    // SAFETY: a valid context; the helper checks its arguments, and the frame is taken anew after it.
    if unsafe { bpf_skb_adjust_room(packet.skb(), shift as i32, BPF_ADJ_ROOM_MAC, 0) } != 0 {
        return Err(failed);
    }
    packet.make_linear(headers_len + quote_len);
    let frame = packet.frame(headers_len + quote_len).ok_or(failed)?;

    frame.store(l4 + shift, header);
    if is_offloaded {
        // The device may still complete the quoted checksum, and must not spoil ours by that.
        frame.store::<u16>(l4 + shift + check, 0);
        frame.store(l4 + shift + check, offload::fixed_point(sum::<WORDS>(&frame, l4 + shift)));
    }
    // The quote's own addresses, which now stand behind the new headers.
    let (client, service): (F::Addr, F::Addr) = (frame.load(F::SRC + shift), frame.load(F::DST + shift));
    let node = maps::config()?.node_addresses[family_index(F::IS_V4)];
    let source = if node.is_unspecified() { service } else { F::narrow(&node) };

    frame.store(0, swapped(macs));
    frame.store(ethernet::ETHERTYPE, F::ETHERTYPE_BE);
    let icmp_len = ICMP_LEN + quote_len;
    F::write_ip(&frame, &source, &client, F::ICMP, icmp_len);
    let pseudo = if F::ICMP_HAS_PSEUDO_HEADER { F::pseudo_sum(&source, &client, F::ICMP, icmp_len) } else { 0 };
    frame.store(l4, [u32::from(F::PORT_UNREACHABLE_BE), 0]);
    let mut total = pseudo + u64::from(F::PORT_UNREACHABLE_BE) + sum::<WORDS>(&frame, l4 + shift);
    let mut offset = headers_len;
    while offset < headers_len + F::HEADER_LEN {
        total += u64::from(frame.load::<u32>(offset));
        offset += 4;
    }
    frame.store(l4 + 2, checksum::finish(total));
    Ok(())
}

/// The sum of so many words.
#[inline(always)]
fn sum<const WORDS: usize>(frame: &Frame<'_>, offset: usize) -> u64 {
    frame.load::<[u32; WORDS]>(offset).iter().map(|&word| u64::from(word)).sum()
}
