// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The packet's story (datapath, fast path and slow path) on one screen: for plain packets, and side by side for rare ones, which
//! are ICMP errors, IP options, extension headers, fragments, SCTP and tags.
//!
//! ```text
//!  plain:  parse --> flow found? --yes--------------+-> resolve -> rewrite -> send -> conclude
//!                       | no                        |
//!                       +-> decide (a new flow) ----+
//!  rare:   dissect -> with ports: found or decided -+-> resolve -> rewrite -> send -> conclude
//!                  -> later fragment: the first's --+
//!                  -> ICMP error: the quoted one's -+
//! ```
//!
//! Written once over the address [`Family`](lb_common::address::Family) and the packet's [`Packet`] access. Stages stop the
//! packet with a [`Stop`]; [`conclude`] alone turns that into the hook's action. What is not plain goes on in the door's other
//! program, what is to be answered in [`answer`](crate::answer).

use lb_common::{
    flow::{Direction, Flow},
    verdict::{Fate, Reason, Stage, Stop},
};

use crate::{
    decide::decide_global,
    flow::find::{self, Found},
    kernel::{
        clock, log, maps, tail,
        work::{self, Parsed, Scratch, kind},
    },
    packet::{
        Exit, Packet,
        header::{ETHERNET_LEN, Header},
        layout::Plain,
    },
    parse::{
        dissect::{self, MOST_BYTES},
        filter::Hook,
        fragment, plain,
    },
    send::{self, next_hop, rewrite, sctp},
    trace,
};

/// A plain packet that arrives.
// verifier: one function per family and door, not inlined, so that their stack frames don't add up.
#[inline(never)]
pub fn plain_ingress<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = process_plain::<P, F>(packet, Hook::Ingress);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

/// A plain packet that leaves.
#[inline(never)]
pub fn plain_egress<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = process_plain::<P, F>(packet, Hook::Egress);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

/// A rare packet that arrives, with its IP header at `l3`.
#[inline(never)]
pub fn rare_ingress<P: Packet, F: Header>(packet: &mut P, l3: u32) -> i32 {
    let result = process_rare::<P, F>(packet, l3, Hook::Ingress);
    conclude(packet, result, dissected_l4::<F>)
}

/// A rare packet that leaves.
#[inline(never)]
pub fn rare_egress<P: Packet, F: Header>(packet: &mut P, l3: u32) -> i32 {
    let result = process_rare::<P, F>(packet, l3, Hook::Egress);
    conclude(packet, result, dissected_l4::<F>)
}

#[inline(always)]
fn process_plain<P: Packet, F: Header>(packet: &mut P, hook: Hook) -> Stage<i32> {
    let parsed = plain::parse::<P, F>(packet, hook)?;
    let flow = find_or_decide(packet, &parsed, hook)?;
    let l4 = (ETHERNET_LEN + F::HEADER_LEN) as u32;
    let exit = resolve(packet, flow, &parsed, hook, l4)?;
    let ifindex = flow.ifindex;
    rewrite::translate(packet, Plain::NEW, parsed.key.protocol, flow, exit)?;
    Ok(send(packet, ifindex, exit))
}

#[inline(always)]
fn process_rare<P: Packet, F: Header>(packet: &mut P, l3: u32, hook: Hook) -> Stage<i32> {
    packet.make_linear(MOST_BYTES);
    dissect::dissect_global::<P, F>(packet, l3, hook)?;
    // verifier: not copied, for the stack.
    let Scratch { parsed, dissected, .. } = work::scratch::<F>()?;
    let has_ports = matches!(dissected.kind, kind::SEGMENT | kind::FIRST_FRAGMENT);
    let flow = if has_ports {
        find_or_decide(packet, parsed, hook)?
    } else {
        follow(packet, find::find_related(dissected.kind, &parsed.key, hook)?)?
    };
    if dissected.kind == kind::FIRST_FRAGMENT {
        sctp::check_fragment(parsed, flow)?;
        if !packet.is_trace() {
            fragment::remember_global::<F>(clock::now())?;
        }
    }
    if l3 != ETHERNET_LEN as u32 && flow.is_forwarded() {
        // Another device may want another tag, or none: the stack knows.
        return Err(Stop::LEAVE_TO_TC);
    }
    let result = transmit_rare(packet, flow, hook);
    if has_ports { result } else { result.map_err(|stop| unanswered(packet, stop)) }
}

