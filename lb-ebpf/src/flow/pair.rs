// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Both entries of a flow (conntrack's two tuples): found from one another, inserted, evicted and removed together, so that none is
//! left behind that holds a reply tuple for nobody.

use lb_common::flow::{
    Entry, FlowKey, FlowState,
    table::{self, Evicted, Place, Rank, Sets, Table as _, WAYS, Wanted, rank_of},
};

use crate::{
    kernel::{
        clock, global_fn, globals, maps,
        table::{FlowTable, Slot},
        work::{self, Scratch},
    },
    packet::header::Header,
};

/// In place of a slot's index: there is none.
pub const NONE: u32 = u32::MAX;
/// In place of a slot's index: all places of the tuple are held by flows that live.
pub const FULL: u32 = u32::MAX - 1;
/// In place of a slot's index: the tuple stands in the table, for another flow or for this one.
pub const TAKEN: u32 = u32::MAX - 2;
/// In place of a slot's index: another CPU took the slot that was chosen.
const LOST: u32 = u32::MAX - 3;

/// Whether a number is the index of a slot, and none of those above.
#[inline(always)]
pub fn is_slot(index: u32) -> bool {
    index < LOST
}

/// Which entry of the scratch space is meant: [`Scratch::original`].
pub const ORIGINAL: u32 = 0;
/// [`Scratch::peer`].
pub const PEER: u32 = 1;

global_fn! {
    /// [`find_wanted`].
    fn find_wanted_global<F: Header>() -> u32 = find_wanted => find_wanted_v4 | find_wanted_v6
}

/// The slot of the live entry with [`Scratch::wanted_key`], or [`NONE`]. The control word under which it has matched stands in the scratch
/// space: the slot may be another flow's a moment later.
#[inline(always)]
fn find_wanted<F: Header>() -> u32 {
    let Ok(scratch) = work::scratch::<F>() else { return NONE };
    let table = FlowTable::<F>::NEW;
    let key = &scratch.wanted_key;
    let Some(place) = table::find(table, key, Sets::of(key, globals::table_key(), table.mask())) else { return NONE };
    scratch.wanted_control = place.control;
    place.index
}

/// Where the entry with this key stands, which must not be [`Scratch::wanted_key`] itself. For the slow path, in which the search is
/// proven once.
#[inline(always)]
pub fn lookup<F: Header>(key: &FlowKey<F>) -> Option<Place<Slot>> {
    let scratch = work::scratch::<F>().ok()?;
    scratch.wanted_key = *key;
    let index = find_wanted_global::<F>();
    if index == NONE {
        return None;
    }
    let slot = FlowTable::<F>::NEW.at(index)?;
    Some(Place { index, slot, control: scratch.wanted_control })
}

global_fn! {
    /// [`find_peer`].
    pub fn find_peer_global<F: Header>() -> u32 = find_peer => find_peer_v4 | find_peer_v6
}

/// The slot of the other direction's entry of [`Scratch::original`], or [`NONE`]. Its control word stands in the scratch space.
#[inline(always)]
fn find_peer<F: Header>() -> u32 {
    let Ok(Scratch { original, entry_key, peer_key, peer_control, .. }) = work::scratch::<F>() else { return NONE };
    (*entry_key, *peer_key) = (original.key(), original.peer_key());
    if let Some(place) = table::peer_at(FlowTable::<F>::NEW, entry_key, peer_key, original.peer) {
        *peer_control = place.control;
        return place.index;
    }
    match lookup(peer_key) {
        Some(place) if table::is_answered_by(place.slot, entry_key) => {
            *peer_control = place.control;
            place.index
        }
        _ => NONE,
    }
}

/// Places that are tried where none is empty: one more for each time that another CPU takes the slot that was chosen.
const ATTEMPTS: u32 = 3;

