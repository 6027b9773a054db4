// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Conntrack update: what a packet changes in its flow. The state (half-open, established, closing), the time of last use once a
//! tick, and the other direction's entry, which is made again if it was lost.

use lb_common::{
    bits::join,
    flow::{
        Control, Direction, Event, FlowState, Known, STREAM_SECS, Seen, event, flow_flags, protocol,
        table::{self, Place, Table as _, halves},
        tcp_flags,
    },
    verdict::{Stage, Stop},
};

use super::{
    find::{may_advance, note_sequence},
    pair::{self, NONE},
};
use crate::{
    kernel::{
        clock, global_fn, maps,
        table::FlowTable,
        work::{self, Parsed, Scratch},
    },
    packet::header::Header,
};

global_fn! {
    /// [`follow`].
    pub fn follow_global<F: Header>(index: u32) -> Stage<()> = follow => follow_v4 | follow_v6
}

/// Notes the packet in the scratch space in its flow, which was found at a slot. An error where the entry does not hold: it has been
/// idle for too long, is another flow's by now, or its reply tuple is.
#[inline(always)]
fn follow<F: Header>(index: u32) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let Scratch { parsed, original, .. } = scratch;
    let slot = FlowTable::<F>::NEW.at(index).ok_or(Stop::NOT_OURS)?;
    let control = table::control(slot);
    if !control.is_live() || !table::read(&Place { index, slot, control }, original) || !original.key().is(&parsed.key)
    {
        return Err(Stop::NOT_OURS);
    }
    let now = clock::now();
    let timeout = maps::timeout_of(control.state())?;
    if table::is_expired(control, timeout, now.tick) {
        return Err(Stop::NOT_OURS);
    }
    if parsed.is_trace != 0 {
        return Ok(());
    }
    let is_new_tick = control.last_seen() != now.tick;
    let is_lasting = is_new_tick && now.jiffy.wrapping_sub(original.born) >= STREAM_SECS * now.second;
    let advances = is_lasting && control.state() == FlowState::REPLIED || may_advance(control, parsed);
    // As on the fast path, where later packets of a tick ask for nothing.
    let is_due = is_new_tick && table::is_due(original.peer_seen, timeout, now.tick);
    if is_new_tick {
        table::set_last_seen(slot, now.tick);
    }
    if !advances && !is_due {
        note_place::<F>(index);
        return Ok(());
    }
    let peer = pair::find_peer_global::<F>();
    if advances {
        advance_global::<F>(index, peer, is_lasting);
    }
    // Not from here: for the stack.
    (scratch.is_due, scratch.due_peer) = (is_due.into(), peer);
    note_place::<F>(index);
    Ok(())
}

/// Keeps up with the flow's place in its stream. What ends a connection may be forged.
#[inline(always)]
fn note_place<F: Header>(index: u32) {
    let (Ok(scratch), Some(slot)) = (work::scratch::<F>(), FlowTable::<F>::NEW.at(index)) else { return };
    let is_end = scratch.parsed.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0;
    if scratch.parsed.key.protocol == protocol::TCP && !is_end {
        note_sequence::<F>(slot, &scratch.parsed);
    }
}

global_fn! {
    /// [`advance`].
    fn advance_global<F: Header>(index: u32, peer: u32, is_lasting: bool) -> u32 = advance => advance_v4 | advance_v6
}

/// Moves both entries of the flow on, if the packet in the scratch space means anything to it. Always 0.
#[inline(always)]
fn advance<F: Header>(index: u32, peer: u32, is_lasting: bool) -> u32 {
    let Ok(Scratch { parsed, original, peer_control, .. }) = work::scratch::<F>() else { return 0 };
    let Some(slot) = FlowTable::<F>::NEW.at(index) else { return 0 };
    let other = if peer == NONE { None } else { FlowTable::<F>::NEW.at(peer) };
    let (flags, direction) = (original.flags(), original.direction());
    let known = Known {
        state: original.control.state(),
        is_answered: flags & flow_flags::ANSWERED != 0,
        sequence: original.sequence,
        peer_sequence: other.map_or(0, table::sequence::<F, _>),
        is_lasting,
        is_picked_up: flags & flow_flags::PICKED_UP != 0,
    };
    let event = event_of(parsed, direction, known);
    let is_answer = direction == Direction::Reply && known.state.is_pending() && parsed.tcp_flags & tcp_flags::RST == 0;
    // What the client must acknowledge, or a SYN that is sent again.
    let is_first = is_answer || parsed.is_opening() && direction == Direction::Original;
    if is_first && known.state == FlowState::HALF_OPEN && parsed.key.protocol == protocol::TCP {
        table::set_sequence::<F, _>(slot, parsed.sequence);
    }
    let answered = if is_answer { u32::from(flow_flags::ANSWERED) } else { 0 };
    if event == 0 && answered & !u32::from(flags) == 0 {
        return 0;
    }
    change_global::<F>(index, event, answered, original.control.to_bits());
    if peer != NONE {
        change_global::<F>(peer, event, answered, peer_control.to_bits());
    }
    0
}

