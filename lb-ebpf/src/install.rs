// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 3, last step: both entries of a new flow into the table, so that no two flows share a reply tuple.
//!
//! The reply's entry goes first and must be new: two clients behind one translated address, or one client port through
//! two frontends to one backend, would otherwise meet in it. The later flow gets another source port from the reserved
//! range. An entry that is this very flow's, left over from an earlier decision, is taken over, port and all.

use lb_common::{
    flow::flow_flags,
    hash,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    flow::is_expired,
    header::Header,
    maps::{self, InsertError, Scratch},
    packet::Packet,
};

/// Ports that are tried before the flow is refused: at 90 % occupancy 1 of 5 such flows finds none, at 75 % 1 of 100.
const PROBES: u32 = 16;

/// Who has a reply tuple: another flow.
const OTHER: u32 = 0;
/// Nobody.
const NOBODY: u32 = 1;
/// An earlier decision of the same flow, or a flow that has expired.
const REUSABLE: u32 = 2;

/// Installs the pair for the original entry in the scratch space; chooses its source port.
#[inline(always)]
pub fn install<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>, start: u32, now: u32) -> Stage<()> {
    let key = &scratch.parsed.key;
    scratch.original.write_peer_key(key, &mut scratch.peer_key);
    let holder = F::choose_source_port_apart(start, now);
    if holder == OTHER {
        return Err(Stop::drop(Reason::NoSourcePort));
    }
    scratch.original.set_deltas(key);
    if packet.is_trace() {
        return Ok(());
    }
    scratch.original.write_peer(key, &mut scratch.peer);
    let claimed = if holder == NOBODY {
        maps::insert_new_flow(&scratch.peer_key, &scratch.peer)
    } else {
        maps::put_flow(&scratch.peer_key, &scratch.peer)
    };
    if claimed == Err(InsertError::Exists) {
        // Another CPU took the tuple a moment ago. The client will send again.
        return Err(Stop::drop(Reason::NoSourcePort));
    }
    if claimed.is_err() || maps::put_flow(key, &scratch.original).is_err() {
        // Never a drop: the packet goes on, and the next one tries again (cilium 35010).
        maps::count_reason(Reason::FlowInsertFailed as u32);
    }
    Ok(())
}

/// Finds a source port with which the reply's tuple is free, and writes it to the original entry and the peer's key.
/// The same `start`, below 2^32, begins at the same port each time, so that a flow meets its own surviving entry.
///
/// Gives [`OTHER`] where no port was found, else who had the tuple.
#[inline(always)]
pub fn choose_source_port<F: Header>(start: u32, now: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (maps::scratch::<F>(), maps::config()) else { return OTHER };
    // A flow that keeps its client's address would like to keep the port as well.
    if scratch.original.flags & flow_flags::SNAT == 0 {
        let holder = F::holder_apart(now);
        if holder != OTHER {
            return holder;
        }
    }
    let range = u32::from(config.source_port_last.wrapping_sub(config.source_port_first)) + 1;
    let mut point = start;
    let mut probe = 0;
    while probe < PROBES {
        let offset = hash::scale(u64::from(point) << 32, range) as u16;
        let port_be = config.source_port_first.wrapping_add(offset).to_be();
        scratch.peer_key.dport_be = port_be;
        let holder = F::holder_apart(now);
        if holder != OTHER {
            scratch.original.sport_be = port_be;
            return holder;
        }
        // Steps of the golden ratio spread evenly, and need no branch at the range's end: with one, the verifier
        // followed ten times as many paths.
        point = point.wrapping_add(0x9e37_79b9);
        probe += 1;
    }
    OTHER
}

/// Who has the reply tuple of the peer's key in the scratch space.
#[inline(always)]
pub fn holder<F: Header>(now: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (maps::scratch::<F>(), maps::config()) else { return OTHER };
    match maps::find_flow(&scratch.peer_key) {
        None => NOBODY,
        Some(peer) if peer.is_peer_key(&scratch.peer_key, &scratch.parsed.key) || is_expired(peer, config, now) => {
            REUSABLE
        }
        Some(_) => OTHER,
    }
}
