// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The walk over IP options (RFC 791) and IPv6 extension headers (RFC 8200), as far as the frame has them.

use lb_common::{
    address::V6,
    walk::{MOST_HEADERS, Walk},
};

use crate::{
    kernel::{global_fn, work::Offsets},
    packet::{Packet, header::Header, layout::ip_at},
};

/// Walks over the headers of the IP packet at `l3`, of which `room` bytes are there.
#[inline(always)]
pub fn walk<P: Packet, F: Header>(packet: &P, l3: u32, room: u32) -> Walk {
    // verifier: a global function for IPv6 only, where it has a loop.
    if F::IS_V4 {
        ip_at::<F>(packet, l3).map_or(Walk::MISSING, |ip| F::walk(&ip))
    } else {
        walk_v6_global(packet, l3, room)
    }
}

global_fn! {
    /// [`walk_v6`].
    fn walk_v6_global<P: Packet>(packet: &P, l3: u32, room: u32) -> Walk = walk_v6 => walk_xdp_v6 | walk_tc_v6
}

/// The same for IPv6.
#[inline(always)]
fn walk_v6<P: Packet>(packet: &P, l3: u32, room: u32) -> Walk {
    let Some(ip) = ip_at::<V6>(packet, l3) else { return Walk::MISSING };
    let mut walk = V6::walk(&ip);
    let mut count = 0;
    // One more than are followed: who has it has too many.
    while count <= MOST_HEADERS && walk.is_at_header() {
        let at = Offsets { l3, l4: l3.wrapping_add(walk.offset()) };
        let header = at.l4_at(packet, 0, 8).map_or(0, |header| header.load(0));
        walk = step_global(walk, header, room);
        count += 1;
    }
    walk
}

global_fn! {
    /// [`Walk::step`].
    fn step_global(walk: Walk, header: u64, room: u32) -> Walk = Walk::step => walk_step
}
