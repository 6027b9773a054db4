// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 3, the slow path: a new flow gets a backend, and the decision is written down as a pair of flow entries.
//!
//! `admit -> select -> source -> install`. The outcome is the original direction's entry in the scratch space.

use lb_common::{
    flow::{Flow, FlowState, flow_flags, protocol},
    frontend::{Frontend, Scope, backend_state, frontend_flags},
    trace::trace_step,
    verdict::Stage,
};

use crate::{
    admit,
    apart::SlowPath,
    header::Header,
    install, log,
    maps::{self, Scratch},
    packet::Packet,
    select::{self, Chosen},
    source, trace,
};

/// Decides the packet in the scratch space, which belongs to no flow. On success the scratch space holds the original entry.
#[inline(always)]
pub fn decide<P: SlowPath<F>, F: Header>(packet: &P, now: u32) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    let admitted = admit::admit(packet, scratch)?;
    let hash = F::hash(&maps::config()?.seed, &scratch.parsed.key);
    let chosen = select::select(packet, scratch, &admitted, hash, now)?;
    write_original(scratch, admitted.frontend, &chosen, now);
    trace::note(packet, |record| {
        record.step = trace_step::DECIDED;
        record.backend = chosen.index;
    });
    // The low half of the hash: the high one chose the backend.
    packet.settle_apart(hash as u32, now, admitted.comes_from_pod).unpack()?;
    log::debug!(packet, "service {}: new flow to backend {}", admitted.frontend.service, chosen.index);
    if !packet.is_trace() {
        count_flow(admitted.frontend.service, chosen.index);
    }
    Ok(())
}

/// Finds a source for the flow whose original entry is in the scratch space, and installs it.
#[inline(always)]
pub fn settle<P: Packet, F: Header>(packet: &P, start: u32, now: u32, comes_from_pod: bool) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    source::translate(packet, scratch, comes_from_pod)?;
    install::install(packet, scratch, start, now)
}

/// Lets `trace` say which frontend it is, and for whom.
#[inline(always)]
pub fn note_frontend<P: Packet>(packet: &P, frontend: &Frontend, scope: Scope) {
    trace::note(packet, |record| {
        record.step = trace_step::FRONTEND;
        record.service = frontend.service;
        record.internal = u32::from(scope == Scope::Internal);
    });
}

/// The original direction's entry, with the client's own source.
#[inline(always)]
fn write_original<F: Header>(scratch: &mut Scratch<F>, frontend: &Frontend, chosen: &Chosen, now: u32) {
    let (parsed, original, backend) = (&scratch.parsed, &mut scratch.original, chosen.backend);
    let resets = frontend.flags & frontend_flags::RESET_ON_REMOVAL != 0 && parsed.key.protocol == protocol::TCP;
    // This packet may have read its table a moment before the backend was freed, whose address still stands there: it
    // gets there like one that came a moment earlier, in a flow that is stale at once.
    let is_free = backend.state == backend_state::FREE;
    *original = Flow {
        src: parsed.key.src,
        dst: F::narrow(&backend.address),
        sport_be: parsed.key.sport_be,
        dport_be: backend.port_be,
        address_delta: 0,
        port_delta: 0,
        backend: chosen.index,
        generation: backend.generation.wrapping_sub(u32::from(is_free)),
        ifindex: 0,
        next_hop_generation: 0,
        macs: [0; 3],
        last_seen: now,
        state: FlowState::first(parsed.key.protocol, parsed.tcp_flags),
        flags: if resets { flow_flags::RESET } else { 0 },
        pad: [0; 2],
    };
}

#[inline(always)]
fn count_flow(service: u32, backend: u32) {
    if let Some(counters) = maps::service_counters(service) {
        counters.flows += 1;
    }
    if let Some(counters) = maps::backend_counters(backend) {
        counters.flows += 1;
    }
}
