// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 3, last step: both entries of a new flow into the table, so that no two flows share a reply tuple.
//!
//! The reply's entry goes first and must be new: two clients behind one translated address, or one client port through
//! two frontends to one backend, would otherwise meet in it. The later flow gets another source port from the reserved
//! range. An entry that is this very flow's, left over from an earlier decision, is taken over, port and all.

use lb_common::{
    config::Config,
    flow::{Flow, FlowKey, flow_flags},
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

/// Who has a reply tuple.
enum Holder {
    Nobody,
    /// An earlier decision of the same flow, or a flow that has expired.
    Reusable,
    Other,
}

/// Installs the pair for the original entry in the scratch space; chooses its source port.
#[inline(always)]
pub fn install<P: Packet, F: Header>(
    packet: &P,
    key: &FlowKey<F>,
    scratch: &mut Scratch<F>,
    hash: u64,
    now: u32,
) -> Stage<()> {
    let config = maps::config()?;
    let range = u32::from(config.source_port_last.wrapping_sub(config.source_port_first)) + 1;
    // The same flow starts at the same port each time, and so meets its own surviving entry. The low half of the hash:
    // the high one chose the backend.
    let mut candidate = hash::scale(hash << 32, range);
    let mut probe = 0;
    while probe <= PROBES {
        // A flow that keeps its client's address would like to keep the port as well.
        let keeps_port = probe == 0 && scratch.original.flags & flow_flags::SNAT == 0;
        if probe > 0 || !keeps_port {
            scratch.original.sport_be = (config.source_port_first.wrapping_add(candidate as u16)).to_be();
            candidate += 1;
            if candidate >= range {
                candidate = 0;
            }
        }
        if claim_reply(packet, key, scratch, config, now) {
            return store_original(packet, key, &scratch.original);
        }
        probe += 1;
    }
    Err(Stop::drop(Reason::NoSourcePort))
}

/// Takes the reply tuple of the current candidate; false where another flow has it.
#[inline(always)]
fn claim_reply<P: Packet, F: Header>(
    packet: &P,
    key: &FlowKey<F>,
    scratch: &mut Scratch<F>,
    config: &Config,
    now: u32,
) -> bool {
    scratch.original.write_peer_key(key, &mut scratch.peer_key);
    let holder = holder(key, &scratch.peer_key, config, now);
    if matches!(holder, Holder::Other) {
        return false;
    }
    scratch.original.set_deltas(key);
    if packet.is_trace() {
        return true;
    }
    scratch.original.write_peer(key, &mut scratch.peer);
    let inserted = match holder {
        Holder::Nobody => maps::insert_new_flow(&scratch.peer_key, &scratch.peer),
        _ => maps::put_flow(&scratch.peer_key, &scratch.peer),
    };
    match inserted {
        Ok(()) => true,
        Err(InsertError::Exists) => false,
        Err(InsertError::Refused) => {
            // Never a drop: the packet goes on, and the next one tries again (cilium 35010).
            maps::count_reason(Reason::FlowInsertFailed as u32);
            true
        }
    }
}

#[inline(always)]
fn holder<F: Header>(key: &FlowKey<F>, peer_key: &FlowKey<F>, config: &Config, now: u32) -> Holder {
    match maps::find_flow(peer_key) {
        None => Holder::Nobody,
        Some(peer) if peer.is_peer_key(peer_key, key) || is_expired(peer, config, now) => Holder::Reusable,
        Some(_) => Holder::Other,
    }
}

#[inline(always)]
fn store_original<P: Packet, F: Header>(packet: &P, key: &FlowKey<F>, original: &Flow<F>) -> Stage<()> {
    if !packet.is_trace() && maps::put_flow(key, original).is_err() {
        maps::count_reason(Reason::FlowInsertFailed as u32);
    }
    Ok(())
}
