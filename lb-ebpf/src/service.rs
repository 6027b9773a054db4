// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 3, the slow path: a new flow gets a backend, and the decision is written down as a pair of flow entries.
//!
//! `frontend -> admit -> select -> source -> install`. The outcome is the original direction's entry in the scratch space.

use lb_common::{
    config::{family_index, role},
    flow::{Flow, FlowState, flow_flags},
    frontend::{Backend, Frontend, FrontendKey, Scope, Target, backend_flags, backend_state},
    hash,
    trace::trace_step,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    forward,
    header::Header,
    install,
    maps::{self, FibParameters},
    packet::Packet,
    parse::Parsed,
    trace,
};

/// Decides the packet in the scratch space, which belongs to no flow. On success the scratch space holds the original entry.
#[inline(always)]
pub fn decide<P: Packet, F: Header>(packet: &P, now: u32) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    let parsed = &scratch.parsed;
    let frontend = find_frontend(parsed, &mut scratch.frontend_key).ok_or(Stop::NOT_OURS)?;
    let scope = scope(packet.ifindex());
    trace::note(packet, |record| {
        record.step = trace_step::FRONTEND;
        record.service = frontend.service;
        record.internal = u32::from(scope == Scope::Internal);
    });
    let target = admit(packet, frontend, scope)?;
    let hash = F::hash(&maps::config()?.seed, &parsed.key);
    let (index, backend) = select(hash, target)?;
    write_original(parsed, index, backend, now, &mut scratch.original);
    if needs_snat(parsed, scope, backend) {
        translate_source(packet, parsed.key.protocol, &mut scratch.original, &mut scratch.fib)?;
    }
    trace::note(packet, |record| {
        record.step = trace_step::DECIDED;
        record.backend = index;
    });
    install::install(packet, scratch, hash, now)?;
    if !packet.is_trace() {
        count_flow(frontend.service, index);
    }
    Ok(())
}

/// The frontend of a packet: a Service's own address, or a NodePort on an address of this node.
#[inline(always)]
fn find_frontend<F: Header>(parsed: &Parsed<F>, key: &mut FrontendKey) -> Option<&'static Frontend> {
    *key = FrontendKey::new(F::widen(&parsed.key.dst), parsed.key.dport_be, parsed.key.protocol);
    // An IPv6 packet may bear a mapped IPv4 address; the IPv4 frontend that stands under it is not meant.
    if key.address.is_v4() != F::IS_V4 {
        return None;
    }
    if let Some(frontend) = maps::find_frontend(key) {
        return Some(frontend);
    }
    if !maps::answers_node_ports(&key.address) {
        return None;
    }
    key.address = FrontendKey::any_address(F::IS_V4);
    maps::find_frontend(key)
}

/// Clients behind a pod's device are internal; whoever else comes, comes from outside.
#[inline(always)]
fn scope(ifindex: u32) -> Scope {
    match maps::find_interface(ifindex) {
        Some(interface) if interface.role & role::POD != 0 => Scope::Internal,
        _ => Scope::External,
    }
}

/// The table for the client's scope, or the refusal where it is empty.
#[inline(always)]
fn admit<P: Packet>(packet: &P, frontend: &Frontend, scope: Scope) -> Stage<Target> {
    let target = frontend.target(scope);
    if target.slots != 0 {
        return Ok(target);
    }
    let is_drop = frontend.is_drop(scope);
    if P::IS_XDP && !is_drop && !packet.is_trace() {
        // TC sends the error, and counts it.
        return Err(Stop::LEAVE_TO_TC);
    }
    if !packet.is_trace()
        && let Some(counters) = maps::service_counters(frontend.service)
    {
        if is_drop {
            counters.dropped += 1;
        } else {
            counters.rejected += 1;
        }
    }
    Err(if is_drop { Stop::drop(Reason::NoLocalEndpoints) } else { Stop::reject(Reason::NoEndpoints) })
}

/// Maglev: the keyed hash of the 5-tuple, scaled to the table, names the backend.
#[inline(always)]
fn select(hash: u64, target: Target) -> Stage<(u32, &'static Backend)> {
    let slot = target.offset.wrapping_add(hash::scale(hash, target.slots));
    let index = maps::table_slot(slot).ok_or(Stop::drop(Reason::TableCorrupt))?;
    let backend = maps::find_backend(index).ok_or(Stop::drop(Reason::TableCorrupt))?;
    if backend.state == backend_state::FREE {
        return Err(Stop::drop(Reason::TableCorrupt));
    }
    Ok((index, backend))
}

/// The original direction's entry, with the client's own source.
#[inline(always)]
fn write_original<F: Header>(parsed: &Parsed<F>, index: u32, backend: &Backend, now: u32, original: &mut Flow<F>) {
    original.src = parsed.key.src;
    original.dst = F::narrow(&backend.address);
    original.sport_be = parsed.key.sport_be;
    original.dport_be = backend.port_be;
    original.backend = index;
    original.generation = backend.generation;
    original.ifindex = 0;
    original.next_hop_generation = 0;
    original.macs = [0; 3];
    original.last_seen = now;
    original.state = FlowState::first(parsed.key.protocol, parsed.tcp_flags);
    original.flags = 0;
    original.pad = [0; 2];
}

/// The source is translated only where the reply would not come back otherwise: to another node on behalf of an
/// outside client, and to the client itself.
#[inline(always)]
fn needs_snat<F: Header>(parsed: &Parsed<F>, scope: Scope, backend: &Backend) -> bool {
    let is_elsewhere = scope == Scope::External && backend.flags & backend_flags::LOCAL == 0;
    is_elsewhere || F::narrow(&backend.address) == parsed.key.src
}

/// Finds the way to the backend, and takes the address of the device that it leads through as the source.
#[inline(always)]
fn translate_source<P: Packet, F: Header>(
    packet: &P,
    protocol: u8,
    original: &mut Flow<F>,
    fib: &mut FibParameters,
) -> Stage<()> {
    original.flags |= flow_flags::SNAT;
    forward::look_up(packet, original, protocol, fib)?;
    let family = family_index(F::IS_V4);
    let address = match maps::find_interface(original.ifindex) {
        Some(interface) if !interface.addresses[family].is_unspecified() => interface.addresses[family],
        _ => maps::config()?.node_addresses[family],
    };
    if address.is_unspecified() {
        return Err(Stop::drop(Reason::NoSourceAddress));
    }
    original.src = F::narrow(&address);
    Ok(())
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
