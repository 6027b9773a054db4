// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The doors' programs for packets that are not plain: ICMP errors, IP options, extension headers, fragments, tags.
//!
//! ```text
//!  dissect -> one with ports: flow found or decided --+-> resolve -> rewrite -> send
//!          -> later fragment: flow of the first one --+
//!          -> ICMP error: flow of what it quotes -----+
//! ```
//!
//! The stages are those of plain packets; what differs stands in [`dissect`](crate::dissect), [`quote`], [`fragment`] and
//! [`layout`](crate::layout).

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    address::{Family, V4, V6},
    flow::{Flow, FlowKey, protocol},
    maps::tail::{TC_EGRESS_RARE, TC_INGRESS_RARE},
    verdict::{Fate, Reason, Stage, Stop},
};

use crate::{
    apart::{Rare, SlowPath},
    clock, conclude,
    dissect::{MOST_BYTES, kind},
    ethertype, flow_at_egress, flow_at_ingress, follow, fragment,
    header::{ETHERNET_LEN, Header, TAG_LEN, ethernet, is_tag},
    maps::{self, Grown, Scratch, Young},
    packet::{Exit, Packet, SkbPacket, XdpPacket},
    parse::Hook,
    quote, sctp, tail, transmit,
};

/// The XDP door.
#[xdp]
pub fn shunt_xdp_rare(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context.ctx);
    let (ethertype, l3) = behind_tags(&packet);
    let next = match ethertype {
        V4::ETHERTYPE_BE => xdp_ingress::<V4>(&mut packet, l3),
        V6::ETHERTYPE_BE => xdp_ingress::<V6>(&mut packet, l3),
        _ => XdpPacket::PASS,
    };
    tail::go_on_xdp(&context, next) as u32
}

/// The TC door, for packets that arrive.
#[classifier]
pub fn shunt_tc_ingress_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => tc_ingress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => tc_ingress::<V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, TC_INGRESS_RARE)
}

/// The TC door, for packets that leave.
#[classifier]
pub fn shunt_tc_egress_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => tc_egress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => tc_egress::<V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, TC_EGRESS_RARE)
}

/// The Ethertype behind up to two VLAN tags (IEEE 802.1Q), and where its packet begins. At TC tags are not in the frame but in
/// the buffer's metadata.
#[inline(always)]
fn behind_tags(packet: &XdpPacket) -> (u16, u32) {
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

// verifier: one function per family and door, as for plain packets.
#[inline(never)]
fn xdp_ingress<F: Header>(packet: &mut XdpPacket, l3: u32) -> i32
where
    XdpPacket: SlowPath<F> + Rare<F>,
{
    let result = process::<_, F>(packet, l3, Hook::Ingress);
    finish::<_, F>(packet, result)
}

#[inline(never)]
fn tc_ingress<F: Header>(packet: &mut SkbPacket) -> i32
where
    SkbPacket: SlowPath<F> + Rare<F>,
{
    let result = process::<_, F>(packet, ETHERNET_LEN as u32, Hook::Ingress);
    finish::<_, F>(packet, result)
}

#[inline(never)]
fn tc_egress<F: Header>(packet: &mut SkbPacket) -> i32
where
    SkbPacket: SlowPath<F> + Rare<F>,
{
    let result = process::<_, F>(packet, ETHERNET_LEN as u32, Hook::Egress);
    finish::<_, F>(packet, result)
}

#[inline(always)]
fn process<P: SlowPath<F> + Rare<F>, F: Header>(packet: &mut P, l3: u32, hook: Hook) -> Stage<i32> {
    packet.make_linear(MOST_BYTES);
    packet.dissect_apart(l3, hook).unpack()?;
    // verifier: not copied, for the stack.
    let Scratch { parsed, dissected, original, .. } = maps::scratch::<F>()?;
    let has_ports = matches!(dissected.kind, kind::SEGMENT | kind::FIRST_FRAGMENT);
    let now = clock::now();
    let flow = match hook {
        _ if !has_ports => follow(packet, flow_of_other(dissected.kind, &parsed.key, hook)?)?,
        Hook::Ingress => flow_at_ingress(packet, parsed, now)?,
        Hook::Egress => flow_at_egress(packet, parsed, now)?,
    };
    if dissected.kind == kind::FIRST_FRAGMENT {
        sctp::check_fragment(parsed, flow)?;
        if !packet.is_trace() {
            F::remember_apart(now).unpack()?;
        }
    }
    if l3 != ETHERNET_LEN as u32 && flow.is_forwarded() {
        // Another device may want another tag, or none: the stack knows.
        return Err(Stop::LEAVE_TO_TC);
    }
    let result = transmit(packet, hook, (parsed, dissected.at.l4), flow, |packet, flow, exit| {
        *original = *flow;
        packet.rewrite_apart(exit).unpack()
    });
    if has_ports { result } else { result.map_err(|stop| unanswered(packet, stop)) }
}

/// ICMP errors and later fragments are never answered. Not left to the program that answers, which does not look behind the
/// fixed header.
#[inline(always)]
fn unanswered<P: Packet>(packet: &P, stop: Stop) -> Stop {
    if stop.fate() != Fate::Reject || P::IS_XDP || packet.is_trace() {
        return stop;
    }
    maps::count_reason(stop.reason());
    Stop::drop(Reason::AnswerForbidden)
}

/// The instruction for a packet without ports of its own: that of the flow which it belongs to, if this hook is where that
/// flow's packets are translated. It changes nothing of the flow, nor does it matter to it that the backend may have gone.
#[inline(always)]
fn flow_of_other<F: Header>(kind: u32, key: &FlowKey<F>, hook: Hook) -> Stage<&'static mut Flow<F>> {
    let flow = maps::find_flow::<F, Grown>(key).or_else(|| maps::find_flow::<F, Young>(key));
    // Once more among the grown ones: it may have been moved there meanwhile (see `flow::grow`).
    match flow.or_else(|| maps::find_flow::<F, Grown>(key)) {
        Some(flow) if flow.is_at_egress() == (hook == Hook::Egress) => Ok(flow),
        None if kind == kind::LATER_FRAGMENT => Err(Stop::drop(Reason::OrphanFragment)),
        _ => Err(Stop::NOT_OURS),
    }
}

/// Rewrites the packet by the instruction in the scratch space.
#[inline(always)]
pub fn rewrite<P: Packet, F: Header>(packet: &mut P, exit: Exit) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    match scratch.dissected.kind {
        kind::ERROR => quote::rewrite(packet, scratch, exit),
        kind::LATER_FRAGMENT => fragment::rewrite(packet, scratch, exit),
        _ if scratch.parsed.key.protocol == protocol::SCTP => sctp::rewrite(packet, scratch, exit),
        _ => packet.translate(scratch.dissected.at, scratch.parsed.key.protocol, &scratch.original, exit),
    }
}

/// Concludes with the offset of layer 4 for whoever answers.
#[inline(always)]
fn finish<P: Packet, F: Header>(packet: &mut P, result: Stage<i32>) -> i32 {
    conclude(packet, result, || maps::scratch::<F>().map_or(0, |scratch| scratch.dissected.at.l4 as usize))
}
