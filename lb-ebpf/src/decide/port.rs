// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The source port of a new flow (SNAT, masquerade): one with which no other flow has the reply's tuple.

use lb_common::flow::{
    flow_flags, protocol,
    table::{self, Rank, rank_of},
};

use crate::{
    flow::pair::{self, lookup},
    kernel::{
        global_fn, maps,
        work::{self, Scratch},
    },
    packet::header::Header,
};

/// Ports that are tried in a row. A row more is tried for as long as nothing can be had: where nine of ten ports are taken by flows that
/// live, one in five new flows would find none in the first.
const PROBES: u32 = 16;
/// So many of a row can be had, and its flow would have found a port there.
const PLENTY: u32 = PROBES / 2;
/// Rows that are tried before the flow is refused.
const ROWS: u32 = 8;
/// From one port to the next: steps of the golden ratio spread evenly over both ranges.
const STEP: u32 = 0x9e37_79b9;

/// Who has a reply tuple, by how urgently it is yielded ([`table::Holder::urge`]): nobody, or one who has been idle for too long.
pub const NOBODY: u32 = u32::MAX - 1;
/// An earlier decision of the same flow.
pub const OWN: u32 = u32::MAX;

/// Whether a tuple can be had of whoever has it.
#[inline(always)]
pub fn can_be_had(holder: u32) -> bool {
    holder >= NOBODY || rank_of(holder) >= Rank::EXCHANGE
}

global_fn! {
    /// [`choose`].
    pub fn choose_global<F: Header>(start: u32) -> u32 = choose => choose_port_v4 | choose_port_v6
}

/// Finds a source port with which the reply's tuple can be had, and writes it to the original entry and the peer's key. The same
/// `start`, below 2^32, begins at the same port each time. The answer is who has the tuple; it may be one of whom it can't be had.
///
/// A new flow takes the first port that is free, and the client's own before all others where its address is kept. A segment in
/// mid-connection looks for its own reply entry first: ports before it may have become free since, so it goes on to the next row unless
/// half of one can be had. Where none is free, the flow yields that does so soonest.
#[inline(always)]
fn choose<F: Header>(start: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return 0 };
    let is_new = scratch.parsed.is_opening() || scratch.parsed.key.protocol == protocol::UDP;
    // verifier: by way of memory, because each branch here is followed in each turn.
    scratch.take_from = if is_new { NOBODY } else { OWN };
    (scratch.holder_urge, scratch.best_port_be, scratch.ports_to_be_had) = (0, 0, 0);
    let enough = if is_new { 1 } else { PLENTY };
    // A flow that keeps its client's address would like to keep the port as well; and at the net, each.
    if scratch.original.flags() & (flow_flags::SNAT | flow_flags::NET) != flow_flags::SNAT {
        let holder = probe_global::<F>(scratch.original.sport_be);
        if holder >= scratch.take_from {
            return holder;
        }
    }
    let holder = probe_global::<F>(config.source_port(start).to_be());
    if holder >= scratch.take_from {
        return holder;
    }
    let (mut point, mut row) = (start, 0);
    while row < ROWS {
        let holder = try_row_global::<F>(point);
        if holder != 0 {
            return holder;
        }
        if scratch.ports_to_be_had >= enough {
            break;
        }
        point = point.wrapping_add(STEP.wrapping_mul(PROBES));
        row += 1;
    }
    // All live: no port can be had.
    if scratch.holder_urge == 0 { 0 } else { probe_global::<F>(scratch.best_port_be as u16) }
}

global_fn! {
    /// [`try_row`].
    fn try_row_global<F: Header>(point: u32) -> u32 = try_row => try_row_v4 | try_row_v6
}

/// Tries the ports that come after one; who has the first that is taken, or 0.
#[inline(always)]
fn try_row<F: Header>(start: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return 0 };
    let (mut point, mut probe) = (start, 0);
    while probe < PROBES {
        point = point.wrapping_add(STEP);
        let holder = probe_global::<F>(config.source_port(point).to_be());
        if holder >= scratch.take_from {
            return holder;
        }
        probe += 1;
    }
    0
}

global_fn! {
    /// [`probe`].
    fn probe_global<F: Header>(port_be: u16) -> u32 = probe => probe_v4 | probe_v6
}

/// Gives the flow in the scratch space this source port, and tells who has the reply tuple then. Remembers the port that can be had most
/// easily.
#[inline(always)]
fn probe<F: Header>(port_be: u16) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return 0 };
    let Scratch {
        parsed,
        original,
        peer_key,
        holder_slot,
        holder_control,
        holder_urge,
        best_port_be,
        ports_to_be_had,
        ..
    } = scratch;
    (original.new_sport_be, peer_key.dport_be) = (port_be, port_be);
    *holder_control = 0;
    let Some(place) = lookup(peer_key) else {
        remember(holder_urge, best_port_be, u32::MAX, port_be);
        *ports_to_be_had += 1;
        return NOBODY;
    };
    (*holder_slot, *holder_control) = (place.index, place.control.to_bits());
    if table::is_answered_by(place.slot, &parsed.key) {
        return OWN;
    }
    let urge = pair::urge::<F>(&place, &config.timeouts);
    let is_free = rank_of(urge) == Rank::EXPIRED;
    remember(holder_urge, best_port_be, if is_free { u32::MAX } else { urge }, port_be);
    *ports_to_be_had += u32::from(can_be_had(urge));
    if is_free { NOBODY } else { urge }
}

/// Keeps the first of the ports that can be had most easily.
#[inline(always)]
fn remember(most: &mut u32, best_port_be: &mut u32, urge: u32, port_be: u16) {
    if urge > *most {
        (*most, *best_port_be) = (urge, port_be.into());
    }
}
