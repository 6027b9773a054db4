// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The doors' programs for packets that are not plain: fragments, IP options, extension headers.

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    address::{Family, V4, V6},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    conclude, ethertype,
    header::{ETHERNET_LEN, Header},
    packet::{Packet, SkbPacket, XdpPacket},
    tail,
};

/// The XDP door.
#[xdp]
pub fn shunt_xdp_rare(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context.ctx);
    let next = handle(&mut packet);
    tail::go_on_xdp(&context, next) as u32
}

/// The TC door, for packets that arrive.
#[classifier]
pub fn shunt_tc_ingress_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = handle(&mut packet);
    tail::go_on_tc(&context, next, lb_common::maps::tail::TC_INGRESS_RARE)
}

/// The TC door, for packets that leave.
#[classifier]
pub fn shunt_tc_egress_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = handle(&mut packet);
    tail::go_on_tc(&context, next, lb_common::maps::tail::TC_EGRESS_RARE)
}

#[inline(always)]
fn handle<P: Packet>(packet: &mut P) -> i32 {
    match ethertype(packet) {
        Some(V4::ETHERTYPE_BE) => handle_family::<P, V4>(packet),
        Some(V6::ETHERTYPE_BE) => handle_family::<P, V6>(packet),
        _ => P::PASS,
    }
}

#[inline(always)]
fn handle_family<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = pass::<P, F>(packet);
    conclude(packet, ETHERNET_LEN + F::HEADER_LEN, result)
}

/// Counts what is passed on untranslated.
#[inline(always)]
fn pass<P: Packet, F: Header>(packet: &P) -> Stage<i32> {
    let frame = packet.frame(ETHERNET_LEN + F::HEADER_LEN).ok_or(Stop::NOT_OURS)?;
    Err(Stop::pass(if F::is_fragment(&frame) { Reason::Fragment } else { Reason::HeaderOptions }))
}
