// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! ICMP errors: the packet is turned into one for its sender (RFC 792, RFC 4443 section 3), from this node's address, quoting
//! as much of it as will fit. Port unreachable where nothing serves; the MTU of the way, or the end of the TTL, where this
//! program and not the kernel would have forwarded it. TC only.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::generated::{bpf_csum_diff, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use lb_common::{
    checksum,
    config::family_index,
    crc32c,
    verdict::{Reason, Stage, Stop},
};

use super::{icmp::Icmp, is_at_net};
use crate::{
    kernel::{
        bounds::opaque,
        clock, maps,
        work::{self, QUOTE_LEN, Quote},
    },
    packet::{
        Packet, SkbPacket,
        crc32c::multiply,
        frame::swapped,
        header::{ETHERNET_LEN, ICMP_LEN, SCTP_LEN, UDP_LEN, ethernet, sctp},
        offload,
        skb::Request,
        wire::Wire as _,
    },
};

const FAILED: Stop = Stop::drop(Reason::RejectFailed);
/// The longest IP header that is quoted, with extension headers.
const MAX_HEADER_LEN: usize = 40 + 256;
/// Turns the packet into the error. It is then to be sent out of the device that it came in by.
#[inline(always)]
pub fn turn_into_error<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Stage<()> {
    let frame = packet.frame(ETHERNET_LEN + F::HEADER_LEN).ok_or(FAILED)?;
    let macs: [u32; 3] = frame.load(0);
    let (client, service): (F::Addr, F::Addr) = (frame.load(F::SRC), frame.load(F::DST));
    if request.l4 == 0 || packet.is_for_many() || !F::is_answerable(&frame, &client, &service) {
        return Err(Stop::drop(Reason::AnswerForbidden));
    }
    let config = maps::config()?;
    let budget = maps::reject_budget().ok_or(Stop::drop(Reason::MapMissing))?;
    if !budget.take(clock::tick(), config.rejects_per_tick) {
        return Err(Stop::drop(Reason::RejectLimit));
    }
    let node = config.node_addresses[family_index(F::IS_V4)];
    // From an address of this node the net's device takes nothing.
    let source = if node.is_unspecified() || is_at_net(packet) { service } else { F::narrow(&node) };

    let quote = work::quote().ok_or(Stop::drop(Reason::MapMissing))?;
    let Quoted { len: quote_len, late } = quote_packet(packet, quote, request)?;
    let shift = F::HEADER_LEN + ICMP_LEN;
    let headers_len = ETHERNET_LEN + shift;
    // SAFETY: a valid context; the helper checks its arguments, and frames are taken anew after it.
    if unsafe { bpf_skb_adjust_room(packet.skb(), shift as i32, BPF_ADJ_ROOM_MAC, 0) } != 0 {
        return Err(FAILED);
    }
    store(packet, headers_len, quote, quote_len)?;
    packet.make_linear(headers_len);
    let frame = packet.frame(headers_len).ok_or(FAILED)?;
    frame.store(0, swapped(macs));
    frame.store(ethernet::ETHERTYPE, F::ETHERTYPE_BE);
    let icmp_len = ICMP_LEN + quote_len;
    F::write_ip(&frame, &source, &client, F::ICMP, icmp_len);
    let pseudo = if F::ICMP_HAS_PSEUDO_HEADER { F::pseudo_sum(&source, &client, F::ICMP, icmp_len) } else { 0 };
    let error = F::error(request);
    frame.store(ETHERNET_LEN + F::HEADER_LEN, error);
    let total = pseudo + late + u64::from(error[0]) + u64::from(error[1]) + sum(quote, 0, quote_len)?;
    frame.store(ETHERNET_LEN + F::HEADER_LEN + 2, checksum::finish(total));
    Ok(())
}

/// Writes a checksum field.
#[inline(always)]
fn set_field(quote: &mut Quote, offset: usize, value: u16) -> Stage<()> {
    let offset = bounded(offset)?;
    // SAFETY: the offset is bounded to lie in the quote's room.
    unsafe { value.store((&raw mut quote.0) as usize + offset) };
    Ok(())
}

