// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Next hops, by the FIB (`bpf_fib_lookup`): where a packet of a source-translated flow leaves. What was found stands in a table by
//! destination, under the generation of routes, neighbours and links in which it was found; flows hold an index into it.

use core::ffi::c_int;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NO_SRC_ADDR, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNREACHABLE, BPF_FIB_LKUP_RET_UNSUPP_LWT, BPF_FIB_LOOKUP_SRC,
        bpf_fib_lookup as KernelFibParameters,
    },
    helpers::generated::bpf_fib_lookup,
};
use lb_common::{
    config::{config_flags, family_index, role},
    flow::{
        next_hop::{self, next_hop_flags},
        table::{self, Table as _},
    },
    verdict::{Reason, Stage, Stop},
};

use super::{Sending, mtu::check_mtu_global};
use crate::{
    kernel::{
        clock, global_fn, maps,
        table::{FlowTable, NextHopRef},
        work::{self, FibParameters, Instruction, Parsed, Scratch, Way},
    },
    packet::{
        Exit, Packet,
        header::{ETHERNET_LEN, Header},
    },
};

const _: () = assert!(size_of::<FibParameters>() == size_of::<KernelFibParameters>());

/// How a packet of this flow goes on, and by which way. Asks the kernel where what is known may be out of date. `l4` is where the
/// packet's layer 4 begins.
#[inline(always)]
pub fn resolve<P: Packet, F: Header>(
    packet: &mut P,
    flow: &Instruction<F>,
    parsed: &Parsed<F>,
    l4: u32,
) -> Stage<Sending> {
    if flow.stays_with_stack() {
        return Ok(Sending { exit: Exit::Stack, way: Way::NONE });
    }
    if P::IS_XDP && flow.is_nets() {
        return Err(Stop::LEAVE_TO_TC);
    }
    if !P::IS_XDP && flow.is_handed_to_net() {
        return way_of_net();
    }
    if parsed.ttl <= 1 {
        return Err(Stop::reject(Reason::TtlExpired));
    }
    let generation = maps::config()?.next_hop_generation;
    let way = match recall::<F>(flow.next_hop, &flow.dst, generation) {
        Some(way) => way,
        None => {
            let scratch = work::scratch::<F>()?;
            // On the fast path another packet's stands there.
            scratch.parsed.is_trace = parsed.is_trace;
            scratch.next_hop_dst = flow.dst;
            scratch.next_hop_src = flow.src;
            look_up_global::<P, F>(packet, parsed.key.protocol, flow.slot)?;
            work::scratch::<F>()?.way
        }
    };
    if packet.len() > way.mtu + ETHERNET_LEN as u32 && way.mtu != 0 {
        if P::IS_XDP {
            return Err(Stop::LEAVE_TO_TC);
        }
        check_mtu_global(packet, parsed.key.protocol, way.mtu as u16, l4)?;
    }
    if !way.is_resolved() {
        return if P::IS_XDP { Err(Stop::LEAVE_TO_TC) } else { Ok(Sending { exit: Exit::Neighbour, way }) };
    }
    // Only a device that runs our XDP program natively takes frames from another one's.
    let takes_frames = way.flags & next_hop_flags::TAKES_XDP_FRAMES != 0;
    if P::IS_XDP && way.ifindex != packet.ifindex() && !takes_frames {
        return Err(Stop::LEAVE_TO_TC);
    }
    Ok(Sending { exit: Exit::Wire, way })
}

/// The way back into this node, by the net's device. Where there is none any more, the stack has the packet.
#[inline(always)]
pub fn way_of_net() -> Stage<Sending> {
    let net = &maps::config()?.net;
    if !net.is_there() {
        return Ok(Sending { exit: Exit::Stack, way: Way::NONE });
    }
    Ok(Sending { exit: Exit::Net, way: Way { ifindex: net.ifindex, macs: net.macs, mtu: 0, flags: Way::RESOLVED } })
}

/// The way that an element of the table stands for, if it is for this destination and from this generation.
#[inline(always)]
fn recall<F: Header>(index: u32, dst: &F::Addr, generation: u32) -> Option<Way> {
    let element = NextHopRef::at::<F>(index)?;
    let stamp = element.stamp();
    if stamp.generation() != generation || !element.is_for::<F>(dst) {
        return None;
    }
    let way = Way {
        ifindex: element.ifindex(),
        macs: element.macs(),
        mtu: element.mtu(),
        flags: element.flags() | Way::RESOLVED,
    };
    (element.stamp() == stamp).then_some(way)
}

global_fn! {
    /// [`look_up`].
    pub fn look_up_global<P: Packet, F: Header>(packet: &P, protocol: u8, slot: u32) -> Stage<()>
        = look_up => look_up_xdp_v4 | look_up_xdp_v6 | look_up_tc_v4 | look_up_tc_v6
}

