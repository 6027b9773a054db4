// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The packet's story (datapath) on one screen: the fast path, for plain packets of flows that simply go on, and the slow path,
//! for new flows and for whatever is not plain (ICMP errors, IP options, extension headers, fragments, SCTP, tags).
//!
//! ```text
//!  fast:  parse --> flow goes on? --yes-----------------+-> resolve -> rewrite -> send -> conclude
//!            | rare        | no                         |
//!            v             v                            |
//!  slow:  dissect -> with ports: flow holds? --yes------+
//!                      | no -> decide (a new flow) -----+
//!                 -> later fragment: the first's flow --+
//!                 -> ICMP error: the quoted one's flow -+
//! ```
//!
//! Written once over the address [`Family`](lb_common::address::Family) and the packet's [`Packet`] access. Stages stop the
//! packet with a [`Stop`]; [`conclude`] alone turns that into the hook's action. The slow path is the door's other program, to which
//! the first one goes on by a tail call; what is to be answered goes on in [`answer`](crate::answer).

use lb_common::{
    filter::{Filter, WHOLE},
    flow::Hook,
    verdict::{Fate, Reason, Stage, Stop},
};

use crate::{
    decide::decide_global,
    flow::{find, follow},
    kernel::{
        clock, log, maps, tail,
        work::{self, Dissected, Instruction, Parsed, Scratch, Way, kind},
    },
    packet::{
        Exit, Packet,
        header::{ETHERNET_LEN, Header},
        layout::Plain,
    },
    parse::{
        dissect::{self, MOST_BYTES},
        fragment, plain,
    },
    send::{self, Sending, next_hop, rewrite, sctp},
    trace,
};

/// A plain packet that arrives.
#[inline(always)]
pub fn plain_ingress<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = process_plain::<P, F>(packet, Hook::Ingress);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

/// A plain packet that leaves.
#[inline(always)]
pub fn plain_egress<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = process_plain::<P, F>(packet, Hook::Egress);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

/// A plain packet that leaves by the net's device, or by the loopback device.
#[inline(always)]
pub fn plain_net<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = process_plain::<P, F>(packet, Hook::Net);
    conclude(packet, result, || ETHERNET_LEN + F::HEADER_LEN)
}

/// A packet that arrives and is not the fast path's, with its IP header at `l3`.
#[inline(always)]
pub fn rare_ingress<P: Packet, F: Header>(packet: &mut P, l3: u32) -> i32 {
    match find_out::<P, F>(packet, l3, Hook::Ingress) {
        Ok(()) => transmit_ingress::<P, F>(packet),
        Err(stop) => conclude(packet, Err(stop), dissected_l4::<F>),
    }
}

/// One that leaves.
#[inline(always)]
pub fn rare_egress<P: Packet, F: Header>(packet: &mut P, l3: u32) -> i32 {
    match find_out::<P, F>(packet, l3, Hook::Egress) {
        Ok(()) => transmit_egress::<P, F>(packet),
        Err(stop) => conclude(packet, Err(stop), dissected_l4::<F>),
    }
}

/// One at the net.
#[inline(always)]
pub fn rare_net<P: Packet, F: Header>(packet: &mut P, l3: u32) -> i32 {
    match find_out::<P, F>(packet, l3, Hook::Net) {
        Ok(()) => transmit_net::<P, F>(packet),
        Err(stop) => conclude(packet, Err(stop), dissected_l4::<F>),
    }
}

/// The fast path.
#[inline(always)]
fn process_plain<P: Packet, F: Header>(packet: &mut P, hook: Hook) -> Stage<i32> {
    let parsed = plain::parse::<P, F>(packet, hook)?;
    let flow = find::find(&parsed, hook)?;
    let sending = resolve(packet, &flow, &parsed, hook, (ETHERNET_LEN + F::HEADER_LEN) as u32)?;
    rewrite::translate(packet, Plain::NEW, parsed.key.protocol, &flow, &sending)?;
    Ok(send(packet, &sending))
}

/// The slow path, until the instruction stands in the scratch space.
#[inline(always)]
fn find_out<P: Packet, F: Header>(packet: &mut P, l3: u32, hook: Hook) -> Stage<()> {
    packet.make_linear(MOST_BYTES);
    dissect::dissect_global::<P, F>(packet, l3, hook)?;
    // verifier: not copied, for the stack.
    let Scratch { parsed, dissected, instruction, .. } = work::scratch::<F>()?;
    if has_ports(dissected) {
        find_or_decide::<P, F>(packet, hook)?;
    } else {
        find::find_related_global::<F>(hook)?;
        trace::note_flow(packet, instruction.backend);
    }
    if dissected.kind == kind::FIRST_FRAGMENT {
        sctp::check_fragment(parsed, instruction)?;
        if !packet.is_trace() {
            fragment::remember_global::<F>(clock::tick())?;
        }
    }
    if l3 != ETHERNET_LEN as u32 && instruction.is_forwarded() {
        // Another device may want another tag, or none: the stack knows.
        return Err(Stop::LEAVE_TO_TC);
    }
    Ok(())
}

#[inline(always)]
fn has_ports(dissected: &Dissected) -> bool {
    matches!(dissected.kind, kind::SEGMENT | kind::FIRST_FRAGMENT)
}