/// Writes the quote into the packet.
#[inline(always)]
fn store(packet: &SkbPacket, offset: usize, quote: &Quote, len: usize) -> Stage<()> {
    let len = bounded(len)?;
    // SAFETY: a valid context, and as many bytes.
    let result =
        unsafe { bpf_skb_store_bytes(packet.skb(), offset as u32, (&raw const quote.0).cast(), len as u32, 0) };
    if result == 0 { Ok(()) } else { Err(FAILED) }
}

/// The sum of the 16-bit words in a part of the quote. Offset and length are multiples of 4, each at most [`QUOTE_LEN`].
#[inline(always)]
fn sum(quote: &mut Quote, offset: usize, len: usize) -> Stage<u64> {
    let len = bounded(len)?;
    // SAFETY: offset and length are bounded so that the part lies in the quote's room.
    let sum = unsafe {
        let from = (&raw mut quote.0).cast::<u8>().add(offset).cast();
        bpf_csum_diff(core::ptr::null_mut(), 0, from, len as u32, 0)
    };
    Ok(u64::from(sum as u32))
}

/// A length or offset that is neither zero nor above [`QUOTE_LEN`], in a way that the verifier sees.
#[inline(always)]
fn bounded(len: usize) -> Stage<usize> {
    // verifier: 6.1 and older learn nothing from a comparison with zero ("invalid access to map value, size=0").
    let one_less = opaque(len.wrapping_sub(1));
    if one_less >= QUOTE_LEN { Err(FAILED) } else { Ok(one_less + 1) }
}

/// What is quoted.
struct Quoted {
    /// Length in bytes, a multiple of 4.
    len: usize,
    /// Sum of the words that the device will write where the quote has zeroes.
    late: u64,
}

/// Copies what is to be quoted, and cuts the rest of the packet off.
#[inline(always)]
fn quote_packet(packet: &mut SkbPacket, quote: &mut Quote, request: Request) -> Stage<Quoted> {
    let l4 = request.l4 as usize;
    let header_len = l4.wrapping_sub(ETHERNET_LEN);
    let quote_len = (packet.len() as usize).wrapping_sub(ETHERNET_LEN).min(QUOTE_LEN) & !3;
    if header_len > MAX_HEADER_LEN || quote_len < header_len + UDP_LEN || quote_len > QUOTE_LEN {
        return Err(FAILED);
    }
    let len = bounded(quote_len)?;
    // SAFETY: a valid context, and room for as many bytes.
    let read =
        unsafe { bpf_skb_load_bytes(packet.skb().cast(), ETHERNET_LEN as u32, (&raw mut quote.0).cast(), len as u32) };
    if read != 0 {
        return Err(FAILED);
    }
    let field = offload::cut(packet, l4, ETHERNET_LEN + quote_len)?;
    if field == Some(offload::FIELD_OF_SCTP) {
        let late = zero_crc(quote, header_len)?;
        return Ok(Quoted { len: header_len + SCTP_LEN, late });
    }
    if let Some(check) = field {
        // The device may still complete the quoted checksum, and must not spoil ours by that.
        set_field(quote, header_len + check.get(), 0)?;
        let rest = sum(quote, bounded(header_len)?, quote_len - header_len)?;
        set_field(quote, header_len + check.get(), offload::fixed_point(rest))?;
    }
    Ok(Quoted { len: quote_len, late: 0 })
}

/// Zeroes the checksum of the SCTP header at this offset, and gives the one that the device will write there: a CRC has no such
/// field as would stay what it is, but that of twelve bytes is soon made.
#[inline(always)]
fn zero_crc(quote: &mut Quote, offset: usize) -> Stage<u64> {
    set_field(quote, offset + sctp::CHECK, 0)?;
    set_field(quote, offset + sctp::CHECK + 2, 0)?;
    let header = (&raw const quote.0) as usize + bounded(offset)?;
    // SAFETY: the offset is bounded to lie in the quote's room, which is longer than that by more than a header.
    let (ports, tag) = unsafe { (u32::load(header), u32::load(header + 4)) };
    Ok(u64::from(crc32c::of_header([ports, tag, 0], multiply)))
}