/// The end of a rare packet's way: follows the instruction, wherever its headers are.
#[inline(always)]
fn transmit_rare<P: Packet, F: Header>(packet: &mut P, flow: &mut Flow<F>, hook: Hook) -> Stage<i32> {
    let Scratch { parsed, dissected, original, .. } = work::scratch::<F>()?;
    let exit = resolve(packet, flow, parsed, hook, dissected.at.l4)?;
    let ifindex = flow.ifindex;
    *original = *flow;
    send::rewrite_global::<P, F>(packet, exit)?;
    Ok(send(packet, ifindex, exit))
}

/// The instruction for a packet with ports: its flow's, or that of a new flow.
#[inline(always)]
fn find_or_decide<P: Packet, F: Header>(packet: &P, parsed: &Parsed<F>, hook: Hook) -> Stage<&'static mut Flow<F>> {
    let now = clock::now();
    match hook {
        Hook::Ingress => flow_at_ingress(packet, parsed, now),
        Hook::Egress => flow_at_egress(packet, parsed, now),
    }
}

/// For a packet that arrives.
#[inline(always)]
fn flow_at_ingress<P: Packet, F: Header>(packet: &P, parsed: &Parsed<F>, now: u32) -> Stage<&'static mut Flow<F>> {
    match find::find(parsed, now, packet.is_trace())? {
        Found::Valid(flow) if flow.is_at_egress() => Err(Stop::NOT_OURS),
        Found::Valid(flow) => follow(packet, flow),
        Found::Orphaned(flow) => {
            trace::note_flow(packet, flow);
            Err(find::stop_of_orphan(parsed))
        }
        Found::Undecided => {
            let scratch = work::scratch::<F>()?;
            scratch.parsed = *parsed;
            decide_global::<P, F>(packet, now)?;
            Ok(&mut scratch.original)
        }
    }
}

/// For a packet that leaves: that of a flow whose client keeps its address, for a reply. Nothing is decided here.
#[inline(always)]
fn flow_at_egress<P: Packet, F: Header>(packet: &P, parsed: &Parsed<F>, now: u32) -> Stage<&'static mut Flow<F>> {
    match find::find(parsed, now, packet.is_trace())? {
        Found::Valid(flow) if flow.is_at_egress() => follow(packet, flow),
        Found::Valid(_) | Found::Orphaned(_) => Err(Stop::NOT_OURS),
        Found::Undecided => {
            let scratch = work::scratch::<F>()?;
            scratch.parsed = *parsed;
            find::find_young_global::<F>(now, packet.is_trace()).map_err(|_| Stop::NOT_OURS)?;
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
    let scratch = work::scratch::<F>()?;
    scratch.original = *flow;
    Ok(&mut scratch.original)
}

/// How the packet goes on, and counts it for its backend; its layer 4 begins at `l4`.
#[inline(always)]
fn resolve<P: Packet, F: Header>(
    packet: &mut P,
    flow: &mut Flow<F>,
    parsed: &Parsed<F>,
    hook: Hook,
    l4: u32,
) -> Stage<Exit> {
    // What leaves already is on its way.
    let exit = if hook == Hook::Egress { Exit::Stack } else { next_hop::resolve(packet, flow, parsed, l4)? };
    if packet.is_trace() {
        trace::note_exit(packet, exit, flow.ifindex, flow.flags);
    } else if let Some(counters) = maps::backend_counters(flow.backend) {
        let direction = usize::from(flow.direction() == Direction::Reply);
        counters.packets[direction] += 1;
        counters.bytes[direction] += u64::from(packet.len());
    }
    Ok(exit)
}

/// The hook's action for a packet that was rewritten.
#[inline(always)]
fn send<P: Packet>(packet: &mut P, ifindex: u32, exit: Exit) -> i32 {
    if exit != Exit::Stack {
        packet.leave_vlan();
    }
    packet.send(ifindex, exit)
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

/// Where layer 4 of the rare packet in the scratch space begins.
#[inline(always)]
fn dissected_l4<F: Header>() -> usize {
    work::scratch::<F>().map_or(0, |scratch| scratch.dissected.at.l4 as usize)
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
