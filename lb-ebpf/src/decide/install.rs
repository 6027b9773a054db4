// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Installs a new flow (conntrack confirm): both entries into the table, and a source port (SNAT), so that no two flows share a reply tuple.
//!
//! The reply's entry goes first and must be new: two clients behind one translated address, or one client port through
//! two frontends to one backend, would otherwise meet in it. The later flow gets another source port from the reserved
//! range. An entry that is this very flow's, left over from an earlier decision, is taken over, port and all.

use lb_common::{
    config::elapsed,
    flow::{Flow, FlowState, flow_flags},
    hash,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    flow::find::is_expired,
    kernel::{
        global_fn,
        maps::{self, FlowTable, Grown, InsertError, Young},
        work::{self, Scratch},
    },
    packet::header::Header,
};

/// Ports that are tried before the flow is refused: at 90 % occupancy 1 of 5 such flows finds none, at 75 % 1 of 100.
const PROBES: u32 = 16;

/// Searches for a source port before a new flow is refused: one more for each time that another CPU takes the port that was
/// found (cilium 35010).
const ATTEMPTS: u32 = 3;

/// Who has a reply tuple: another flow.
const OTHER: u32 = 0;
/// Nobody.
const NOBODY: u32 = 1;
/// An earlier decision of the same flow.
const OWN: u32 = 2;
/// Another flow, which has expired or, when [`PATIENT_PROBES`] have found nothing better, whose backend has not answered yet: a
/// flood of first packets shall not keep everybody else from a port. Its client, if it is one, sends again.
const YIELDING: u32 = 3;
/// Another flow, which is over or never began: taken when nothing better is found, so that short connections and
/// half-open ones don't use up the range for as long as they are remembered.
const ENDING: u32 = 4;

/// Probes that pass over flows without an answer: half of them.
const PATIENT_PROBES: u32 = PROBES / 2;

/// Ticks after which a half-open flow counts as [`ENDING`]: the client has sent its SYN again twice by then.
const HALF_OPEN_TICKS: i64 = 4;

global_fn! {
    /// [`install`].
    pub fn install_global<F: Header>(start: u32, now: u32, dry: bool) -> Stage<()> = install => install_v4 | install_v6
}

/// Installs the pair for the original entry in the scratch space; chooses its source port. `dry` for a trace, which
/// installs nothing.
#[inline(always)]
fn install<F: Header>(start: u32, now: u32, dry: bool) -> Stage<()> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        if claim::<F>(start, now, dry)? {
            return Ok(());
        }
        attempt += 1;
    }
    // The client will send again.
    Err(Stop::drop(Reason::NoSourcePort))
}

/// One attempt. False where another CPU took the tuple for another flow a moment after it was found free.
#[inline(always)]
fn claim<F: Header>(start: u32, now: u32, dry: bool) -> Stage<bool> {
    let scratch = work::scratch::<F>()?;
    let key = &scratch.parsed.key;
    // An earlier attempt may have chosen another.
    scratch.original.sport_be = key.sport_be;
    scratch.original.write_peer_key(key, &mut scratch.peer_key);
    let holder = choose_source_port_global::<F>(start, now);
    if holder == OTHER {
        return Err(Stop::drop(Reason::NoSourcePort));
    }
    scratch.original.set_deltas(key);
    if dry {
        return Ok(true);
    }
    scratch.original.write_peer(key, &mut scratch.peer);
    if maps::find_flow::<F, Grown>(&scratch.peer_key).is_some() && holder == OWN {
        // The other half of a grown flow was evicted. The same tuple may have been young since.
        maps::remove_flow::<F, Young>(key);
        put_pair::<F, Grown>(scratch);
        return Ok(true);
    }
    if maps::find_flow::<F, Grown>(key).is_some() {
        maps::remove_flow::<F, Grown>(key);
    }
    if holder == OWN {
        put_pair::<F, Young>(scratch);
        return Ok(true);
    }
    if holder != NOBODY {
        // Not overwritten: another CPU may be taking it too, and one of us must fail.
        maps::remove_flow::<F, Grown>(&scratch.peer_key);
        maps::remove_flow::<F, Young>(&scratch.peer_key);
    }
    let claimed = maps::insert_new_flow::<F, Young>(&scratch.peer_key, &scratch.peer);
    if claimed == Err(InsertError::Exists) && holder_global::<F>(now, 1) != OWN {
        return Ok(false);
    }
    if claimed == Err(InsertError::Refused) || maps::put_flow::<F, Young>(key, &scratch.original).is_err() {
        count_refusal();
    }
    Ok(true)
}

