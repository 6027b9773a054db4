// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 5: where a packet of a source-translated flow leaves. The next hop is kept in the flow, with the generation of
//! routes, neighbours and links under which it was found.

use core::ffi::c_int;

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as KernelFibParameters},
    helpers::generated::bpf_fib_lookup,
};
use lb_common::{
    config::role,
    flow::Flow,
    verdict::{Packed, Reason, Stage, Stop},
};

use crate::{
    header::Header,
    maps::{self, FibParameters},
    packet::{Exit, Packet},
};

const _: () = assert!(size_of::<FibParameters>() == size_of::<KernelFibParameters>());

/// How a packet of this flow goes on. Looks the next hop up again where the cached one may be out of date.
#[inline(always)]
pub fn resolve<P: Packet, F: Header>(packet: &P, flow: &mut Flow<F>, protocol: u8, ttl: u8) -> Stage<Exit> {
    if !flow.is_forwarded() {
        return Ok(Exit::Stack);
    }
    if ttl <= 1 {
        return Err(Stop::drop(Reason::TtlExpired));
    }
    if flow.next_hop_generation != maps::config()?.next_hop_generation {
        refresh(packet, flow, protocol).unpack()?;
    }
    if flow.next_hop_generation == 0 {
        return if P::IS_XDP { Err(Stop::LEAVE_TO_TC) } else { Ok(Exit::Neighbour) };
    }
    if P::IS_XDP && flow.ifindex != packet.ifindex() && !takes_xdp_frames(flow.ifindex) {
        return Err(Stop::LEAVE_TO_TC);
    }
    Ok(Exit::Wire)
}

// Packed, because the kernel's BTF checker refuses the debug information of an enum with data, and with it the whole.
#[inline(never)]
fn refresh<P: Packet, F: Header>(packet: &P, flow: &mut Flow<F>, protocol: u8) -> Packed {
    Packed::pack(maps::scratch::<F>().and_then(|scratch| look_up(packet, flow, protocol, &mut scratch.fib)))
}

/// Asks the kernel's routing tables for the way to `flow.dst`. Writes the device, and the Ethernet addresses where the
/// neighbour is known; else the generation stays 0.
///
/// The fields are not written at once. A packet on another CPU may see the new device with the old addresses, and be
/// lost on the wire like any packet that is under way while routes change.
#[inline(always)]
pub fn look_up<P: Packet, F: Header>(
    packet: &P,
    flow: &mut Flow<F>,
    protocol: u8,
    fib: &mut FibParameters,
) -> Stage<()> {
    let generation = maps::config()?.next_hop_generation;
    fib.family = F::AF;
    fib.protocol = protocol;
    fib.sport_be = 0;
    fib.dport_be = 0;
    fib.total_len = 0;
    fib.ifindex = packet.ifindex();
    fib.flow_info = 0;
    fib.src = [0; 4];
    fib.dst = F::first_words(&flow.dst);
    fib.vlan = 0;
    // SAFETY: a valid context, and parameters of the kernel's layout and size.
    let result = unsafe {
        bpf_fib_lookup(
            packet.context(),
            (&raw mut *fib).cast::<KernelFibParameters>(),
            size_of::<FibParameters>() as c_int,
            0,
        )
    } as u32;
    flow.next_hop_generation = 0;
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => {
            flow.ifindex = fib.ifindex;
            flow.macs = fib.macs();
            flow.next_hop_generation = generation;
            Ok(())
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            flow.ifindex = fib.ifindex;
            Ok(())
        }
        _ if P::IS_XDP => Err(Stop::LEAVE_TO_TC),
        _ => Err(Stop::drop(Reason::NoRoute)),
    }
}

/// Only a device that runs our XDP program natively takes frames from another one's.
#[inline(always)]
fn takes_xdp_frames(ifindex: u32) -> bool {
    maps::find_interface(ifindex).is_some_and(|interface| interface.role & role::XDP != 0)
}
