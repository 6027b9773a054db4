// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The net's device beside the pipeline: what leaves by it and is no Service's, and what arrives by it.
//!
//! Knows `packet`, of `parse` the filter, and of `send` how to ask for a route.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_DIRECT,
};
use lb_common::filter::WHOLE;

use crate::{
    kernel::{maps, work},
    packet::{
        Exit, Packet, SkbPacket,
        header::{ETHERNET_LEN, Header},
    },
    parse::filter::is_net_source,
    send::next_hop::ask_for_way,
};

/// Index of the loopback device, the first of every network namespace.
const LOOPBACK: u32 = 1;

/// The action for a packet that leaves by the net's device, or by the loopback device, and is no Service's. An address with frontends may
/// be somebody's who answers at other ports: what is for him takes the way that it would have taken without the net. A ClusterIP is
/// nobody's, nor is an address without frontends: the device drops what is left to it, and what no router would forward.
#[inline(always)]
pub fn pass_on<F: Header>(packet: &SkbPacket) -> i32 {
    if !maps::config().is_ok_and(|config| config.net.ifindex == packet.ifindex()) || packet.is_trace() {
        return SkbPacket::PASS;
    }
    let Some(frame) = packet.frame(ETHERNET_LEN + F::HEADER_LEN) else { return SkbPacket::PASS };
    let (src, dst) = (F::src(&frame), F::dst(&frame));
    let known = maps::filter().map_or(0, |filter| filter.destination(F::filter_bit(&dst)));
    if known == 0
        || known & WHOLE != 0
        || F::widen(&src).is_unroutable()
        || may_be_own::<F>(&dst) && is_own::<F>(packet, &src, &dst)
    {
        return SkbPacket::PASS;
    }
    // The main table: the net's own leads here.
    match ask_for_way::<_, F>(packet, &src, &dst, BPF_FIB_LOOKUP_DIRECT) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH) => {
            let way_out = work::scratch::<F>().map_or(0, |scratch| scratch.fib.ifindex);
            packet.send(way_out, Exit::Neighbour)
        }
        _ => SkbPacket::PASS,
    }
}

/// The action for a packet that arrives by the net's device, where the net's program has sent it: the stack forwards it, or knows whose
/// it is. But what is for this node itself, and is no reply from a Service's own address, goes on by the loopback device, from where a
/// packet may have an address of this node, and firewalls let it in. (A reply need not be for this node: netfilter may have given a pod's
/// flow the node's address.)
#[inline(always)]
pub fn arrive<F: Header>(packet: &SkbPacket) -> i32 {
    let Some(frame) = packet.frame(ETHERNET_LEN + F::HEADER_LEN) else { return SkbPacket::PASS };
    let (src, dst) = (F::src(&frame), F::dst(&frame));
    // The filter may take others for this node as well, and is asked first for that.
    let begins_here = is_net_source::<F>(&src) || may_be_own::<F>(&src) && is_own::<F>(packet, &dst, &src);
    let goes_on =
        F::widen(&dst).is_loopback() || begins_here && may_be_own::<F>(&dst) && is_own::<F>(packet, &src, &dst);
    if goes_on { packet.send(LOOPBACK, Exit::Neighbour) } else { SkbPacket::PASS }
}

/// Whether an address may be this node's, by the filter.
#[inline(always)]
fn may_be_own<F: Header>(address: &F::Addr) -> bool {
    maps::filter().is_some_and(|filter| filter.is_node(F::filter_bit(address)))
}

/// Whether the kernel would receive a packet from and to these addresses, and not forward it.
#[inline(always)]
fn is_own<F: Header>(packet: &SkbPacket, src: &F::Addr, dst: &F::Addr) -> bool {
    ask_for_way::<_, F>(packet, src, dst, 0).is_ok_and(|result| result == BPF_FIB_LKUP_RET_NOT_FWDED)
}
