// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 5: where a packet of a source-translated flow leaves. The next hop is kept in the flow, with the generation of
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
    flow::{Flow, protocol},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    apart::SlowPath,
    header::{ETHERNET_LEN, Header, UDP_LEN, tcp},
    layout::Offsets,
    maps::{self, FibParameters, Scratch},
    packet::{Exit, Packet},
    parse::Parsed,
};

const _: () = assert!(size_of::<FibParameters>() == size_of::<KernelFibParameters>());

/// How a packet of this flow goes on. Looks the next hop up again where the cached one may be out of date.
#[inline(always)]
pub fn resolve<P: SlowPath<F>, F: Header>(
    packet: &mut P,
    flow: &mut Flow<F>,
    parsed: &Parsed<F>,
    l4: u32,
) -> Stage<Exit> {
    let protocol = parsed.key.protocol;
    if !flow.is_forwarded() {
        return Ok(Exit::Stack);
    }
    if parsed.ttl <= 1 {
        return Err(Stop::reject(Reason::TtlExpired));
    }
    if flow.next_hop_generation != maps::config()?.next_hop_generation {
        maps::scratch::<F>()?.next_hop.dst = flow.dst;
        packet.look_up_apart(protocol).unpack()?;
        maps::scratch::<F>()?.next_hop.write_to(flow);
    }
    if packet.len() > u32::from(flow.mtu) + ETHERNET_LEN as u32 && flow.mtu != 0 {
        if P::IS_XDP {
            return Err(Stop::LEAVE_TO_TC);
        }
        packet.check_mtu_apart(protocol, flow.mtu, l4).unpack()?;
    }
    if flow.next_hop_generation == 0 {
        return if P::IS_XDP { Err(Stop::LEAVE_TO_TC) } else { Ok(Exit::Neighbour) };
    }
    if P::IS_XDP && flow.ifindex != packet.ifindex() && !takes_xdp_frames(flow.ifindex) {
        return Err(Stop::LEAVE_TO_TC);
    }
    Ok(Exit::Wire)
}

/// A packet longer than the way's MTU goes on if it will be cut into segments that are not; else its sender must send
/// shorter ones, also where it lets routers cut them: nothing between here and the wire does, as the stack would take the packet,
/// which bears its own address, for a forged one. `l4` is where its layer 4 begins.
#[inline(always)]
pub fn check_mtu<P: Packet>(packet: &mut P, protocol: u8, mtu: u16, l4: u32) -> Stage<()> {
    let segment_len = packet.segment_len();
    let l4_len = if protocol == protocol::TCP { tcp_len(packet, l4) } else { UDP_LEN as u32 };
    let headers_len = l4.wrapping_sub(ETHERNET_LEN as u32) + l4_len;
    // SCTP's segments have lengths of their own, which their sender has found to fit.
    if segment_len == SEGMENTS_OF_SCTP || segment_len != 0 && headers_len + segment_len <= u32::from(mtu) {
        return Ok(());
    }
    if !packet.is_trace() {
        packet.note_mtu(mtu);
    }
    Err(Stop::reject(Reason::TooBig))
}

/// `GSO_BY_FRAGS` of the kernel's `include/linux/skbuff.h`.
const SEGMENTS_OF_SCTP: u32 = 0xffff;

/// Length of a TCP header.
#[inline(always)]
fn tcp_len<P: Packet>(packet: &P, l4: u32) -> u32 {
    let at = Offsets { l3: ETHERNET_LEN as u32, l4 };
    at.l4_at(packet, tcp::DATA_OFFSET as u32, 1).map_or(0, |field| u32::from(field.load::<u8>(0) >> 4) * 4)
}

/// A way to a destination. The slow path's, until it stands in a flow.
#[repr(C)]
pub struct NextHop<F: Family> {
    /// The question.
    pub dst: F::Addr,
    pub ifindex: u32,
    /// The generation in which it was found; 0 where the neighbour is not known.
    generation: u32,
    macs: [u32; 3],
    /// 0 where it is not known.
    mtu: u32,
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

/// Asks the kernel's routing tables for the way to the destination in the scratch space. Finds the device, and the Ethernet
/// addresses where the neighbour is known.
#[inline(always)]
pub fn look_up<P: Packet, F: Header>(packet: &P, protocol: u8) -> Stage<()> {
    let generation = maps::config()?.next_hop_generation;
    // Asks for the MTU of the way, which stands there afterwards; 1 is never too long.
    let result = ask::<P, F>(packet, protocol, 1)?;
    let Scratch { fib, next_hop, .. } = maps::scratch::<F>()?;
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
                let Scratch { fib, next_hop, .. } = maps::scratch::<F>()?;
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
    let Scratch { fib, next_hop, .. } = maps::scratch::<F>()?;
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
