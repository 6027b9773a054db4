// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Conntrack look-up: is the packet of a flow that was decided before, and does the decision still hold?
//!
//! The fast path ([`find`]) reads the entry, and writes no more than the time once a tick, and now and then the place in the stream.
//! Whatever else a packet may mean to its flow is the slow path's ([`look_again`]).

use lb_common::{
    flow::{
        Control, Direction, FlowState, Hook, flow_flags, is_step, protocol,
        table::{self, Place, Sets, Slot as _, Table as _, halves},
        tcp_flags, word,
    },
    verdict::{Reason, Stage, Stop},
};

use super::{
    follow::follow_global,
    pair::{self, lookup},
};
use crate::{
    kernel::{
        clock, global_fn, globals, maps,
        table::{FlowTable, Slot},
        work::{self, Instruction, Parsed, kind},
    },
    packet::header::Header,
};

/// TCP flags that may move a flow to another state.
const EVENTS: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;

/// The instruction for a packet of a flow that simply goes on: established, its backend there. [`Stop::RARE`] where the slow path must
/// look.
#[inline(always)]
pub fn find<F: Header>(parsed: &Parsed<F>, hook: Hook) -> Stage<Instruction<F>> {
    if hook == Hook::Ingress && parsed.is_opening() {
        // The slow path's in any case: it need not be searched for twice.
        return Err(Stop::RARE);
    }
    let table = FlowTable::<F>::NEW;
    let found = table::find(table, &parsed.key, Sets::of(&parsed.key, globals::table_key(), table.mask()));
    // Nothing is decided for a packet that leaves.
    let place = found.ok_or(if hook == Hook::Egress { Stop::NOT_OURS } else { Stop::RARE })?;
    let flow = instruction::<F>(&place).ok_or(Stop::RARE)?;
    if !flow.is_at(hook) {
        return Err(if is_anothers(&flow, hook)? { Stop::NOT_OURS } else { Stop::RARE });
    }
    let control = place.control;
    let is_udp = parsed.key.protocol == protocol::UDP;
    if may_advance(control, parsed)
        || (is_udp || needs_backend(flow.flags)) && !flow.is_reply() && has_lost_backend(&flow)
    {
        return Err(Stop::RARE);
    }
    let tick = clock::tick();
    if control.last_seen() != tick {
        begin_tick::<F>(place.slot, control, tick)?;
    }
    if !is_udp {
        note_sequence::<F>(place.slot, parsed);
    }
    Ok(flow)
}

/// Whether packets that are not translated at this hook are left to another. What has come untranslated to the net nobody else will
/// translate; and a flow of the net is anybody's where there is none any more.
#[inline(always)]
pub fn is_anothers<F: Header>(flow: &Instruction<F>, hook: Hook) -> Stage<bool> {
    Ok(match hook {
        Hook::Egress => true,
        Hook::Ingress => !flow.is_nets() || maps::config()?.net.is_there(),
        Hook::Net => false,
    })
}

/// Notes that the flow lives, at its first packet in a tick. Now and then there is more to do then.
#[inline(always)]
fn begin_tick<F: Header>(slot: Slot, control: Control, tick: u32) -> Stage<()> {
    let timeout = maps::timeout_of(control.state())?;
    let is_due = table::is_due(table::peer_seen::<F, _>(slot), timeout, tick);
    if table::is_expired(control, timeout, tick) || is_due || control.state() == FlowState::REPLIED {
        return Err(Stop::RARE);
    }
    table::set_last_seen(slot, tick);
    Ok(())
}

/// The instruction in a place; `None` where it was not the same throughout.
#[inline(always)]
fn instruction<F: Header>(place: &Place<Slot>) -> Option<Instruction<F>> {
    let slot = place.slot;
    let (src, dst) = table::addresses::<F, _>(slot, word::new_addresses::<F>());
    let (ports, deltas) = halves(slot.load(word::new_ports::<F>()));
    let (backend, generation) = table::backend::<F, _>(slot);
    let next_hop = table::next_hop::<F, _>(slot).into();
    table::control(slot).is_same_entry(place.control).then_some(Instruction {
        src,
        dst,
        ports,
        address_delta: deltas as u16,
        port_delta: (deltas >> 16) as u16,
        backend,
        generation,
        next_hop,
        slot: place.index,
        flags: place.control.flags().into(),
    })
}

/// Keeps up with the flow's place in its stream, so that a FIN or an RST can be told from a forged one.
#[inline(always)]
pub fn note_sequence<F: Header>(slot: Slot, parsed: &Parsed<F>) {
    if is_step(parsed.sequence, table::sequence::<F, _>(slot)) {
        table::set_sequence::<F, _>(slot, parsed.sequence);
    }
}

