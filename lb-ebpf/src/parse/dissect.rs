// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Dissects packets that are not plain: where their headers are, and what they are to us. The counterpart of
//! [`plain`](super::plain); the outcome is [`Dissected`] and a 5-tuple in the scratch space.

use lb_common::{
    filter::Filter,
    flow::{FlowKey, Hook, protocol, sctp_chunk, tcp_flags},
    verdict::{Reason, Stage, Stop},
    walk::{Fault, MOST_OFFSET, Part},
};

use super::{
    filter::{concerns, is_cluster_ip, knows, may_be_direct},
    fragment,
    plain::read_tcp,
    quote,
    walk::walk,
};
use crate::{
    kernel::{
        global_fn, maps,
        work::{self, Dissected, Offsets, Parsed, Scratch, kind},
    },
    packet::{
        Frame, Packet,
        header::{ETHERNET_LEN, Header, ICMP_LEN, PORTS_LEN, SCTP_LEN, TCP_LEN, UDP_LEN, sctp, tcp, udp},
        layout::ip_at,
    },
};

const MALFORMED: Stop = Stop::pass(Reason::Malformed);
/// Longest stretch of headers that is looked at: two packets', one in an ICMP error about the other.
pub const MOST_BYTES: usize = ETHERNET_LEN + 2 * MOST_OFFSET as usize + ICMP_LEN + TCP_LEN;

global_fn! {
    /// [`dissect`].
    pub fn dissect_global<P: Packet, F: Header>(packet: &P, l3: u32, hook: Hook) -> Stage<()>
        = dissect => dissect_xdp_v4 | dissect_xdp_v6 | dissect_tc_v4 | dissect_tc_v6
}

/// Dissects the packet whose IP header is at `l3`. The outcome is valid where its addresses concern us.
#[inline(always)]
fn dissect<P: Packet, F: Header>(packet: &P, l3: u32, hook: Hook) -> Stage<()> {
    let ip = ip_at::<F>(packet, l3).ok_or(Stop::NOT_OURS)?;
    let (src, dst): (F::Addr, F::Addr) = (ip.load(F::SRC), ip.load(F::DST));
    let filter = maps::filter().ok_or(Stop::drop(Reason::MapMissing))?;
    let known = knows::<F>(hook, filter, &src, &dst);
    let is_known = known != 0;
    let may_be_direct = may_be_direct::<P, F>(packet, filter, hook, &dst);
    // Any router may send an error about a packet of ours.
    if !is_known && !may_be_direct && (hook != Hook::Egress || !F::may_be_icmp(&ip)) {
        return Err(Stop::NOT_OURS);
    }
    if hook != Hook::Egress && packet.is_translated() {
        // By another door.
        return Err(Stop::NOT_OURS);
    }
    let (ttl, end) = (F::ttl(&ip), end(packet, l3, F::total_len(&ip)));
    let walk = walk::<_, F>(packet, l3, end.min(packet.len()).wrapping_sub(l3));
    let scratch = work::scratch::<F>()?;
    let key = FlowKey::new(src, dst, 0, 0, walk.protocol());
    let is_trace = u16::from(packet.is_trace());
    scratch.parsed = Parsed { key, ttl, tcp_flags: 0, is_trace, sequence: 0, acknowledgement: 0 };
    let at = Offsets { l3, l4: l3 + walk.offset() };
    let identification_be = walk.identification_be();
    scratch.dissected = Dissected { kind: kind::SEGMENT, identification_be, at, end, quote: at };
    // So short that it is not even a damaged packet, unless it is the last bytes of one.
    let is_stub = packet.len() < l3 + (F::HEADER_LEN + UDP_LEN) as u32;
    if let Some(fault) = walk.fault() {
        return Err(if is_known && !is_stub { stop_of(fault, scratch) } else { Stop::NOT_OURS });
    }
    (scratch.is_direct, scratch.is_net) = (0, u32::from(hook == Hook::Net));
    if !is_known && may_be_direct {
        read_ports(packet, scratch, walk.part()).map_err(|_| Stop::NOT_OURS)?;
        return dissect_direct(packet, filter, scratch, walk.part());
    }
    match walk.protocol() {
        protocol::TCP | protocol::UDP | protocol::SCTP if is_known => match walk.part() {
            Part::Later if end <= packet.len() && at.l4 <= end => fragment::find(scratch, hook),
            _ if is_stub => Err(Stop::NOT_OURS),
            Part::Later => Err(MALFORMED),
            part => {
                read_ports(packet, scratch, part)?;
                if !concerns(hook, filter, known, &scratch.parsed.key) {
                    return if may_be_direct {
                        dissect_direct(packet, filter, scratch, walk.part())
                    } else {
                        Err(Stop::NOT_OURS)
                    };
                }
                check_length(packet, scratch)?;
                read_segment(packet, scratch)
            }
        },
        protocol if is_icmp::<F>(protocol) && hook != Hook::Egress && is_echo::<_, F>(packet, scratch, walk.part()) => {
            // Nobody has that address (rule 44).
            Err(if is_cluster_ip(scratch) { Stop::reject(Reason::UndefinedPort) } else { Stop::NOT_OURS })
        }
        protocol if is_icmp::<F>(protocol) && walk.part() == Part::Whole => quote::find(packet, scratch, hook),
        _ => Err(Stop::NOT_OURS),
    }
}

