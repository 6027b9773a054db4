// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Installs a new flow (conntrack confirm): both entries into the table, so that no two flows share a reply tuple.
//!
//! The reply's entry goes first and must be new: two clients behind one translated address, or one client port through
//! two frontends to one backend, would otherwise meet in it. The later flow gets another source port ([`port`]). An entry that is
//! this very flow's, left over from an earlier decision, is taken over, port and all.

use lb_common::{
    flow::{
        Control, Entry, flow_flags, protocol,
        table::{self, Slot as _, Table as _},
        word,
    },
    verdict::{Reason, Stage, Stop},
};

use super::port;
use crate::{
    flow::pair::{self, lookup},
    kernel::{
        global_fn, maps,
        table::FlowTable,
        work::{self, Scratch},
    },
    packet::{Packet, header::Header},
};

/// Searches for a source port before a new flow is refused: one more for each time that another CPU takes the port that was
/// found (cilium 35010).
const ATTEMPTS: u32 = 3;

/// Installs the pair for the original entry in the scratch space; chooses its source port. A trace installs nothing.
#[inline(always)]
pub fn install<P: Packet, F: Header>(start: u32) -> Stage<()> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        match claim_global::<F>(start) {
            NEW => {
                let scratch = work::scratch::<F>()?;
                if P::IS_XDP || scratch.is_direct == 0 {
                    count_flow(scratch.admitted.frontend.service, scratch.original.backend);
                }
                return Ok(());
            }
            DONE => return Ok(()),
            NO_ROOM => return without_state::<P, F>(),
            NO_PORT => return NO_SOURCE_PORT,
            _ => {}
        }
        attempt += 1;
    }
    if !needs_state(&work::scratch::<F>()?.original) {
        return without_state::<P, F>();
    }
    // The client will send again.
    NO_SOURCE_PORT
}

/// Counts a connection or an exchange that begins.
#[inline(always)]
fn count_flow(service: u32, backend: u32) {
    if let Some(counters) = maps::service_counters(service) {
        counters.flows += 1;
    }
    if let Some(counters) = maps::backend_counters(backend) {
        counters.flows += 1;
    }
}

/// Both entries stand in the table, or nothing is to be written.
const DONE: u32 = 0;
/// Another CPU took the tuple for another flow a moment after it was found free.
const TAKEN: u32 = 1;
/// All places of a tuple are held by flows that live.
const NO_ROOM: u32 = 2;
/// No port was found with which the reply's tuple can be had.
const NO_PORT: u32 = 3;
/// The flow's entries stand in the table, and it has begun with this packet.
const NEW: u32 = 4;

const NO_SOURCE_PORT: Stage<()> = Err(Stop::drop(Reason::NoSourcePort));

/// Whether nobody would be found by the replies but for the flow's entries.
#[inline(always)]
fn needs_state<F: Header>(original: &Entry<F>) -> bool {
    original.flags() & (flow_flags::SNAT | flow_flags::NET) != 0
}

/// Never a drop where the packet can go on: one whose source is kept meets the same backend by Maglev (cilium 35010). The reply to one
/// whose source is translated would find nobody: XDP leaves it to TC, which drops it.
#[inline(always)]
fn without_state<P: Packet, F: Header>() -> Stage<()> {
    let original = &mut work::scratch::<F>()?.original;
    if needs_state(original) && P::IS_XDP {
        return Err(Stop::LEAVE_TO_TC);
    }
    if needs_state(original) {
        return Err(Stop::drop(Reason::FlowInsertFailed));
    }
    // Nobody would translate another port back.
    original.new_sport_be = original.sport_be;
    original.set_deltas();
    maps::count_reason(Reason::FlowInsertFailed as u32);
    Ok(())
}

global_fn! {
    /// [`claim`].
    fn claim_global<F: Header>(start: u32) -> u32 = claim => claim_v4 | claim_v6
}

/// One attempt: [`NEW`], [`DONE`], [`TAKEN`], [`NO_ROOM`] or [`NO_PORT`].
#[inline(always)]
fn claim<F: Header>(start: u32) -> u32 {
    let Ok(scratch) = work::scratch::<F>() else { return NO_ROOM };
    // An earlier attempt may have chosen another.
    scratch.original.new_sport_be = scratch.original.sport_be;
    scratch.peer_key = scratch.original.peer_key();
    let holder = port::choose_global::<F>(start);
    if !port::can_be_had(holder) {
        return NO_PORT;
    }
    scratch.original.set_deltas();
    if scratch.parsed.is_trace != 0 {
        return DONE;
    }
    let own = if holder == port::OWN { scratch.holder_slot } else { pair::NONE };
    if own == pair::NONE {
        if scratch.is_known != 0 || scratch.holder_control != 0 {
            make_room_global::<F>(holder);
        }
    } else if take_over_global::<F>(own) != DONE {
        return TAKEN;
    }
    let Scratch { parsed, original, peer, .. } = scratch;
    let reply = if own == pair::NONE {
        original.write_peer(peer);
        pair::insert::<F>(pair::PEER)
    } else {
        own
    };
    if reply == pair::TAKEN {
        return TAKEN;
    }
    if reply == pair::FULL {
        return NO_ROOM;
    }
    original.peer = reply;
    // A datagram for which no flow holds any more begins another one.
    let begins = own == pair::NONE || parsed.is_opening() || parsed.key.protocol == protocol::UDP;
    let inserted = pair::insert::<F>(pair::ORIGINAL);
    if !pair::is_slot(inserted) {
        let outcome = give_up_original_global::<F>(reply, inserted);
        return if outcome == NEW && !begins { DONE } else { outcome };
    }
    if let Some(slot) = FlowTable::<F>::NEW.at(reply) {
        table::set_peer::<F, _>(slot, inserted);
    }
    if begins { NEW } else { DONE }
}

