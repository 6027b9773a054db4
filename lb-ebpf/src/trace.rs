// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Answers to `trace`: what the pipeline decided, written to the agent's record instead of to flows and counters.

use lb_common::{
    flow::flow_flags,
    frontend::{Frontend, Scope},
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::{Fate, Stop},
};

use crate::{
    kernel::maps,
    packet::{Exit, Packet},
};

/// Lets `write` fill in the record if this packet is a question.
#[inline(always)]
pub fn note<P: Packet>(packet: &P, write: impl FnOnce(&mut TraceRecord)) {
    if packet.is_trace()
        && let Some(record) = maps::trace_record()
    {
        write(record);
    }
}

/// Writes which frontend it is, and for whom.
#[inline(always)]
pub fn note_frontend<P: Packet>(packet: &P, frontend: &Frontend, scope: Scope) {
    note(packet, |record| {
        record.step = trace_step::FRONTEND;
        record.service = frontend.service;
        record.internal = u32::from(scope == Scope::Internal);
    });
}

/// Writes whose flow it is.
#[inline(always)]
pub fn note_flow<P: Packet>(packet: &P, backend: u32) {
    note(packet, |record| {
        record.step = trace_step::FLOW;
        record.backend = backend;
    });
}

/// Writes how the packet goes on.
#[inline(always)]
pub fn note_exit<P: Packet>(packet: &P, exit: Exit, ifindex: u32, flags: u32) {
    const SHOWN: u8 = flow_flags::REPLY | flow_flags::SNAT | flow_flags::RESET;
    note(packet, |record| {
        record.verdict = if exit.is_forwarded() { trace_verdict::FORWARDED } else { trace_verdict::TRANSLATED };
        record.ifindex = if exit.is_forwarded() { ifindex } else { 0 };
        record.flow_flags = flags & u32::from(SHOWN);
    });
}

/// Writes how the pipeline ended early.
#[inline(always)]
pub fn note_end<P: Packet>(packet: &P, stop: Stop) {
    note(packet, |record| {
        record.reason = stop.reason();
        record.verdict = match stop.fate() {
            // What is rare is noted by the program that goes on.
            Fate::NotOurs | Fate::Rare | Fate::AskConntrack => trace_verdict::NOT_OURS,
            Fate::LeaveToTc => trace_verdict::LEFT_TO_TC,
            Fate::Pass => trace_verdict::PASSED,
            Fate::Reject => trace_verdict::REJECTED,
            Fate::Drop => trace_verdict::DROPPED,
            Fate::Reset => trace_verdict::RESET,
        };
    });
}
