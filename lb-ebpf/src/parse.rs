// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 1: frame to 5-tuple. Traffic of no Service leaves here, after one bit of the address filter.

use lb_common::{
    address::Family,
    flow::{FlowKey, protocol},
    maps::{FILTER_EGRESS, FILTER_INGRESS},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    header::{ETHERNET_LEN, Header, TCP_LEN, UDP_LEN, tcp, udp},
    maps,
    packet::{Frame, Packet},
};

/// Which way a packet crosses the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Into this node.
    Ingress,
    /// Out of it.
    Egress,
}

impl Hook {
    /// Whether a packet may be of a Service: the one look at the address filter.
    #[inline(always)]
    pub fn concerns<F: Header>(self, src: &F::Addr, dst: &F::Addr) -> bool {
        match self {
            Self::Ingress => maps::filter_contains(FILTER_INGRESS, F::filter_bit(dst)),
            Self::Egress => maps::filter_contains(FILTER_EGRESS, F::filter_bit(src)),
        }
    }
}

/// What the later stages need of a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Parsed<F: Family> {
    pub key: FlowKey<F>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP's flags; 0 for UDP.
    pub tcp_flags: u8,
}

/// Parses a TCP or UDP packet whose destination (ingress) or source (egress) is in the filter.
#[inline(always)]
pub fn parse<P: Packet, F: Header>(packet: &mut P, hook: Hook) -> Stage<Parsed<F>> {
    let l4 = ETHERNET_LEN + F::HEADER_LEN;
    packet.make_linear(l4 + TCP_LEN);
    // A later fragment may be as short as that.
    let frame = packet.frame(l4 + UDP_LEN).ok_or(Stop::RARE)?;
    let (src, dst) = (frame.load(F::SRC), frame.load(F::DST));
    if !hook.concerns::<F>(&src, &dst) {
        // Routers send ICMP errors under addresses of their own.
        let may_concern = hook == Hook::Egress && F::may_be_icmp(&frame);
        return Err(if may_concern { Stop::RARE } else { Stop::NOT_OURS });
    }
    let network = F::network(&frame)?;
    let tcp_flags = match network.protocol {
        protocol::TCP => {
            check_length(packet, network.total_len, F::HEADER_LEN + TCP_LEN)?;
            let frame = packet.frame(l4 + TCP_LEN).ok_or(Stop::pass(Reason::Malformed))?;
            if frame.load::<u8>(l4 + tcp::DATA_OFFSET) < 0x50 {
                return Err(Stop::pass(Reason::Malformed));
            }
            frame.load(l4 + tcp::FLAGS)
        }
        protocol::UDP => {
            check_length(packet, network.total_len, F::HEADER_LEN + UDP_LEN)?;
            // Zero is a jumbogram's (RFC 2675), and too short is nobody's.
            if u16::from_be(frame.load(l4 + udp::LENGTH)) < UDP_LEN as u16 {
                return Err(Stop::pass(Reason::Malformed));
            }
            0
        }
        protocol::SCTP => return Err(Stop::RARE),
        _ => return Err(if F::may_be_icmp(&frame) { Stop::RARE } else { Stop::NOT_OURS }),
    };
    let frame: Frame<'_> = packet.frame(l4 + UDP_LEN).ok_or(Stop::NOT_OURS)?;
    let key = FlowKey::new(src, dst, frame.load(l4), frame.load(l4 + 2), network.protocol);
    Ok(Parsed { key, ttl: network.ttl, tcp_flags })
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
