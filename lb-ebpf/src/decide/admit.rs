// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Admission: which frontend a packet is for, which of its two tables serves this client, and whether it may
//! come in at all.

use aya_ebpf::maps::lpm_trie::Key;
use lb_common::{
    config::{Interface, family_index, role},
    flow::table::{class_of_device, class_of_source},
    frontend::{Frontend, FrontendKey, Scope, SourceRange, Target, frontend_flags},
    verdict::{Fate, Reason, Stage, Stop},
};

use super::own;
use crate::{
    kernel::{
        global_fn, maps,
        work::{self, Admitted, Parsed},
    },
    packet::{Packet, header::Header},
    trace,
};

global_fn! {
    /// [`admit`].
    pub fn admit_global<P: Packet, F: Header>(packet: &P) -> Stage<()> = admit => admit_xdp_v4 | admit_xdp_v6 | admit_tc_v4 | admit_tc_v6
}

/// Finds the frontend of the packet in the scratch space, and the table for its client.
#[inline(always)]
fn admit<P: Packet, F: Header>(packet: &P) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let comes_from_pod =
        if !P::IS_XDP && scratch.is_net != 0 { comes_from_inside(packet) } else { comes_from_pod(packet)? };
    let parsed = &scratch.parsed;
    let key = &mut scratch.frontend_key;
    *key = FrontendKey::new(F::widen(&parsed.key.dst), parsed.key.dport_be, parsed.key.protocol);
    // An IPv6 packet may bear a mapped IPv4 address; the IPv4 frontend that stands under it is not meant.
    if key.address.is_v4() != F::IS_V4 {
        return Err(Stop::NOT_OURS);
    }
    let frontend = find_frontend(key, F::IS_V4)?;
    // Before whatever else may become of a client's packet.
    own::check(packet, scratch, comes_from_pod)?;
    let scope = scope(&scratch.parsed, comes_from_pod)?;
    trace::note_frontend(packet, &frontend, scope);
    // Before the question whether anything serves (rule 36).
    if frontend.flags & frontend_flags::SOURCE_RANGES != 0 {
        let client = SourceRange { service: frontend.service, address: F::widen(&scratch.parsed.key.src) };
        scratch.source = Key::new(SourceRange::FULL_LEN, client);
        if !maps::is_in_source_ranges(&scratch.source) {
            return Err(refuse(packet, frontend.service, Stop::drop(Reason::SourceRange)));
        }
    }
    let target = match find_target(&frontend, scope) {
        Ok(target) => target,
        Err(stop) => return Err(refuse(packet, frontend.service, stop)),
    };
    let list = u32::from(frontend.list(scope));
    let class = if comes_from_pod {
        class_of_device(packet.arrived_by())
    } else {
        class_of_source::<F>(&scratch.parsed.key.src)
    };
    let comes_from_pod = u32::from(comes_from_pod);
    scratch.admitted = Admitted { frontend, target, list, comes_from_pod, class: class.into() };
    Ok(())
}

/// The frontend of a destination, of which `key` has address, port and protocol: a Service's own address, or a NodePort on
/// an address of this node. Another port of a ClusterIP is refused (rule 44).
#[inline(always)]
pub fn find_frontend(key: &mut FrontendKey, is_v4: bool) -> Stage<Frontend> {
    if let Some(frontend) = maps::find_frontend(key) {
        return Ok(frontend);
    }
    if maps::answers_node_ports(&key.address) {
        key.address = FrontendKey::any_address(is_v4);
        return maps::find_frontend(key).ok_or(Stop::NOT_OURS);
    }
    *key = FrontendKey::any_port(key.address);
    match maps::find_frontend(key) {
        Some(_) => Err(Stop::reject(Reason::UndefinedPort)),
        None => Err(Stop::NOT_OURS),
    }
}

/// The table that serves clients of a scope, or why none does.
#[inline(always)]
pub fn find_target(frontend: &Frontend, scope: Scope) -> Stage<Target> {
    let target = frontend.target(scope);
    if target.slots != 0 {
        Ok(target)
    } else if frontend.is_pass(scope) {
        Err(Stop::NOT_OURS)
    } else if frontend.is_drop(scope) {
        Err(Stop::drop(Reason::NoLocalEndpoints))
    } else {
        Err(Stop::reject(Reason::NoEndpoints))
    }
}

/// Whether the packet comes by a pod's device. By one that nobody has chosen nothing new comes in, nor in a frame for another
/// machine, or for all, that an uplink sees as well: the stack forwards none. A pod's device may be a port of a bridge.
#[inline(always)]
fn comes_from_pod<P: Packet>(packet: &P) -> Stage<bool> {
    match maps::find_interface(packet.ifindex()) {
        Some(interface) if interface.role & role::POD != 0 => Ok(true),
        Some(interface) if interface.role & role::UPLINK != 0 && packet.is_for_device(interface.mac) => Ok(false),
        _ => Err(Stop::NOT_OURS),
    }
}

/// Whether a packet at the net is of this node's processes, or of a pod. A device that no pattern matches may lead to one.
#[inline(always)]
fn comes_from_inside<P: Packet>(packet: &P) -> bool {
    let is_outside = |device: &Interface| device.role & (role::UPLINK | role::RETURN) != 0;
    !maps::find_interface(packet.arrived_by()).is_some_and(is_outside)
}

/// Pods are internal clients, those of this node by the device that they come by and those of others by their address;
/// whoever else comes, comes from outside.
#[inline(always)]
fn scope<F: Header>(parsed: &Parsed<F>, comes_from_pod: bool) -> Stage<Scope> {
    let cidr = &maps::config()?.cluster_cidrs[family_index(F::IS_V4)];
    let is_pod = comes_from_pod || cidr.contains(&F::widen(&parsed.key.src));
    Ok(if is_pod { Scope::Internal } else { Scope::External })
}

/// Counts a refusal for its Service. XDP leaves rejects to TC, which will count them.
#[inline(always)]
fn refuse<P: Packet>(packet: &P, service: u32, stop: Stop) -> Stop {
    let is_drop = stop.fate() == Fate::Drop;
    let is_reject = stop.fate() == Fate::Reject && !P::IS_XDP;
    if !packet.is_trace()
        && (is_drop || is_reject)
        && let Some(counters) = maps::service_counters(service)
    {
        if is_drop {
            counters.dropped += 1;
        } else {
            counters.rejected += 1;
        }
    }
    stop
}
