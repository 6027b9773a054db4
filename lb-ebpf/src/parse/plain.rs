// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Parses plain TCP and UDP: frame to 5-tuple. Traffic of no Service leaves here, after two bits of the filter.

use lb_common::{
    flow::{FlowKey, Hook, protocol, tcp_flags},
    verdict::{Fate, Reason, Stage, Stop},
};

use super::filter::{Direct, concerns, direct, knows, may_be_direct};
use crate::{
    kernel::{maps, work::Parsed},
    packet::{
        Frame, Packet,
        header::{ETHERNET_LEN, Header, TCP_LEN, UDP_LEN, tcp, udp},
    },
};

/// Parses a TCP or UDP packet that the filter takes for one of a Service.
#[inline(always)]
pub fn parse<P: Packet, F: Header>(packet: &mut P, hook: Hook) -> Stage<Parsed<F>> {
    let l4 = ETHERNET_LEN + F::HEADER_LEN;
    packet.make_linear(l4 + UDP_LEN);
    // A later fragment may be as short as that.
    let frame = packet.frame(l4 + UDP_LEN).ok_or(Stop::RARE)?;
    let (src, dst) = (F::src(&frame), F::dst(&frame));
    let filter = maps::filter().ok_or(Stop::drop(Reason::MapMissing))?;
    let known = knows::<F>(hook, filter, &src, &dst);
    if known == 0 && !may_be_direct::<P, F>(packet, filter, hook, &dst) {
        // Routers send ICMP errors under addresses of their own.
        let may_concern = hook == Hook::Egress && F::may_be_icmp(&frame);
        return Err(if may_concern { Stop::RARE } else { Stop::NOT_OURS });
    }
    if hook != Hook::Egress && packet.is_translated() {
        // By another door, for a frontend of the same address and port as the backend's.
        return Err(Stop::NOT_OURS);
    }
    let network = match F::network(&frame) {
        Err(stop) if known == 0 && stop.fate() != Fate::Rare => return Err(Stop::NOT_OURS),
        network => network?,
    };
    let is_tcp = match network.protocol {
        protocol::TCP => true,
        protocol::UDP => false,
        protocol::SCTP if known != 0 => return Err(Stop::RARE),
        protocol::SCTP => return Err(Stop::NOT_OURS),
        // What a pod sends to a backend itself is ours only where it has ports. (Behind extension headers they may come yet.)
        protocol::ICMP | protocol::ICMPV6 if known == 0 && hook != Hook::Egress => return Err(Stop::NOT_OURS),
        _ => return Err(if F::may_be_icmp(&frame) { Stop::RARE } else { Stop::NOT_OURS }),
    };
    let l4_frame = frame.behind(l4);
    let key = FlowKey::new(src, dst, l4_frame.get::<_, 0>(), l4_frame.get::<_, 2>(), network.protocol);
    if known == 0 || !concerns(hook, filter, known, &key) {
        return Err(match direct::<P, F>(packet, filter, hook, &key) {
            Direct::Flow => Stop::RARE,
            Direct::First if !is_tcp || is_opening(packet, l4) => Stop::RARE,
            Direct::First | Direct::No => Stop::NOT_OURS,
        });
    }
    if packet.is_trace() {
        // What is asked is answered by the slow path alone.
        return Err(Stop::RARE);
    }
    let mut parsed = Parsed { key, ttl: network.ttl, tcp_flags: 0, is_trace: 0, sequence: 0, acknowledgement: 0 };
    if is_tcp {
        check_length(packet, network.total_len, F::HEADER_LEN + TCP_LEN)?;
        packet.make_linear(l4 + TCP_LEN);
        let tcp = packet.frame(l4 + TCP_LEN).ok_or(Stop::pass(Reason::Malformed))?.behind(l4);
        if tcp.get::<u8, { tcp::DATA_OFFSET }>() < 0x50 {
            return Err(Stop::pass(Reason::Malformed));
        }
        read_tcp(&mut parsed, &tcp);
    } else {
        // Zero is a jumbogram's (RFC 2675), and too short is nobody's.
        let udp_len = u16::from_be(l4_frame.get::<_, { udp::LENGTH }>());
        check_length(packet, network.total_len, F::HEADER_LEN + UDP_LEN)?;
        if udp_len < UDP_LEN as u16 {
            return Err(Stop::pass(Reason::Malformed));
        }
    }
    Ok(parsed)
}

/// Whether TCP at this offset opens a connection.
#[inline(always)]
fn is_opening<P: Packet>(packet: &mut P, l4: usize) -> bool {
    packet.make_linear(l4 + TCP_LEN);
    packet.frame(l4 + TCP_LEN).is_some_and(|frame| tcp_flags::is_opening(frame.behind(l4).get::<_, { tcp::FLAGS }>()))
}

/// Reads what the flow table wants to know of a TCP header.
#[inline(always)]
pub fn read_tcp<F: Header>(parsed: &mut Parsed<F>, tcp: &Frame<'_>) {
    parsed.tcp_flags = tcp.get::<_, { tcp::FLAGS }>();
    parsed.acknowledgement = u32::from_be(tcp.get::<_, { tcp::ACKNOWLEDGEMENT }>());
    // A SYN takes the place of a byte (RFC 9293 section 3.4).
    let syn = u32::from(parsed.tcp_flags & tcp_flags::SYN != 0);
    parsed.sequence = u32::from_be(tcp.get::<u32, { tcp::SEQUENCE }>()).wrapping_add(syn);
}

/// The length in the IP header must hold the headers and fit into the frame. It is 0 in segments to be cut later
/// that are longer than the field can say (BIG TCP).
#[inline(always)]
fn check_length<P: Packet>(packet: &P, total_len: u32, headers_len: usize) -> Stage<()> {
    let frame_len = packet.len();
    let is_good = if total_len == 0 {
        frame_len > 0xffff
    } else {
        total_len >= headers_len as u32 && total_len + ETHERNET_LEN as u32 <= frame_len
    };
    if is_good { Ok(()) } else { Err(Stop::pass(Reason::Malformed)) }
}