/// The instruction for the packet with ports in the scratch space: its flow's, or that of a new flow. Nothing is decided for a packet
/// that leaves.
#[inline(always)]
fn find_or_decide<P: Packet, F: Header>(packet: &P, hook: Hook) -> Stage<()> {
    let is_egress = hook == Hook::Egress;
    let Scratch { instruction, is_due, .. } = work::scratch::<F>()?;
    let found = match find::look_again_global::<F>(hook) {
        Ok(()) if *is_due != 0 => follow::refresh_global::<F>(),
        result => result,
    };
    match found {
        Ok(()) if !instruction.is_at(hook) => {
            if is_egress || find::is_anothers(instruction, hook)? {
                Err(Stop::NOT_OURS)
            } else {
                decide_global::<P, F>(packet)
            }
        }
        Err(stop) if stop.fate() == Fate::NotOurs && !is_egress => decide_global::<P, F>(packet),
        Err(_) if is_egress => Err(Stop::NOT_OURS),
        result => {
            trace::note_flow(packet, instruction.backend);
            result
        }
    }
}

/// The end of the slow path.
// verifier: a function of its own, so that its stack frame is not below those that decide.
#[inline(never)]
fn transmit_ingress<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = transmit::<P, F>(packet, Hook::Ingress);
    conclude(packet, result, dissected_l4::<F>)
}

/// The same for packets that leave.
#[inline(never)]
fn transmit_egress<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = transmit::<P, F>(packet, Hook::Egress);
    conclude(packet, result, dissected_l4::<F>)
}

/// The same for packets at the net.
#[inline(never)]
fn transmit_net<P: Packet, F: Header>(packet: &mut P) -> i32 {
    let result = transmit::<P, F>(packet, Hook::Net);
    conclude(packet, result, dissected_l4::<F>)
}

/// Follows the instruction in the scratch space, wherever the packet's headers are.
#[inline(always)]
fn transmit<P: Packet, F: Header>(packet: &mut P, hook: Hook) -> Stage<i32> {
    let Scratch { parsed, dissected, instruction, way, .. } = work::scratch::<F>()?;
    let sending = resolve(packet, instruction, parsed, hook, dissected.at.l4);
    let sending = if has_ports(dissected) { sending? } else { sending.map_err(|stop| unanswered(packet, stop))? };
    *way = sending.way;
    send::rewrite_global::<P, F>(packet, sending.exit)?;
    Ok(send(packet, &sending))
}

/// How the packet goes on, and counts it for its backend; its layer 4 begins at `l4`.
#[inline(always)]
fn resolve<P: Packet, F: Header>(
    packet: &mut P,
    flow: &Instruction<F>,
    parsed: &Parsed<F>,
    hook: Hook,
    l4: u32,
) -> Stage<Sending> {
    let sending = match hook {
        Hook::Ingress | Hook::Net => {
            let sending = next_hop::resolve(packet, flow, parsed, l4)?;
            if !sending.exit.is_forwarded() && stays_a_services(flow, parsed.key.protocol)? {
                packet.note_translated()?;
            }
            sending
        }
        // What leaves already is on its way.
        Hook::Egress => Sending { exit: Exit::Stack, way: Way::NONE },
    };
    if packet.is_trace() {
        trace::note_exit(packet, sending.exit, sending.way.ifindex, flow.flags);
    } else if let Some(counters) = maps::backend_counters(flow.backend) {
        let direction = usize::from(flow.is_reply());
        counters.packets[direction] += 1;
        counters.bytes[direction] += u64::from(packet.len());
    }
    Ok(sending)
}

/// Whether the next door may take the packet for one of a Service after the translation, too: its backend's address and port may be a
/// frontend as well, of this node most often.
///
/// Asked for each packet: a flag in its flow would say what was so when that began, and the frontend may have come since. Nor is each
/// packet marked: the mark stays in its buffer over bridges and veth pairs, and into other network namespaces (`skb_scrub_packet` leaves
/// it), where a door that must translate the packet would let it go: another node's on the same kernel (kind), whose NodePort is our
/// backend, or ours once more, where a pod forwards to a Service what it got from one. XDP has no mark, and would leave all to TC.
#[inline(always)]
fn stays_a_services<F: Header>(flow: &Instruction<F>, protocol: u8) -> Stage<bool> {
    let filter = maps::filter().ok_or(Stop::drop(Reason::MapMissing))?;
    let known = filter.destination(F::filter_bit(&flow.dst));
    Ok(known != 0 && is_frontends_port(filter, known, flow, protocol))
}

// Rare, and therefore not in the way.
#[cold]
#[inline(always)]
fn is_frontends_port<F: Header>(filter: &Filter, known: u64, flow: &Instruction<F>, protocol: u8) -> bool {
    let port_be = (flow.ports >> 16) as u16;
    known & WHOLE != 0 || filter.has_port(F::filter_port_bit(&flow.dst, port_be, protocol), port_be, protocol)
}

/// The hook's action for a packet that was rewritten.
#[inline(always)]
fn send<P: Packet>(packet: &mut P, sending: &Sending) -> i32 {
    if sending.exit != Exit::Stack {
        packet.leave_vlan();
    }
    packet.send(sending.way.ifindex, sending.exit)
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
    if !matches!(stop.fate(), Fate::NotOurs | Fate::Rare | Fate::AskConntrack) {
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
        Fate::AskConntrack => tail::CONNTRACK,
        Fate::Reject | Fate::Reset if packet.is_trace() => P::PASS,
        Fate::Reject | Fate::Reset => {
            packet.ask_for_answer(stop, l4());
            tail::ANSWER
        }
    }
}
