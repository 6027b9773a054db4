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
//! packet with a [`Stop`]; [`conclude`] alone turns that into the hook's action.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "a program has no API: doc comments here are for whoever reads the code")]

mod admit;
mod apart;
mod clock;
mod flow;
mod forward;
mod header;
mod install;
mod log;
mod maps;
mod offload;
mod packet;
mod parse;
mod reject;
mod reset;
mod select;
mod service;
mod source;
mod trace;
mod wire;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    address::{Family, V4, V6},
    flow::{Direction, Flow},
    trace::trace_step,
    verdict::{Fate, Packed, Stage, Stop},
};

use crate::{
    apart::SlowPath,
    flow::Found,
    header::{Header, ethernet},
    packet::{Exit, Packet, SkbPacket, XdpPacket},
    parse::{Hook, Parsed},
    reject::Icmp,
};

/// The XDP door of an uplink.
#[xdp]
pub fn shunt_xdp(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context.ctx);
    let action = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => xdp_ingress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => xdp_ingress::<V6>(&mut packet),
        _ => XdpPacket::PASS,
    };
    action as u32
}

/// The TC door of any device, for packets that arrive.
#[classifier]
pub fn shunt_tc_ingress(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => tc_ingress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => tc_ingress::<V6>(&mut packet),
        _ => SkbPacket::PASS,
    }
}

/// The TC door of any device, for packets that leave: replies, translated back for the client behind the device.
#[classifier]
pub fn shunt_tc_egress(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => tc_egress::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => tc_egress::<V6>(&mut packet),
        _ => SkbPacket::PASS,
    }
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
    let result = match ingress::<_, F>(packet) {
        // TC makes the answer, and counts it.
        Err(stop) if matches!(stop.fate, Fate::Reject | Fate::Reset) && !packet.is_trace() => Err(Stop::LEAVE_TO_TC),
        result => result,
    };
    conclude(packet, result)
}

#[inline(never)]
fn tc_ingress<F: Icmp>(packet: &mut SkbPacket) -> i32
where
    SkbPacket: SlowPath<F>,
{
    let result = ingress::<_, F>(packet);
    let answered = match result {
        Err(stop) if packet.is_trace() => Err(stop),
        Err(stop) if stop.fate == Fate::Reject => answer(packet, stop, reject::<F>),
        Err(stop) if stop.fate == Fate::Reset => answer(packet, stop, reset::<F>),
        result => result,
    };
    conclude(packet, answered)
}

/// Sends a refused packet back as the answer that `turn` makes of it.
#[inline(always)]
fn answer(packet: &mut SkbPacket, stop: Stop, turn: impl FnOnce(&mut SkbPacket) -> Packed) -> Stage<i32> {
    maps::count_reason(stop.reason);
    turn(packet).unpack().map(|()| packet.send(packet.ifindex(), Exit::Wire))
}

#[inline(never)]
fn tc_egress<F: Header>(packet: &mut SkbPacket) -> i32 {
    let result = egress::<F>(packet);
    conclude(packet, result)
}

#[inline(always)]
fn ingress<P: SlowPath<F>, F: Header>(packet: &mut P) -> Stage<i32> {
    let parsed = parse::parse::<P, F>(packet, Hook::Ingress)?;
    let now = clock::now();
    let flow = match flow::find(&parsed, now, packet.is_trace())? {
        Found::Valid(flow) if flow.is_at_egress() => return Err(Stop::NOT_OURS),
        Found::Valid(flow) => follow(packet, flow)?,
        Found::Orphaned(flow) => {
            note_flow(packet, flow);
            return Err(reset::stop(&parsed));
        }
        Found::Undecided => {
            let scratch = maps::scratch::<F>()?;
            scratch.parsed = parsed;
            packet.decide_apart(now).unpack()?;
            &mut scratch.original
        }
    };
    transmit(packet, &parsed, flow)
}

#[inline(always)]
fn egress<F: Header>(packet: &mut SkbPacket) -> Stage<i32> {
    let parsed = parse::parse::<_, F>(packet, Hook::Egress)?;
    match flow::find(&parsed, clock::now(), packet.is_trace())? {
        Found::Valid(flow) if flow.is_at_egress() => {
            let flow = follow(packet, flow)?;
            transmit(packet, &parsed, flow)
        }
        _ => Err(Stop::NOT_OURS),
    }
}

/// A flow that was found. A trace goes on with a copy, so that resolving the next hop leaves no mark either.
#[inline(always)]
fn follow<P: Packet, F: Header>(packet: &P, flow: &'static mut Flow<F>) -> Stage<&'static mut Flow<F>> {
    if !packet.is_trace() {
        return Ok(flow);
    }
    note_flow(packet, flow);
    let scratch = maps::scratch::<F>()?;
    scratch.original = *flow;
    Ok(&mut scratch.original)
}

/// Lets `trace` say whose flow it is.
#[inline(always)]
fn note_flow<P: Packet, F: Header>(packet: &P, flow: &Flow<F>) {
    trace::note(packet, |record| {
        record.step = trace_step::FLOW;
        record.backend = flow.backend;
    });
}

/// The fast path's end: follow the instruction.
#[inline(always)]
fn transmit<P: Packet, F: Header>(packet: &mut P, parsed: &Parsed<F>, flow: &mut Flow<F>) -> Stage<i32> {
    let exit = forward::resolve(packet, flow, parsed.key.protocol, parsed.ttl)?;
    let ifindex = flow.ifindex;
    if packet.is_trace() {
        trace::note_exit(packet, exit, ifindex, flow.flags);
    } else if let Some(counters) = maps::backend_counters(flow.backend) {
        let direction = usize::from(flow.direction() == Direction::Reply);
        counters.packets[direction] += 1;
        counters.bytes[direction] += u64::from(packet.len());
    }
    packet.translate(parsed.key.protocol, flow, exit)?;
    Ok(packet.send(ifindex, exit))
}

// verifier: not inlined, for the stack.
#[inline(never)]
fn reset<F: Icmp>(packet: &mut SkbPacket) -> Packed {
    Packed::pack(reset::turn_into_reset::<F>(packet))
}

// verifier: as above.
#[inline(never)]
fn reject<F: Icmp>(packet: &mut SkbPacket) -> Packed {
    Packed::pack(reject::turn_into_error::<F>(packet))
}

/// The one place that turns the pipeline's result into the hook's action.
#[inline(always)]
fn conclude<P: Packet>(packet: &P, result: Stage<i32>) -> i32 {
    let stop = match result {
        Ok(action) => return action,
        Err(stop) => stop,
    };
    if stop.fate != Fate::NotOurs {
        log::debug!(packet, "device {}: fate {}, reason {}", packet.ifindex(), stop.fate as u32, stop.reason);
    }
    if packet.is_trace() {
        trace::note_end(packet, stop);
    } else if stop.fate != Fate::NotOurs {
        maps::count_reason(stop.reason);
    }
    match stop.fate {
        Fate::NotOurs | Fate::LeaveToTc | Fate::Pass => P::PASS,
        // A trace: other packets were answered.
        Fate::Reject | Fate::Reset => P::PASS,
        Fate::Drop => P::DROP,
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