global_fn! {
    /// [`look_again`].
    pub fn look_again_global<F: Header>(hook: Hook) -> Stage<()> = look_again => look_again_v4 | look_again_v6
}

/// Looks up the flow of the packet in the scratch space, and notes the packet in it, if this is where its packets are translated. On
/// success the instruction stands in the scratch space.
///
/// [`Stop::NOT_OURS`] where the packet is to be decided; [`stop_of_orphan`] where the backend has gone. A reply that is none of the
/// flow's (the client has connected to the backend itself, by the ports of a connection that is over) removes both entries: what
/// follows is of that connection, too.
#[inline(always)]
fn look_again<F: Header>(hook: Hook) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    (scratch.is_due, scratch.is_known) = (0, 0);
    let place = lookup(&scratch.parsed.key).ok_or(Stop::NOT_OURS)?;
    scratch.is_known = 1;
    scratch.instruction = instruction::<F>(&place).ok_or(Stop::NOT_OURS)?;
    if !scratch.instruction.is_at(hook) {
        return Ok(());
    }
    match judge(&scratch.parsed, &scratch.instruction, place.control.state()) {
        Judgement::Holds => follow_global::<F>(place.index),
        Judgement::IsOrphan => Err(stop_of_orphan(&scratch.parsed)),
        Judgement::IsStale => {
            let is_reply = flow_flags::direction(place.control.flags()) == Direction::Reply;
            if is_reply && scratch.parsed.is_trace == 0 {
                pair::remove_global::<F>(place.index);
            }
            Err(Stop::NOT_OURS)
        }
    }
}

enum Judgement {
    Holds,
    IsOrphan,
    IsStale,
}

/// Whether the world has moved on since the decision, and it matters to this packet: the backend has gone, the connection is over
/// and this is the SYN of another, or it is the answer to one that the client has made to the backend itself.
#[inline(always)]
fn judge<F: Header>(parsed: &Parsed<F>, flow: &Instruction<F>, state: FlowState) -> Judgement {
    if flow.is_reply() {
        return if parsed.is_answer() && state.is_over() { Judgement::IsStale } else { Judgement::Holds };
    }
    if parsed.is_opening() && state.is_over() {
        return Judgement::IsStale;
    }
    // It matters to UDP, to a fresh SYN, and to TCP that is reset when its backend goes. Other segments keep their backend, as with
    // kube-proxy (rule 58).
    let matters = parsed.key.protocol == protocol::UDP || needs_backend(flow.flags) || parsed.is_opening();
    if !matters || !has_lost_backend(flow) {
        return Judgement::Holds;
    }
    let is_segment = parsed.key.protocol == protocol::TCP && !parsed.is_opening();
    if is_segment { Judgement::IsOrphan } else { Judgement::IsStale }
}

#[inline(always)]
fn needs_backend(flags: u32) -> bool {
    flags & u32::from(flow_flags::RESET) != 0
}

#[inline(always)]
fn has_lost_backend<F: Header>(flow: &Instruction<F>) -> bool {
    maps::find_backend(flow.backend).is_none_or(|backend| backend.generation != flow.generation)
}

/// Whether the packet may move its flow to another state: most may not, and this is cheaper than to see which.
#[inline(always)]
pub fn may_advance<F: Header>(control: Control, parsed: &Parsed<F>) -> bool {
    let state = control.state();
    if parsed.key.protocol == protocol::UDP {
        state == FlowState::UNREPLIED && control.flags() & flow_flags::REPLY != 0
    } else {
        parsed.tcp_flags & EVENTS != 0 || matches!(state, FlowState::HALF_OPEN | FlowState::RESET)
    }
}

/// What becomes of a segment whose backend has gone: it is answered, but for a reset.
#[inline(always)]
fn stop_of_orphan<F: Header>(parsed: &Parsed<F>) -> Stop {
    if parsed.tcp_flags & tcp_flags::RST != 0 {
        Stop::drop(Reason::BackendGone)
    } else {
        Stop::reset(Reason::BackendGone)
    }
}

global_fn! {
    /// [`find_related`].
    pub fn find_related_global<F: Header>(hook: Hook) -> Stage<()> = find_related => find_related_v4 | find_related_v6
}

/// The instruction for a packet without ports of its own: that of the flow which it belongs to, if this hook is where that
/// flow's packets are translated. It changes nothing of the flow, nor does it matter to it that the backend may have gone.
#[inline(always)]
fn find_related<F: Header>(hook: Hook) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    match lookup(&scratch.parsed.key).and_then(|place| instruction::<F>(&place)) {
        Some(found) if found.is_at(hook) => {
            scratch.instruction = found;
            Ok(())
        }
        None if scratch.dissected.kind == kind::LATER_FRAGMENT => Err(Stop::drop(Reason::OrphanFragment)),
        _ => Err(Stop::NOT_OURS),
    }
}
