// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 3, the slow path: a new flow gets a backend, and the decision is written down as a pair of flow entries.
//!
//! `young flow? | admit -> select -> source -> install`. The outcome is the original direction's entry in the scratch space.

use lb_common::{
    frontend::{Frontend, Scope},
    trace::trace_step,
    verdict::{Fate, Stage, Stop},
};

use crate::{admit, apart::SlowPath, header::Header, log, maps, packet::Packet, trace};

/// Decides the packet in the scratch space, which belongs to no grown flow. On success the scratch space holds the original entry.
#[inline(always)]
pub fn decide<P: SlowPath<F>, F: Header>(packet: &P, now: u32) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    match F::find_young_apart(now, packet.is_trace()).unpack() {
        Ok(()) if scratch.original.is_at_egress() => return Err(Stop::NOT_OURS),
        Ok(()) => {
            trace::note_flow(packet, &scratch.original);
            return Ok(());
        }
        Err(stop) if stop.fate() != Fate::NotOurs => {
            trace::note_flow(packet, &scratch.original);
            return Err(stop);
        }
        Err(_) => {}
    }
    admit::admit(packet, scratch)?;
    let hash = F::hash(&maps::config()?.seed, &scratch.parsed.key);
    F::select_apart((hash >> 32) as u32, now, packet.is_trace()).unpack()?;
    let (service, backend) = (scratch.admitted.frontend.service, scratch.original.backend);
    trace::note(packet, |record| {
        record.step = trace_step::DECIDED;
        record.backend = backend;
    });
    packet.translate_source_apart().unpack()?;
    // The low half of the hash: the high one chose the backend.
    F::install_apart(hash as u32, now, packet.is_trace()).unpack()?;
    log::debug!(packet, "service {}: new flow to backend {}", service, backend);
    if !packet.is_trace() {
        count_flow(service, backend);
    }
    Ok(())
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

#[inline(always)]
fn count_flow(service: u32, backend: u32) {
    if let Some(counters) = maps::service_counters(service) {
        counters.flows += 1;
    }
    if let Some(counters) = maps::backend_counters(backend) {
        counters.flows += 1;
    }
}
