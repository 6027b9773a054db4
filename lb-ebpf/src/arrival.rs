// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What arrives by the net's device, where the net's program has sent it: the stack forwards it. But what is for this node itself goes
//! on by the loopback device, from where a packet may have an address of this node, and firewalls let it in.
//!
//! Knows `packet`, and of `send` how to ask for a route.

use aya_ebpf::bindings::BPF_FIB_LKUP_RET_NOT_FWDED;

use crate::{
    kernel::maps,
    packet::{
        Exit, Packet, SkbPacket,
        header::{ETHERNET_LEN, Header},
    },
    send::next_hop::ask_for_way,
};

/// Index of the loopback device, the first of every network namespace.
const LOOPBACK: u32 = 1;

/// The hook's action for a packet.
#[inline(always)]
pub fn go_on<F: Header>(packet: &SkbPacket) -> i32 {
    let Some(frame) = packet.frame(ETHERNET_LEN + F::HEADER_LEN) else { return SkbPacket::PASS };
    let (src, dst) = (F::src(&frame), F::dst(&frame));
    let is_own = F::widen(&dst).is_loopback() || may_be_own::<F>(&dst) && is_own::<F>(packet, &src, &dst);
    if is_own { packet.send(LOOPBACK, Exit::Neighbour) } else { SkbPacket::PASS }
}

/// Whether an address may be this node's, by the filter.
#[inline(always)]
fn may_be_own<F: Header>(address: &F::Addr) -> bool {
    maps::filter().is_some_and(|filter| filter.is_node(F::filter_bit(address)))
}

/// Whether the kernel would receive the packet, and not forward it.
#[inline(always)]
fn is_own<F: Header>(packet: &SkbPacket, src: &F::Addr, dst: &F::Addr) -> bool {
    ask_for_way::<_, F>(packet, src, dst).is_ok_and(|result| result == BPF_FIB_LKUP_RET_NOT_FWDED)
}
