// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Shunt's eBPF programs: the doors, and the packet's story on one screen.
//!
//! ```text
//!  parse -> flow found? --yes--> resolve -> translate -> send
//!              | no                 ^
//!              +-> decide (service: frontend, admit, select, install)
//! ```
//!
//! Written once over the address [`Family`](lb_common::address::Family) and the packet's [`Packet`] access. Stages stop the
//! packet with a [`Stop`]; [`conclude`] alone turns that into the hook's action. What is not a plain TCP or UDP packet goes on
//! in the door's other program ([`rare`]), what is to be answered in [`answer`].

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "a program has no API: doc comments here are for whoever reads the code")]

mod admit;
mod answer;
mod apart;
mod bounds;
mod clock;
mod dissect;
mod flow;
mod forward;
mod fragment;
mod header;
mod install;
mod layout;
mod log;
mod maps;
mod offload;
mod packet;
mod parse;
mod quote;
mod rare;
mod reject;
mod reset;
mod sctp;
mod select;
mod service;
mod socket;
mod socket_context;
mod source;
mod tail;
mod trace;
mod wire;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    address::{Family, V4, V6},
    flow::{Direction, Flow},
    verdict::{Fate, Stage, Stop},
};

use crate::{
    apart::SlowPath,
    flow::Found,
    header::{ETHERNET_LEN, Header, ethernet, is_tag},
    layout::Plain,
    packet::{Exit, Packet, SkbPacket, XdpPacket},
    parse::{Hook, Parsed},
};

/// The XDP door of an uplink.
#[xdp]
pub fn shunt_xdp(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context.ctx);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => xdp_ingress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => xdp_ingress::<V6>(&mut packet),
        Some(ethertype) if is_tag(ethertype) => tail::RARE,
        _ => XdpPacket::PASS,
    };
    tail::go_on_xdp(&context, next) as u32
}

/// The TC door of any device, for packets that arrive.
#[classifier]
pub fn shunt_tc_ingress(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => tc_ingress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => tc_ingress::<V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, lb_common::maps::tail::TC_INGRESS_RARE)
}

/// The TC door of any device, for packets that leave: replies, translated back for the client behind the device.
#[classifier]
pub fn shunt_tc_egress(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => tc_egress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => tc_egress::<V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, lb_common::maps::tail::TC_EGRESS_RARE)
}

#[inline(always)]
fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    packet.frame(header::ETHERNET_LEN).map(|frame| frame.load(ethernet::ETHERTYPE))
}