global_fn! {
    /// [`make_room`].
    fn make_room_global<F: Header>(holder: u32) -> u32 = make_room => make_room_v4 | make_room_v6
}

/// Removes what is left of an earlier decision about this flow, and whoever has the reply's tuple: it has expired, or yields, by
/// [`port::choose`]'s answer. One that has changed meanwhile is another CPU's decision, which is met later. Always 0.
#[inline(always)]
fn make_room<F: Header>(yields: u32) -> u32 {
    let Ok(scratch) = work::scratch::<F>() else { return 0 };
    if let Some(old) = lookup(&scratch.parsed.key) {
        pair::remove_global::<F>(old.index);
    }
    if let Some(holder) = lookup(&scratch.peer_key)
        && holder.control.is_same_entry(Control::from_bits(scratch.holder_control))
        && pair::remove_global::<F>(holder.index)
        && yields != port::NOBODY
    {
        pair::count_yielded(yields);
    }
    0
}

global_fn! {
    /// [`take_over`].
    fn take_over_global<F: Header>(reply: u32) -> u32 = take_over => take_over_v4 | take_over_v6
}

/// Makes this flow's own surviving reply entry that of the new decision; where the packet opens no connection, the original entry goes
/// on where that one was. What is left of the old original entry goes. [`DONE`], or [`TAKEN`] where another CPU has changed the entry
/// meanwhile.
#[inline(always)]
fn take_over<F: Header>(reply: u32) -> u32 {
    let (Ok(scratch), Some(slot)) = (work::scratch::<F>(), FlowTable::<F>::NEW.at(reply)) else { return TAKEN };
    let control = table::control(slot);
    if !control.is_same_entry(Control::from_bits(scratch.holder_control)) {
        return TAKEN;
    }
    /// What the new decision says, of both entries: an earlier one may have been another door's.
    const DECIDED: u8 = flow_flags::SNAT | flow_flags::NET | flow_flags::RESET;
    let original = &mut scratch.original;
    let is_opening = scratch.parsed.is_opening();
    let seen = if is_opening { flow_flags::ANSWERED | flow_flags::PICKED_UP } else { 0 };
    let flags = control.flags() & !(seen | DECIDED) | original.flags() & DECIDED;
    let next = control.with(if is_opening { original.control.state() } else { control.state() }, flags);
    if next.to_bits() != control.to_bits() && !slot.compare_exchange(word::CONTROL, control.to_bits(), next.to_bits()) {
        return TAKEN;
    }
    if is_opening {
        // From the start.
        table::set_sequence::<F, _>(slot, 0);
        table::set_born::<F, _>(slot, original.born);
    } else {
        const KEPT: u8 = flow_flags::ANSWERED | flow_flags::PICKED_UP;
        let flags = original.flags() & !KEPT | control.flags() & KEPT;
        original.control = original.control.with(control.state(), flags);
        original.born = table::born::<F, _>(slot);
    }
    table::set_last_seen(slot, original.control.last_seen());
    table::set_backend::<F, _>(slot, original.backend, original.generation);
    if let Some(old) = lookup(&scratch.parsed.key) {
        if table::peer::<F, _>(old.slot) == reply {
            table::remove(old.slot, old.control);
        } else {
            pair::remove_global::<F>(old.index);
        }
    }
    DONE
}

global_fn! {
    /// [`give_up_original`].
    fn give_up_original_global<F: Header>(reply: u32, inserted: u32) -> u32
        = give_up_original => give_up_original_v4 | give_up_original_v6
}

/// The original's entry found no place, or stands in the table: another CPU has decided the same flow a moment before. If by another
/// port, that one's instruction is followed, and our reply entry goes.
#[inline(always)]
fn give_up_original<F: Header>(reply: u32, inserted: u32) -> u32 {
    if inserted == pair::FULL {
        // The reply finds its way all the same, and the next packet tries again.
        maps::count_reason(Reason::FlowInsertFailed as u32);
        return NEW;
    }
    let Ok(Scratch { parsed, original, peer_key, .. }) = work::scratch::<F>() else { return NO_ROOM };
    let Some(found) = lookup(&parsed.key) else { return TAKEN };
    let port_be = original.new_sport_be;
    if !table::read(&found, original) {
        return TAKEN;
    }
    if original.new_sport_be != port_be
        && let Some(ours) = lookup(peer_key)
        && ours.index == reply
    {
        table::remove(ours.slot, ours.control);
    }
    DONE
}