/// [`event`] as a number.
#[inline(always)]
fn event_of<F: Header>(parsed: &Parsed<F>, direction: Direction, known: Known) -> u32 {
    let bits = [direction == Direction::Reply, known.is_answered, known.is_lasting, known.is_picked_up];
    let bits = bits.iter().rev().fold(0, |bits, &bit| bits << 1 | u32::from(bit));
    let bytes = [parsed.key.protocol, parsed.tcp_flags, known.state.to_bits(), bits as u8];
    event_global(
        u32::from_ne_bytes(bytes),
        join(parsed.sequence, parsed.acknowledgement),
        join(known.sequence, known.peer_sequence),
    )
}

global_fn! {
    /// [`event_of_numbers`].
    fn event_global(packet: u32, numbers: u64, known: u64) -> u32 = event_of_numbers => flow_event
}

/// [`event`], of what [`event_of`] has packed.
#[inline(always)]
fn event_of_numbers(packet: u32, numbers: u64, known: u64) -> u32 {
    let [protocol, flags, state, bits] = packet.to_ne_bytes();
    let (sequence, acknowledgement) = halves(numbers);
    let (known_sequence, peer_sequence) = halves(known);
    let direction = if bits & 1 == 0 { Direction::Original } else { Direction::Reply };
    let seen = Seen { direction, protocol, flags, sequence, acknowledgement };
    let known = Known {
        state: FlowState::from_bits(state),
        is_answered: bits & 2 != 0,
        sequence: known_sequence,
        peer_sequence,
        is_lasting: bits & 4 != 0,
        is_picked_up: bits & 8 != 0,
    };
    event(seen, known) as u32
}

global_fn! {
    /// [`state_after`].
    fn state_after_global(state: u32, event: u32) -> u32 = state_after => flow_state_after
}

#[inline(always)]
fn state_after(state: u32, event: u32) -> u32 {
    FlowState::from_bits(state as u8).after(Event::from_number(event)).to_bits().into()
}

global_fn! {
    /// [`change`].
    fn change_global<F: Header>(index: u32, event: u32, flags: u32, seen: u64) -> u32 = change => change_v4 | change_v6
}

/// Moves one entry to the state after an event, given as a number, and sets flags, if it is still the entry that was seen under a
/// control word. Always 0.
#[inline(always)]
fn change<F: Header>(index: u32, event: u32, flags: u32, seen: u64) -> u32 {
    if let Some(slot) = FlowTable::<F>::NEW.at(index) {
        let control = table::control(slot);
        if !control.is_same_entry(Control::from_bits(seen)) {
            return 0;
        }
        table::advance(slot, control, flags as u8, |state| {
            FlowState::from_bits(state_after_global(state.to_bits().into(), event) as u8)
        });
    }
    0
}

global_fn! {
    /// [`refresh`].
    pub fn refresh_global<F: Header>() -> Stage<()> = refresh => refresh_v4 | refresh_v6
}

/// Sees to the other direction's entry of the flow in the scratch space, which [`follow`] has found due. An error for the client's
/// direction where its tuple is another flow's now: replies would go there.
#[inline(always)]
fn refresh<F: Header>() -> Stage<()> {
    let tick = clock::tick();
    let scratch = work::scratch::<F>()?;
    let (index, peer) = (scratch.instruction.slot, scratch.due_peer);
    let slot = FlowTable::<F>::NEW.at(index).ok_or(Stop::NOT_OURS)?;
    if peer != NONE {
        let other = FlowTable::<F>::NEW.at(peer).ok_or(Stop::NOT_OURS)?;
        table::set_last_seen(other, tick);
        table::set_peer::<F, _>(slot, peer);
    } else {
        let Scratch { original, peer, .. } = scratch;
        let is_reply = original.direction() == Direction::Reply;
        original.write_peer(peer);
        // As the flow is now, not as it was when the packet came.
        let control = table::control(slot);
        peer.control = Control::NONE.published(control.state(), control.flags() ^ flow_flags::REPLY, tick);
        (peer.peer_seen, peer.peer) = (tick, index);
        match pair::insert::<F>(pair::PEER) {
            // Another CPU may have made it for this very flow.
            pair::TAKEN if !is_reply && pair::find_peer_global::<F>() == NONE => return Err(Stop::NOT_OURS),
            pair::TAKEN | pair::FULL => {}
            made => table::set_peer::<F, _>(slot, made),
        }
    }
    table::set_peer_seen::<F, _>(slot, tick);
    Ok(())
}