/// The same for a packet that may be a pod's to a backend itself, with what stands where ports would: as a whole, without fragments, or
/// none of our business.
#[inline(always)]
fn dissect_direct<P: Packet, F: Header>(
    packet: &P,
    filter: &Filter,
    scratch: &mut Scratch<F>,
    part: Part,
) -> Stage<()> {
    let key = &scratch.parsed.key;
    let has_ports = matches!(key.protocol, protocol::TCP | protocol::UDP) && part == Part::Whole;
    if !has_ports || !filter.has_backend(F::filter_port_bit(&key.dst, key.dport_be, key.protocol)) {
        return Err(Stop::NOT_OURS);
    }
    let read = check_length(packet, scratch).and_then(|()| read_segment(packet, scratch));
    read.map_err(|_| Stop::NOT_OURS)?;
    scratch.is_direct = 1;
    Ok(())
}

/// Where the packet ends. See [`plain`](super::plain) for the length of zero.
#[inline(always)]
fn end<P: Packet>(packet: &P, l3: u32, total_len: u32) -> u32 {
    if total_len == 0 && packet.len() > 0xffff { packet.len() } else { l3 + total_len }
}

#[inline(always)]
const fn is_icmp<F: Header>(protocol: u8) -> bool {
    protocol == if F::IS_V4 { protocol::ICMP } else { protocol::ICMPV6 }
}

/// Whether an ICMP packet in the scratch space is an echo request, or the beginning of one (RFC 792, RFC 4443 section 4.1).
#[inline(always)]
fn is_echo<P: Packet, F: Header>(packet: &P, scratch: &Scratch<F>, part: Part) -> bool {
    let Dissected { at, end, .. } = scratch.dissected;
    let is_there = part != Part::Later && end <= packet.len() && at.l4 + ICMP_LEN as u32 <= end;
    let echo = if F::IS_V4 { 8 } else { 128 };
    is_there && at.l4_at(packet, 0, ICMP_LEN).is_some_and(|icmp| icmp.load::<u8>(0) == echo)
}

/// What becomes of a packet whose headers can't be followed. Where only a Service can be meant it is dropped: nobody else
/// would answer.
#[inline(always)]
fn stop_of<F: Header>(fault: Fault, scratch: &mut Scratch<F>) -> Stop {
    match fault {
        Fault::Malformed => MALFORMED,
        Fault::TooMany if is_cluster_ip(scratch) => Stop::drop(Reason::TooManyHeaders),
        Fault::TooMany => Stop::pass(Reason::TooManyHeaders),
    }
}

/// Completes the 5-tuple of a packet with ports: all of a datagram, or its first fragment.
#[inline(always)]
fn read_ports<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>, part: Part) -> Stage<()> {
    if part == Part::First {
        scratch.dissected.kind = kind::FIRST_FRAGMENT;
    }
    let l4: Frame<'_> = scratch.dissected.at.l4_at(packet, 0, PORTS_LEN).ok_or(MALFORMED)?;
    scratch.parsed.key.sport_be = l4.load(0);
    scratch.parsed.key.dport_be = l4.load(2);
    Ok(())
}

/// By its own account the packet must hold its layer-4 header, and be there as a whole.
#[inline(always)]
fn check_length<P: Packet, F: Header>(packet: &P, scratch: &Scratch<F>) -> Stage<()> {
    let Dissected { at, end, .. } = scratch.dissected;
    let header_len = match scratch.parsed.key.protocol {
        protocol::TCP => TCP_LEN,
        protocol::UDP => UDP_LEN,
        _ => SCTP_LEN,
    };
    if end > packet.len() || at.l4 + header_len as u32 > end { Err(MALFORMED) } else { Ok(()) }
}

/// Reads what else is to be known of it.
#[inline(always)]
fn read_segment<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>) -> Stage<()> {
    let Dissected { at, end, .. } = scratch.dissected;
    let is_good = match scratch.parsed.key.protocol {
        protocol::TCP => {
            let l4 = at.l4_at(packet, 0, TCP_LEN).ok_or(MALFORMED)?;
            read_tcp(&mut scratch.parsed, &l4);
            l4.load::<u8>(tcp::DATA_OFFSET) >= 0x50
        }
        protocol::UDP => {
            let l4 = at.l4_at(packet, 0, UDP_LEN).ok_or(MALFORMED)?;
            u16::from_be(l4.load(udp::LENGTH)) >= UDP_LEN as u16
        }
        _ => {
            // An IP packet need not bear a chunk; a frame may have padding in its place.
            let has_chunk = at.l4 + SCTP_LEN as u32 != end;
            let chunk = if has_chunk { at.l4_at(packet, sctp::CHUNK as u32, 1) } else { None };
            scratch.parsed.tcp_flags = chunk.map_or(tcp_flags::ACK, |chunk| sctp_chunk::flags(chunk.load(0)));
            true
        }
    };
    if is_good { Ok(()) } else { Err(MALFORMED) }
}
