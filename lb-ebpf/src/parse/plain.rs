// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Parses plain TCP and UDP: frame to 5-tuple. Traffic of no Service leaves here, after one bit of the address filter.

use lb_common::{
    flow::{FlowKey, protocol},
    verdict::{Reason, Stage, Stop},
};

use super::filter::Hook;
use crate::{
    kernel::work::Parsed,
    packet::{
        Frame, Packet,
        header::{ETHERNET_LEN, Header, TCP_LEN, UDP_LEN, tcp, udp},
    },
};

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