/// Inserts an entry of the scratch space, where its tuple must not stand yet. The slot, [`TAKEN`] or [`FULL`].
#[inline(always)]
pub fn insert<F: Header>(which: u32) -> u32 {
    match insert_empty_global::<F>(which) {
        NONE => displace_global::<F>(which),
        inserted => inserted,
    }
}

global_fn! {
    /// [`displace`].
    fn displace_global<F: Header>(which: u32) -> u32 = displace => displace_v4 | displace_v6
}

/// Inserts the entry that [`insert_empty`] has found no place for where somebody yields.
#[inline(always)]
fn displace<F: Header>(which: u32) -> u32 {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        survey_global::<F>(0);
        survey_global::<F>(1);
        let index = take_global::<F>();
        if is_slot(index) {
            evict_global::<F>(index);
            return fill_global::<F>(index, which);
        }
        if index == FULL {
            break;
        }
        attempt += 1;
    }
    FULL
}

global_fn! {
    /// [`insert_empty`].
    fn insert_empty_global<F: Header>(which: u32) -> u32 = insert_empty => insert_empty_v4 | insert_empty_v6
}

/// Finds out where an entry of the scratch space may stand, and inserts it in a place that is empty there: its index, [`TAKEN`], or
/// [`NONE`] where there is no such place.
#[inline(always)]
fn insert_empty<F: Header>(which: u32) -> u32 {
    let Ok(scratch) = work::scratch::<F>() else { return NONE };
    let Scratch { original, peer, wanted_key, wanted_class, sets, spared, .. } = scratch;
    // A client's entry does not displace that of its own answers.
    *spared = if which == ORIGINAL { original.peer } else { NONE };
    let entry: &Entry<F> = if which == ORIGINAL { original } else { peer };
    *wanted_key = entry.key();
    *sets = Sets::of(wanted_key, globals::table_key(), FlowTable::<F>::NEW.mask());
    *wanted_class = entry.class.into();
    match table::claim_empty(FlowTable::<F>::NEW, *sets) {
        Some(place) => fill_place::<F>(place.claimed(), entry, wanted_key, *sets),
        None => NONE,
    }
}

/// Writes an entry to a claimed place and publishes it: its index, or [`TAKEN`].
#[inline(always)]
fn fill_place<F: Header>(place: Place<Slot>, entry: &Entry<F>, key: &FlowKey<F>, sets: Sets) -> u32 {
    table::write(place.slot, entry);
    let index = place.index;
    if table::publish(FlowTable::<F>::NEW, place, key, entry.control, sets) { index } else { TAKEN }
}

global_fn! {
    /// [`take`].
    fn take_global<F: Header>() -> u32 = take => take_v4 | take_v6
}

/// Claims the slot of the candidate that yields first: its index, [`FULL`] or [`LOST`].
#[inline(always)]
fn take<F: Header>() -> u32 {
    let Ok(Scratch { candidates, sets, victim_control, .. }) = work::scratch::<F>() else { return FULL };
    match table::take(FlowTable::<F>::NEW, *sets, candidates) {
        Some(place) => {
            *victim_control = place.control;
            place.index
        }
        None if table::yields(candidates) => LOST,
        None => FULL,
    }
}

global_fn! {
    /// [`survey`].
    fn survey_global<F: Header>(choice: u32) -> u32 = survey => survey_v4 | survey_v6
}

/// Asks who is in one of the two sets, and how urgently each yields. Always 0.
#[inline(always)]
fn survey<F: Header>(choice: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return 0 };
    let Scratch { sets, candidates, wanted_class, spared, .. } = scratch;
    let wanted = Wanted { now: clock::now(), class: *wanted_class as u8, timeouts: &config.timeouts, spared: *spared };
    let choice = choice as usize & 1;
    table::survey(FlowTable::<F>::NEW, sets.0[choice], &wanted, candidates, choice * WAYS as usize);
    0
}

