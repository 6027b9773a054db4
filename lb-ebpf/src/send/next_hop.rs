// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Next hops, by the FIB (`bpf_fib_lookup`): where a packet of a source-translated flow leaves. The next hop is kept in the flow, with the generation of
//! routes, neighbours and links under which it was found.

use core::ffi::c_int;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as KernelFibParameters,
    },
    helpers::generated::bpf_fib_lookup,
};
use lb_common::{
    address::Family,
    config::role,
    flow::Flow,
    verdict::{Reason, Stage, Stop},
};

use super::mtu::check_mtu_global;
use crate::{
    kernel::{
        global_fn, maps,
        work::{self, FibParameters, NextHop, Parsed, Scratch},
    },
    packet::{
        Exit, Packet,
        header::{ETHERNET_LEN, Header},
    },
};

const _: () = assert!(size_of::<FibParameters>() == size_of::<KernelFibParameters>());

/// How a packet of this flow goes on. Looks the next hop up again where the cached one may be out of date.
#[inline(always)]
pub fn resolve<P: Packet, F: Header>(packet: &mut P, flow: &mut Flow<F>, parsed: &Parsed<F>, l4: u32) -> Stage<Exit> {
    let protocol = parsed.key.protocol;
    if !flow.is_forwarded() {
        return Ok(Exit::Stack);
    }
    if parsed.ttl <= 1 {
        return Err(Stop::reject(Reason::TtlExpired));
    }
    if flow.next_hop_generation != maps::config()?.next_hop_generation {
        work::scratch::<F>()?.next_hop.dst = flow.dst;
        look_up_global::<P, F>(packet, protocol)?;
        work::scratch::<F>()?.next_hop.write_to(flow);
    }
    if packet.len() > u32::from(flow.mtu) + ETHERNET_LEN as u32 && flow.mtu != 0 {
        if P::IS_XDP {
            return Err(Stop::LEAVE_TO_TC);
        }
        check_mtu_global(packet, protocol, flow.mtu, l4)?;
    }
    if flow.next_hop_generation == 0 {
        return if P::IS_XDP { Err(Stop::LEAVE_TO_TC) } else { Ok(Exit::Neighbour) };
    }
    if P::IS_XDP && flow.ifindex != packet.ifindex() && !takes_xdp_frames(flow.ifindex) {
        return Err(Stop::LEAVE_TO_TC);
    }
    Ok(Exit::Wire)
}

impl<F: Family> NextHop<F> {
    /// The fields are not written at once. A packet on another CPU may see the new device with the old addresses, and be
    /// lost on the wire like any packet that is under way while routes change.
    #[inline(always)]
    pub fn write_to(&self, flow: &mut Flow<F>) {
        flow.next_hop_generation = self.generation;
        flow.ifindex = self.ifindex;
        flow.macs = self.macs;
        flow.mtu = self.mtu as u16;
    }
}

global_fn! {
    /// [`look_up`].
    pub fn look_up_global<P: Packet, F: Header>(packet: &P, protocol: u8) -> Stage<()>
        = look_up => look_up_xdp_v4 | look_up_xdp_v6 | look_up_tc_v4 | look_up_tc_v6
}

/// Asks the kernel's routing tables for the way to the destination in the scratch space. Finds the device, and the Ethernet
/// addresses where the neighbour is known.
#[inline(always)]
fn look_up<P: Packet, F: Header>(packet: &P, protocol: u8) -> Stage<()> {
    let generation = maps::config()?.next_hop_generation;
    // Asks for the MTU of the way, which stands there afterwards; 1 is never too long.
    let result = ask::<P, F>(packet, protocol, 1)?;
    let Scratch { fib, next_hop, .. } = work::scratch::<F>()?;
    next_hop.ifindex = fib.ifindex;
    next_hop.macs = [0; 3];
    next_hop.generation = 0;
    next_hop.mtu = 0;
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => {
            next_hop.macs = fib.macs();
            next_hop.generation = generation;
            // Before Linux 5.12 it is not told.
            next_hop.mtu = if fib.total_len > 1 { u32::from(fib.total_len) } else { 0 };
            Ok(())
        }
        BPF_FIB_LKUP_RET_NO_NEIGH if P::IS_XDP => Ok(()),
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            // The MTU is told where a neighbour is, or to one whose packet is too long, as this is.
            if ask::<P, F>(packet, protocol, u16::MAX)? == BPF_FIB_LKUP_RET_FRAG_NEEDED {
                let Scratch { fib, next_hop, .. } = work::scratch::<F>()?;
                next_hop.mtu = if fib.total_len == u16::MAX { 0 } else { u32::from(fib.total_len) };
            }
            Ok(())
        }
        _ if P::IS_XDP => Err(Stop::LEAVE_TO_TC),
        _ => Err(Stop::drop(Reason::NoRoute)),
    }
}

/// One look-up, as if for a packet of this length.
#[inline(always)]
fn ask<P: Packet, F: Header>(packet: &P, protocol: u8, total_len: u16) -> Stage<u32> {
    let Scratch { fib, next_hop, .. } = work::scratch::<F>()?;
    fib.family = F::AF;
    fib.protocol = protocol;
    fib.sport_be = 0;
    fib.dport_be = 0;
    fib.total_len = total_len;
    fib.ifindex = packet.ifindex();
    fib.flow_info = 0;
    fib.src = [0; 4];
    fib.dst = F::first_words(&next_hop.dst);
    fib.vlan = 0;
    // SAFETY: a valid context, and parameters of the kernel's layout and size.
    let result = unsafe {
        bpf_fib_lookup(
            packet.context(),
            (&raw mut *fib).cast::<KernelFibParameters>(),
            size_of::<FibParameters>() as c_int,
            0,
        )
    };
    Ok(result as u32)
}

/// Only a device that runs our XDP program natively takes frames from another one's.
#[inline(always)]
fn takes_xdp_frames(ifindex: u32) -> bool {
    maps::find_interface(ifindex).is_some_and(|interface| interface.role & role::XDP != 0)
}