/// Both entries, over those that are there.
#[inline(always)]
fn put_pair<F: Header, T: FlowTable>(scratch: &Scratch<F>) {
    if maps::put_flow::<F, T>(&scratch.peer_key, &scratch.peer).is_err()
        || maps::put_flow::<F, T>(&scratch.parsed.key, &scratch.original).is_err()
    {
        count_refusal();
    }
}

/// Never a drop: the packet goes on, and the next one tries again (cilium 35010).
#[inline(always)]
fn count_refusal() {
    maps::count_reason(Reason::FlowInsertFailed as u32);
}

global_fn! {
    /// [`choose_source_port`].
    fn choose_source_port_global<F: Header>(start: u32, now: u32) -> u32
        = choose_source_port => choose_source_port_v4 | choose_source_port_v6
}

/// Finds a source port with which the reply's tuple is free, and writes it to the original entry and the peer's key.
/// The same `start`, below 2^32, begins at the same port each time, so that a flow meets its own surviving entry.
///
/// Gives [`OTHER`] where no port was found, else who had the tuple.
#[inline(always)]
fn choose_source_port<F: Header>(start: u32, now: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return OTHER };
    // A flow that keeps its client's address would like to keep the port as well.
    if scratch.original.flags & flow_flags::SNAT == 0 {
        let holder = holder_global::<F>(now, 1);
        if holder != OTHER && holder != ENDING {
            return holder;
        }
    }
    let range = u32::from(config.source_port_last.wrapping_sub(config.source_port_first)) + 1;
    let mut point = start;
    let mut probe = 0;
    let mut fallback_be = 0;
    while probe < PROBES {
        let offset = hash::scale(u64::from(point) << 32, range) as u16;
        let port_be = config.source_port_first.wrapping_add(offset).to_be();
        scratch.peer_key.dport_be = port_be;
        // verifier: in numbers, because each branch here is followed in each turn.
        let patience = u32::from(fallback_be) | ((probe / PATIENT_PROBES) ^ 1);
        let holder = holder_global::<F>(now, patience);
        if holder == ENDING {
            fallback_be = port_be;
        } else if holder != OTHER {
            scratch.original.sport_be = port_be;
            return holder;
        }
        // Steps of the golden ratio spread evenly, and need no branch at the range's end: with one, the verifier
        // followed ten times as many paths.
        point = point.wrapping_add(0x9e37_79b9);
        probe += 1;
    }
    if fallback_be == 0 {
        return OTHER;
    }
    scratch.peer_key.dport_be = fallback_be;
    scratch.original.sport_be = fallback_be;
    ENDING
}

global_fn! {
    /// [`holder`].
    fn holder_global<F: Header>(now: u32, patience: u32) -> u32 = holder => holder_v4 | holder_v6
}

/// Who has the reply tuple of the peer's key in the scratch space. Any `patience` leaves it to flows without an answer.
#[inline(always)]
fn holder<F: Header>(now: u32, patience: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return OTHER };
    // In this order: see `find::grow`.
    let young = maps::find_flow::<F, Young>(&scratch.peer_key);
    let is_young = young.is_some();
    match young.or_else(|| maps::find_flow::<F, Grown>(&scratch.peer_key)) {
        None => NOBODY,
        Some(peer) if peer.is_peer_key(&scratch.peer_key, &scratch.parsed.key) => OWN,
        Some(peer) if is_expired(peer, config, now) => YIELDING,
        Some(peer) if is_ending(peer, now) => ENDING,
        // Grown flows have all been answered, whatever their entries say.
        Some(peer) if patience == 0 && is_young && peer.flags & flow_flags::ANSWERED == 0 => YIELDING,
        Some(_) => OTHER,
    }
}

#[inline(always)]
fn is_ending<F: Header>(flow: &Flow<F>, now: u32) -> bool {
    let idle = elapsed(now, flow.last_seen);
    let may_end = flow.state == FlowState::HALF_OPEN || flow.state == FlowState::RESET;
    (flow.state == FlowState::CLOSING && idle > 0) || (may_end && idle >= HALF_OPEN_TICKS)
}
