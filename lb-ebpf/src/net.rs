// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The net's device beside the pipeline: what arrives by it. (What leaves by it and is no Service's the device drops.)
//!
//! Knows `packet`, of `parse` the filter, and of `send` how to ask for a route.

use aya_ebpf::bindings::BPF_FIB_LKUP_RET_NOT_FWDED;
use lb_common::config::LOOPBACK;

use crate::{
    kernel::maps,
    packet::{
        Exit, Packet, SkbPacket,
        header::{ETHERNET_LEN, Header},
    },
    parse::filter::is_net_source,
    send::next_hop::ask_for_way,
};

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
    ask_for_way::<_, F>(packet, src, dst).is_ok_and(|result| result == BPF_FIB_LKUP_RET_NOT_FWDED)
}