/// Finds the way to the destination in the scratch space: in the table, else by the kernel's routes. It goes to the scratch space, and
/// where the neighbour is known its index to the flow's entry at this slot (or nowhere, with a slot that is none).
#[inline(always)]
fn look_up<P: Packet, F: Header>(packet: &P, protocol: u8, slot: u32) -> Stage<()> {
    let generation = maps::config()?.next_hop_generation;
    let scratch = work::scratch::<F>()?;
    let [first, second] = next_hop::places::<F>(&scratch.next_hop_dst);
    let found = match recall::<F>(first, &scratch.next_hop_dst, generation) {
        Some(way) => Some((first, way)),
        None => recall::<F>(second, &scratch.next_hop_dst, generation).map(|way| (second, way)),
    };
    let known = if let Some((index, way)) = found {
        if !wants_source::<F>(scratch) || find_source::<F>(scratch, index, generation) {
            scratch.way = way;
            note_index::<F>(scratch, slot, index);
            return Ok(());
        }
        index
    } else {
        NOWHERE
    };
    ask_kernel::<P, F>(packet, protocol)?;
    let scratch = work::scratch::<F>()?;
    if scratch.way.is_resolved() && scratch.parsed.is_trace == 0 {
        remember::<F>(scratch, slot, known, generation)?;
    }
    Ok(())
}

/// No place in the table.
const NOWHERE: u32 = u32::MAX;

/// Whether a source address is looked for.
#[inline(always)]
fn wants_source<F: Header>(scratch: &Scratch<F>) -> bool {
    let [a, b, c, d] = F::first_words(&scratch.next_hop_src);
    a | b | c | d == 0
}

/// Takes the source address from an element, if it has one and is still that of this generation.
#[inline(always)]
fn find_source<F: Header>(scratch: &mut Scratch<F>, index: u32, generation: u32) -> bool {
    let Some(element) = NextHopRef::at::<F>(index) else { return false };
    let stamp = element.stamp();
    scratch.preferred_src = element.source();
    let [a, b, c, d] = scratch.preferred_src;
    stamp.generation() == generation
        && element.is_for::<F>(&scratch.next_hop_dst)
        && element.stamp() == stamp
        && a | b | c | d != 0
}

/// Writes the way in the scratch space to the table: to the place where the destination stands, to one that is out of date, else to
/// either at random. Where ways are not the same for all packets, it is out of date at once, and there for the agent only, which sees to
/// the neighbours.
#[inline(always)]
fn remember<F: Header>(scratch: &mut Scratch<F>, slot: u32, known: u32, generation: u32) -> Stage<()> {
    let is_for_agent = maps::config()?.flags & config_flags::POLICY_ROUTING != 0;
    let generation = generation.wrapping_sub(u32::from(is_for_agent));
    let [first, second] = next_hop::places::<F>(&scratch.next_hop_dst);
    if is_for_agent && has_noted::<F>(scratch, first, generation) | has_noted::<F>(scratch, second, generation) {
        return Ok(());
    }
    let is_free = |index| NextHopRef::at::<F>(index).is_some_and(|element| element.stamp().generation() != generation);
    let takes_first =
        known == first || known == NOWHERE && (is_free(first) || !is_free(second) && clock::jiffies() & 1 == 0);
    let index = if takes_first { first } else { second };
    let Some(element) = NextHopRef::at::<F>(index) else { return Ok(()) };
    let way = &scratch.way;
    scratch.next_hop = next_hop::NextHop {
        stamp: 0,
        dst: F::first_words(&scratch.next_hop_dst),
        ifindex: way.ifindex,
        macs: way.macs,
        mtu: way.mtu,
        flags: way.flags & !Way::RESOLVED,
        source: scratch.preferred_src,
    };
    if element.replace(element.stamp(), &scratch.next_hop, generation) && !is_for_agent {
        note_index::<F>(scratch, slot, index);
    }
    Ok(())
}

/// Whether the way in the scratch space stands there for the agent.
#[inline(always)]
fn has_noted<F: Header>(scratch: &Scratch<F>, index: u32, generation: u32) -> bool {
    NextHopRef::at::<F>(index).is_some_and(|element| {
        element.stamp().generation() == generation
            && element.is_for::<F>(&scratch.next_hop_dst)
            && element.ifindex() == scratch.way.ifindex
            && element.macs() == scratch.way.macs
    })
}

/// Writes the index of the next hop to the flow's entry. A slot that has become another flow's meanwhile holds the index of a next hop
/// that says that it is for somebody else.
#[inline(always)]
fn note_index<F: Header>(scratch: &mut Scratch<F>, slot: u32, index: u32) {
    scratch.original.next_hop = index as u16;
    if scratch.parsed.is_trace == 0
        && slot != Instruction::<F>::NO_SLOT
        && let Some(slot) = FlowTable::<F>::NEW.at(slot)
    {
        table::set_next_hop::<F, _>(slot, index as u16);
    }
}