global_fn! {
    /// [`fill`].
    fn fill_global<F: Header>(index: u32, which: u32) -> u32 = fill => fill_v4 | fill_v6
}

/// The same for an entry of the scratch space and a slot that was claimed from another flow.
#[inline(always)]
fn fill<F: Header>(index: u32, which: u32) -> u32 {
    let (Ok(scratch), Some(slot)) = (work::scratch::<F>(), FlowTable::<F>::NEW.at(index)) else { return FULL };
    let Scratch { original, peer, wanted_key, sets, .. } = scratch;
    let control = table::control(slot);
    fill_place(Place { index, slot, control }, if which == ORIGINAL { original } else { peer }, wanted_key, *sets)
}

global_fn! {
    /// [`evict`].
    fn evict_global<F: Header>(index: u32) -> u32 = evict => evict_v4 | evict_v6
}

/// Removes the other half of the flow whose slot was claimed, if there was one, and counts what sort of flow that was. Always 0.
#[inline(always)]
fn evict<F: Header>(index: u32) -> u32 {
    let (Ok(scratch), Ok(config)) = (work::scratch::<F>(), maps::config()) else { return 0 };
    let Some(slot) = FlowTable::<F>::NEW.at(index) else { return 0 };
    let control = scratch.victim_control;
    if !control.is_live() {
        // It has become empty meanwhile.
        return 0;
    }
    count_evicted(table::holder::<F, _>(slot, control, None, &config.timeouts).rank(clock::now()).0);
    // The body is the victim's until the new entry is written over it.
    table::read(&Place { index, slot, control }, &mut scratch.victim);
    remove_peer_of_victim_global::<F>()
}

#[inline(always)]
fn count_evicted(rank: Rank) {
    if let Some(kind) = Evicted::of(rank) {
        maps::count_eviction(kind);
    }
}

global_fn! {
    /// [`remove_peer_of_victim`].
    fn remove_peer_of_victim_global<F: Header>() -> u32 = remove_peer_of_victim => remove_peer_v4 | remove_peer_v6
}

/// Removes the other direction's entry of [`Scratch::victim`], where it was written. Always 0.
#[inline(always)]
fn remove_peer_of_victim<F: Header>() -> u32 {
    let Ok(Scratch { victim, victim_key, entry_key, .. }) = work::scratch::<F>() else { return 0 };
    *entry_key = victim.key();
    *victim_key = victim.peer_key();
    if let Some(peer) = table::peer_at(FlowTable::<F>::NEW, entry_key, victim_key, victim.peer) {
        table::remove(peer.slot, peer.control);
    }
    0
}

global_fn! {
    /// [`remove`].
    pub fn remove_global<F: Header>(index: u32) -> bool = remove => remove_v4 | remove_v6
}

/// Removes the flow that was just looked up ([`lookup`]) and of which one entry stands at this slot, both halves, unless it has changed
/// or gone since. Whether it did.
#[inline(always)]
fn remove<F: Header>(index: u32) -> bool {
    let (Ok(scratch), Some(slot)) = (work::scratch::<F>(), FlowTable::<F>::NEW.at(index)) else { return false };
    let control = table::control(slot);
    if control.is_live()
        && control.is_same_entry(scratch.wanted_control)
        && table::read(&Place { index, slot, control }, &mut scratch.victim)
        && table::remove(slot, control)
    {
        remove_peer_of_victim_global::<F>();
        return true;
    }
    false
}

/// How urgently the flow at a place yields to a new one that wants its port, by [`table::Holder::urge`].
#[inline(always)]
pub fn urge<F: Header>(place: &Place<Slot>, timeouts: &[u32; FlowState::COUNT]) -> u32 {
    let now = clock::now();
    table::holder::<F, _>(place.slot, place.control, None, timeouts).urge(now)
}

/// Counts a flow that has yielded its port.
#[inline(always)]
pub fn count_yielded(urge: u32) {
    count_evicted(rank_of(urge));
}