// verifier: one function per family and door, not inlined, so that their stack frames don't add up.
#[inline(never)]
fn xdp_ingress<F: Header>(packet: &mut XdpPacket) -> i32
where
    XdpPacket: SlowPath<F>,
{
    let result = ingress::<_, F>(packet);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

#[inline(never)]
fn tc_ingress<F: Header>(packet: &mut SkbPacket) -> i32
where
    SkbPacket: SlowPath<F>,
{
    let result = ingress::<_, F>(packet);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

#[inline(never)]
fn tc_egress<F: Header>(packet: &mut SkbPacket) -> i32
where
    SkbPacket: SlowPath<F>,
{
    let result = egress::<F>(packet);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

#[inline(always)]
fn ingress<P: SlowPath<F>, F: Header>(packet: &mut P) -> Stage<i32> {
    let parsed = parse::parse::<P, F>(packet, Hook::Ingress)?;
    let flow = flow_at_ingress(packet, &parsed, clock::now())?;
    let l4 = (ETHERNET_LEN + F::HEADER_LEN) as u32;
    transmit(packet, Hook::Ingress, (&parsed, l4), flow, |packet, flow, exit| {
        packet.translate(Plain::NEW, parsed.key.protocol, flow, exit)
    })
}

/// The instruction for a packet that arrives: its flow's, or that of a new flow.
#[inline(always)]
fn flow_at_ingress<P: SlowPath<F>, F: Header>(packet: &P, parsed: &Parsed<F>, now: u32) -> Stage<&'static mut Flow<F>> {
    match flow::find(parsed, now, packet.is_trace())? {
        Found::Valid(flow) if flow.is_at_egress() => Err(Stop::NOT_OURS),
        Found::Valid(flow) => follow(packet, flow),
        Found::Orphaned(flow) => {
            trace::note_flow(packet, flow);
            Err(reset::stop(parsed))
        }
        Found::Undecided => {
            let scratch = maps::scratch::<F>()?;
            scratch.parsed = *parsed;
            packet.decide_apart(now).unpack()?;
            Ok(&mut scratch.original)
        }
    }
}

#[inline(always)]
fn egress<F: Header>(packet: &mut SkbPacket) -> Stage<i32>
where
    SkbPacket: SlowPath<F>,
{
    let parsed = parse::parse::<_, F>(packet, Hook::Egress)?;
    let flow = flow_at_egress(packet, &parsed, clock::now())?;
    let l4 = (ETHERNET_LEN + F::HEADER_LEN) as u32;
    transmit(packet, Hook::Egress, (&parsed, l4), flow, |packet, flow, exit| {
        packet.translate(Plain::NEW, parsed.key.protocol, flow, exit)
    })
}

/// The instruction for a packet that leaves: a reply of a flow whose client keeps its address.
#[inline(always)]
fn flow_at_egress<P: Packet, F: Header>(packet: &P, parsed: &Parsed<F>, now: u32) -> Stage<&'static mut Flow<F>> {
    match flow::find(parsed, now, packet.is_trace())? {
        Found::Valid(flow) if flow.is_at_egress() => follow(packet, flow),
        Found::Valid(_) | Found::Orphaned(_) => Err(Stop::NOT_OURS),
        Found::Undecided => {
            let scratch = maps::scratch::<F>()?;
            scratch.parsed = *parsed;
            F::find_young_apart(now, packet.is_trace()).unpack().map_err(|_| Stop::NOT_OURS)?;
            if !scratch.original.is_at_egress() {
                return Err(Stop::NOT_OURS);
            }
            trace::note_flow(packet, &scratch.original);
            Ok(&mut scratch.original)
        }
    }
}

/// A flow that was found. A trace goes on with a copy, so that resolving the next hop leaves no mark either.
#[inline(always)]
fn follow<P: Packet, F: Header>(packet: &P, flow: &'static mut Flow<F>) -> Stage<&'static mut Flow<F>> {
    if !packet.is_trace() {
        return Ok(flow);
    }
    trace::note_flow(packet, flow);
    let scratch = maps::scratch::<F>()?;
    scratch.original = *flow;
    Ok(&mut scratch.original)
}

/// The fast path's end: follow the instruction. How a packet is rewritten by it depends on where its headers are; its layer 4
/// begins at `l4`.
#[inline(always)]
fn transmit<P: SlowPath<F>, F: Header>(
    packet: &mut P,
    hook: Hook,
    (parsed, l4): (&Parsed<F>, u32),
    flow: &mut Flow<F>,
    rewrite: impl FnOnce(&mut P, &Flow<F>, Exit) -> Stage<()>,
) -> Stage<i32> {
    // What leaves already is on its way.
    let exit = if hook == Hook::Egress { Exit::Stack } else { forward::resolve(packet, flow, parsed, l4)? };
    let ifindex = flow.ifindex;
    if packet.is_trace() {
        trace::note_exit(packet, exit, ifindex, flow.flags);
    } else if let Some(counters) = maps::backend_counters(flow.backend) {
        let direction = usize::from(flow.direction() == Direction::Reply);
        counters.packets[direction] += 1;
        counters.bytes[direction] += u64::from(packet.len());
    }
    rewrite(packet, flow, exit)?;
    if exit != Exit::Stack {
        packet.leave_vlan();
    }
    Ok(packet.send(ifindex, exit))
}

/// The one place that turns the pipeline's result into the hook's action, or into the program that goes on. `l4` tells
/// where the packet's layer 4 begins.
#[inline(always)]
fn conclude<P: Packet>(packet: &mut P, result: Stage<i32>, l4: impl FnOnce() -> usize) -> i32 {
    let mut stop = match result {
        Ok(action) => return action,
        Err(stop) => stop,
    };
    let is_answered = matches!(stop.fate(), Fate::Reject | Fate::Reset);
    if P::IS_XDP && is_answered && !packet.is_trace() {
        // TC makes the answer, and counts it.
        stop = Stop::LEAVE_TO_TC;
    }
    if !matches!(stop.fate(), Fate::NotOurs | Fate::Rare) {
        log::debug!(packet, "device {}: fate {}, reason {}", packet.ifindex(), stop.fate() as u32, stop.reason());
        if packet.is_trace() {
            trace::note_end(packet, stop);
        } else {
            maps::count_reason(stop.reason());
        }
    }
    match stop.fate() {
        Fate::NotOurs | Fate::LeaveToTc | Fate::Pass => P::PASS,
        Fate::Drop => P::DROP,
        Fate::Rare => tail::RARE,
        Fate::Reject | Fate::Reset if packet.is_trace() => P::PASS,
        Fate::Reject | Fate::Reset => {
            packet.ask_for_answer(stop, l4());
            tail::ANSWER
        }
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for: GPL-only helpers are used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