/// Asks the kernel's routing tables for the way to the destination in the scratch space. Finds the device, and the Ethernet
/// addresses where the neighbour is known.
#[inline(always)]
fn ask_kernel<P: Packet, F: Header>(packet: &P, protocol: u8) -> Stage<()> {
    // Asks for the MTU of the way, which stands there afterwards; 1 is never too long.
    let result = if wants_source::<F>(work::scratch::<F>()?) {
        ask_for_source::<P, F>(packet, protocol)?
    } else {
        work::scratch::<F>()?.preferred_src = [0; 4];
        ask::<P, F>(packet, protocol, 1, 0)?
    };
    let Scratch { fib, way, .. } = work::scratch::<F>()?;
    *way = Way { ifindex: fib.ifindex, macs: [0; 3], mtu: 0, flags: 0 };
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => {
            way.macs = fib.macs();
            way.mtu = if fib.total_len > 1 { u32::from(fib.total_len) } else { 0 };
            let takes_frames = maps::find_interface(fib.ifindex).is_some_and(|device| device.role & role::XDP != 0);
            way.flags = Way::RESOLVED | if takes_frames { next_hop_flags::TAKES_XDP_FRAMES } else { 0 };
            Ok(())
        }
        BPF_FIB_LKUP_RET_NO_NEIGH if P::IS_XDP => Ok(()),
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            // The MTU is told where a neighbour is, or to one whose packet is too long, as this is.
            if ask::<P, F>(packet, protocol, u16::MAX, 0)? == BPF_FIB_LKUP_RET_FRAG_NEEDED {
                let Scratch { fib, way, .. } = work::scratch::<F>()?;
                way.mtu = if fib.total_len == u16::MAX { 0 } else { u32::from(fib.total_len) };
            }
            Ok(())
        }
        _ if P::IS_XDP => Err(Stop::LEAVE_TO_TC),
        refusal => Err(Stop::drop(match refusal {
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
                Reason::RouteRefuses
            }
            BPF_FIB_LKUP_RET_FWD_DISABLED => Reason::ForwardingOff,
            BPF_FIB_LKUP_RET_UNSUPP_LWT => Reason::RouteWraps,
            _ => Reason::NoRoute,
        })),
    }
}

/// Asks for the way, and for the source address that the kernel would take: the route's, else that of the device in the next hop's
/// network (Linux 6.7). Before that it is an address of the device.
#[inline(always)]
fn ask_for_source<P: Packet, F: Header>(packet: &P, protocol: u8) -> Stage<u32> {
    let result = ask::<P, F>(packet, protocol, 1, BPF_FIB_LOOKUP_SRC)?;
    let scratch = work::scratch::<F>()?;
    if result != EINVAL && result != BPF_FIB_LKUP_RET_NO_SRC_ADDR {
        scratch.preferred_src = scratch.fib.src;
        return Ok(result);
    }
    let result = ask::<P, F>(packet, protocol, 1, 0)?;
    let scratch = work::scratch::<F>()?;
    let own = maps::find_interface(scratch.fib.ifindex).map(|device| device.addresses[family_index(F::IS_V4)]);
    scratch.preferred_src = match own {
        Some(own) if !own.is_unspecified() => F::first_words(&F::narrow(&own)),
        _ => [0; 4],
    };
    Ok(result)
}

/// What the kernel says of the way from and to these addresses.
#[inline(always)]
pub fn ask_for_way<P: Packet, F: Header>(packet: &P, src: &F::Addr, dst: &F::Addr) -> Stage<u32> {
    let scratch = work::scratch::<F>()?;
    (scratch.next_hop_src, scratch.next_hop_dst) = (*src, *dst);
    ask::<P, F>(packet, 0, 1, 0)
}

/// The kernel's refusal of flags that it does not know.
const EINVAL: u32 = (-22_i32).cast_unsigned();

/// The device whose routes are asked for: a bridge routes what comes by its ports, and the net's device what leaves by the loopback
/// device as well.
#[inline(always)]
fn routing_device(ifindex: u32) -> u32 {
    match maps::find_interface(ifindex) {
        Some(port) if port.bridge != 0 => port.bridge,
        Some(net) if net.role & role::NET != 0 => maps::config().map_or(ifindex, |config| config.net.ifindex),
        _ => ifindex,
    }
}

/// One look-up, as if for a packet of this length.
#[inline(always)]
fn ask<P: Packet, F: Header>(packet: &P, protocol: u8, total_len: u16, flags: u32) -> Stage<u32> {
    let Scratch { fib, next_hop_dst, next_hop_src, .. } = work::scratch::<F>()?;
    fib.family = F::AF;
    fib.protocol = protocol;
    fib.sport_be = 0;
    fib.dport_be = 0;
    fib.total_len = total_len;
    fib.ifindex = routing_device(packet.ifindex());
    fib.flow_info = 0;
    fib.src = F::first_words(next_hop_src);
    fib.dst = F::first_words(next_hop_dst);
    fib.vlan = 0;
    // SAFETY: a valid context, and parameters of the kernel's layout and size.
    let result = unsafe {
        bpf_fib_lookup(
            packet.context(),
            (&raw mut *fib).cast::<KernelFibParameters>(),
            size_of::<FibParameters>() as c_int,
            flags,
        )
    };
    Ok(result as u32)
}
