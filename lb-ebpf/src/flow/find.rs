// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The flow table (conntrack): is the packet of a flow that was decided before, and does the decision still hold? Half-open
//! flows stand in a table of their own (young) until they are promoted (grown); stale ones are decided anew.
//!
//! The hot path only reads the entry. It is written at most once a tick ([`touch`]), and when the flow's state changes,
//! which happens a handful of times in its life. Both writes look after the peer entry as well: that is how a lost half
//! of the pair is found and made again.

use lb_common::{
    config::{Config, elapsed},
    flow::{Direction, Flow, FlowKey, FlowState, flow_flags, protocol, tcp_flags},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::{
        bounds::opaque,
        global_fn,
        maps::{self, FlowTable, Grown, InsertError, Young},
        work::{self, Parsed, Scratch, kind},
    },
    packet::header::Header,
    parse::filter::Hook,
};

/// What the flow tables have to say about a packet.
pub enum Found<F: Header> {
    /// Follow this instruction.
    Valid(&'static mut Flow<F>),
    /// A TCP segment of the client, whose backend has gone and whose Service wants that reset.
    Orphaned(&'static mut Flow<F>),
    /// The slow path must decide: there is no entry, or one that no longer holds.
    Undecided,
}

/// Looks the packet's flow up among the grown ones and judges whether its decision holds. `dry` writes nothing.
#[inline(always)]
pub fn find<F: Header>(parsed: &Parsed<F>, now: u32, dry: bool) -> Stage<Found<F>> {
    let Some(flow) = maps::find_flow::<F, Grown>(&parsed.key) else { return Ok(Found::Undecided) };
    if is_overtaken(flow, parsed) {
        return Ok(if is_open(parsed) { Found::Orphaned(flow) } else { Found::Undecided });
    }
    if is_of_another(flow, parsed) {
        return Ok(Found::Undecided);
    }
    if flow.last_seen != now {
        if is_expired(flow, maps::config()?, now) {
            return Ok(Found::Undecided);
        }
        if !dry {
            work::scratch::<F>()?.parsed = *parsed;
            if touch_global::<F>(now).is_err() {
                return Ok(Found::Undecided);
            }
        }
    }
    if may_advance(flow, parsed) && !dry {
        work::scratch::<F>()?.parsed = *parsed;
        advance_global::<F>()?;
    }
    Ok(Found::Valid(flow))
}

global_fn! {
    /// [`find_young`].
    pub fn find_young_global<F: Header>(now: u32, dry: bool) -> Stage<()> = find_young => find_young_v4 | find_young_v6
}

/// Looks the flow of the packet in the scratch space up among the young ones, and lets it live: on success the scratch space
/// holds a copy of its entry. Next hops that are found for it later are not kept. Off the hot path: what can be written at once is.
///
/// [`Stop::NOT_OURS`] where the slow path must decide; [`stop_of_orphan`] where the backend has gone.
#[inline(always)]
fn find_young<F: Header>(now: u32, dry: bool) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let parsed = &scratch.parsed;
    let Some(flow) = maps::find_flow::<F, Young>(&parsed.key) else { return find_just_grown(scratch, now, dry) };
    if is_overtaken(flow, parsed) {
        scratch.original = *flow;
        return Err(if is_open(parsed) { stop_of_orphan(parsed) } else { Stop::NOT_OURS });
    }
    if is_of_another(flow, parsed) {
        if !dry {
            maps::remove_flow::<F, Young>(&parsed.key);
        }
        return Err(Stop::NOT_OURS);
    }
    if is_expired(flow, maps::config()?, now) {
        return Err(Stop::NOT_OURS);
    }
    if dry {
        scratch.original = *flow;
        return Ok(());
    }
    let is_new_tick = flow.last_seen != now;
    flow.last_seen = now;
    flow.write_peer_key(&parsed.key, &mut scratch.peer_key);
    flow.write_peer(&parsed.key, &mut scratch.peer);
    let next = state_after(flow, parsed);
    let is_original = flow.direction() == Direction::Original;
    // A SYN or INIT that is sent again takes up no answer.
    let is_going_on = !next.is_over() && next != FlowState::HALF_OPEN;
    let is_grown = is_original && flow.flags & flow_flags::ANSWERED != 0 && is_going_on;
    // A refusal is no answer.
    let answered = if is_original || next.is_over() { 0 } else { flow_flags::ANSWERED };
    scratch.peer.state = next;
    scratch.peer.flags |= answered;
    keep_peer_global::<F>(is_new_tick)?;
    flow.state = next;
    flow.flags |= answered;
    scratch.original = *flow;
    if is_grown {
        grow_global::<F>()?;
    }
    Ok(())
}

/// Looks the flow of the packet in the scratch space up among the grown ones again: between the first look there and that among
/// the young ones another CPU may have moved it ([`grow`]). What has been there before and was refused then is refused again,
/// and goes where it is of another connection.
#[inline(always)]
fn find_just_grown<F: Header>(scratch: &mut Scratch<F>, now: u32, dry: bool) -> Stage<()> {
    let Scratch { parsed, peer_key, original, .. } = scratch;
    let flow = maps::find_flow::<F, Grown>(&parsed.key).ok_or(Stop::NOT_OURS)?;
    if is_of_another(flow, parsed) {
        if !dry {
            maps::remove_flow::<F, Grown>(&parsed.key);
        }
        return Err(Stop::NOT_OURS);
    }
    flow.write_peer_key(&parsed.key, peer_key);
    let is_pair = maps::find_flow::<F, Grown>(peer_key).is_some_and(|peer| peer.is_peer_key(peer_key, &parsed.key));
    if !is_pair || is_overtaken(flow, parsed) || is_expired(flow, maps::config()?, now) {
        return Err(Stop::NOT_OURS);
    }
    *original = *flow;
    Ok(())
}

global_fn! {
    /// [`keep_peer`].
    fn keep_peer_global<F: Header>(is_new_tick: bool) -> Stage<()> = keep_peer => keep_peer_v4 | keep_peer_v6
}

/// Brings the peer's entry among the young ones up to date with what the scratch space says; with a new tick makes it anew if
/// it was evicted. An error where the tuple has been taken by another flow: see [`insert_lost_peer`].
#[inline(always)]
fn keep_peer<F: Header>(is_new_tick: bool) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let Scratch { parsed, peer_key, peer: wanted, .. } = scratch;
    let young = maps::find_flow::<F, Young>(peer_key);
    let is_held = match young {
        Some(peer) if peer.is_peer_key(peer_key, &parsed.key) => {
            peer.last_seen = wanted.last_seen;
            peer.state = wanted.state;
            peer.flags = wanted.flags;
            return Ok(());
        }
        Some(_) => true,
        None => maps::find_flow::<F, Grown>(peer_key).is_some(),
    };
    if is_held || is_new_tick { insert_lost_peer::<F, Young>(scratch) } else { Ok(()) }
}

global_fn! {
    /// [`grow`].
    fn grow_global<F: Header>() -> Stage<()> = grow => grow_v4 | grow_v6
}

/// Moves the pair in the scratch space to the grown flows, if it is complete. First there, then not here: who looks for a tuple
/// in this order the other way round never finds it missing. Where there is no room the next packet tries again.
#[inline(always)]
fn grow<F: Header>() -> Stage<()> {
    let Scratch { parsed, peer_key, peer, original, .. } = work::scratch::<F>()?;
    let is_complete =
        maps::find_flow::<F, Young>(peer_key).is_some_and(|found| found.is_peer_key(peer_key, &parsed.key));
    if !is_complete || maps::insert_new_flow::<F, Grown>(peer_key, peer).is_err() {
        return Ok(());
    }
    if maps::put_flow::<F, Grown>(&parsed.key, original).is_err() {
        maps::remove_flow::<F, Grown>(peer_key);
        return Ok(());
    }
    maps::remove_flow::<F, Young>(&parsed.key);
    maps::remove_flow::<F, Young>(peer_key);
    Ok(())
}

/// Whether the packet is the answer to a connection that the client made to the backend itself, by the ports of one through a
/// Service that is over. The entry goes then: what follows is of that connection, too.
#[inline(always)]
fn is_of_another<F: Header>(flow: &Flow<F>, parsed: &Parsed<F>) -> bool {
    const ANSWER: u8 = tcp_flags::SYN | tcp_flags::ACK;
    flow.direction() == Direction::Reply
        && parsed.key.protocol == protocol::TCP
        && parsed.tcp_flags & ANSWER == ANSWER
        && flow.state.is_over()
}

/// Whether an entry has been idle for longer than its state allows.
#[inline(always)]
pub fn is_expired<F: Header>(flow: &Flow<F>, config: &Config, now: u32) -> bool {
    // verifier: 6.1 and older lose the bound of a 32-bit copy ("invalid access to map value").
    let timeout = config.timeouts.get(opaque(flow.state.to_bits().into())).copied().unwrap_or_default();
    elapsed(now, flow.last_seen) > i64::from(timeout)
}

/// Whether it matters to this packet that its backend is still there: to UDP, to a fresh SYN, and to TCP that is reset
/// when its backend goes. Other segments keep their backend, as with kube-proxy (rule 58).
#[inline(always)]
fn concerns_backend<F: Header>(flow: &Flow<F>, parsed: &Parsed<F>) -> bool {
    parsed.key.protocol == protocol::UDP || flow.flags & flow_flags::RESET != 0 || is_syn(parsed)
}

#[inline(always)]
fn is_syn<F: Header>(parsed: &Parsed<F>) -> bool {
    parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
}

/// Whether it is a segment within a connection.
#[inline(always)]
fn is_open<F: Header>(parsed: &Parsed<F>) -> bool {
    parsed.key.protocol == protocol::TCP && !is_syn(parsed)
}

/// Whether the world has moved on since the decision, and it matters to this packet of the client: the backend has gone, or
/// the connection is over and this is the SYN of another.
#[inline(always)]
fn is_overtaken<F: Header>(flow: &Flow<F>, parsed: &Parsed<F>) -> bool {
    if flow.direction() != Direction::Original || !concerns_backend(flow, parsed) {
        return false;
    }
    if is_syn(parsed) && flow.state.is_over() {
        return true;
    }
    maps::find_backend(flow.backend).is_none_or(|backend| backend.generation != flow.generation)
}

global_fn! {
    /// [`touch`].
    fn touch_global<F: Header>(now: u32) -> Stage<()> = touch => touch_v4 | touch_v6
}

/// Notes that the flow of the packet in the scratch space lives, in both entries, and makes the peer anew if it was
/// evicted. An error where it can't be: the flow needs another source port.
///
/// A torn or lost update here costs nothing: the next tick repeats it.
#[inline(always)]
fn touch<F: Header>(now: u32) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let key = &scratch.parsed.key;
    let Some(flow) = maps::find_flow::<F, Grown>(key) else { return Ok(()) };
    flow.last_seen = now;
    flow.write_peer_key(key, &mut scratch.peer_key);
    if let Some(peer) = maps::find_flow::<F, Grown>(&scratch.peer_key)
        && peer.is_peer_key(&scratch.peer_key, key)
    {
        peer.last_seen = now;
        return Ok(());
    }
    flow.write_peer(key, &mut scratch.peer);
    insert_lost_peer::<F, Grown>(scratch)
}

/// Makes the peer's entry in the scratch space, which was evicted, anew. An error for the client's direction where the tuple
/// is another flow's now: replies would go there.
#[inline(always)]
fn insert_lost_peer<F: Header, T: FlowTable>(scratch: &Scratch<F>) -> Stage<()> {
    let Scratch { peer_key, peer, .. } = scratch;
    if maps::find_flow::<F, Young>(peer_key).is_some() || maps::find_flow::<F, Grown>(peer_key).is_some() {
        return if peer.direction() == Direction::Reply { Err(Stop::NOT_OURS) } else { Ok(()) };
    }
    if maps::insert_new_flow::<F, T>(peer_key, peer) == Err(InsertError::Refused) {
        maps::count_reason(Reason::FlowInsertFailed as u32);
    }
    Ok(())
}

/// Whether the packet may move its flow to another state: most may not, and this is cheaper than to see which.
#[inline(always)]
fn may_advance<F: Header>(flow: &Flow<F>, parsed: &Parsed<F>) -> bool {
    const EVENTS: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;
    if parsed.key.protocol == protocol::UDP {
        flow.state == FlowState::UNREPLIED
    } else {
        parsed.tcp_flags & EVENTS != 0 || matches!(flow.state, FlowState::HALF_OPEN | FlowState::RESET)
    }
}

global_fn! {
    /// [`advance`].
    fn advance_global<F: Header>() -> Stage<()> = advance => advance_v4 | advance_v6
}

/// Moves both entries of the packet in the scratch space to the next state.
#[inline(always)]
fn advance<F: Header>() -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let key = &scratch.parsed.key;
    let Some(flow) = maps::find_flow::<F, Grown>(key) else { return Ok(()) };
    let next = state_after(flow, &scratch.parsed);
    if next == flow.state {
        return Ok(());
    }
    flow.state = next;
    flow.write_peer_key(key, &mut scratch.peer_key);
    if let Some(peer) = maps::find_flow::<F, Grown>(&scratch.peer_key)
        && peer.is_peer_key(&scratch.peer_key, key)
    {
        peer.state = next;
    }
    Ok(())
}

/// [`FlowState::next`] for this packet.
#[inline(always)]
fn state_after<F: Header>(flow: &Flow<F>, parsed: &Parsed<F>) -> FlowState {
    next_state_global(flow.state, flow.direction(), parsed.key.protocol, parsed.tcp_flags)
}

global_fn! {
    /// [`FlowState::next`].
    fn next_state_global(state: FlowState, direction: Direction, protocol: u8, flags: u8) -> FlowState = FlowState::next => next_state
}

/// What becomes of a segment whose backend has gone: it is answered, but for a reset.
#[inline(always)]
pub fn stop_of_orphan<F: Header>(parsed: &Parsed<F>) -> Stop {
    if parsed.tcp_flags & tcp_flags::RST != 0 {
        Stop::drop(Reason::BackendGone)
    } else {
        Stop::reset(Reason::BackendGone)
    }
}

/// The instruction for a packet without ports of its own: that of the flow which it belongs to, if this hook is where that
/// flow's packets are translated. It changes nothing of the flow, nor does it matter to it that the backend may have gone.
#[inline(always)]
pub fn find_related<F: Header>(kind: u32, key: &FlowKey<F>, hook: Hook) -> Stage<&'static mut Flow<F>> {
    let flow = maps::find_flow::<F, Grown>(key).or_else(|| maps::find_flow::<F, Young>(key));
    // Once more among the grown ones: it may have been moved there meanwhile (see `grow`).
    match flow.or_else(|| maps::find_flow::<F, Grown>(key)) {
        Some(flow) if flow.is_at_egress() == (hook == Hook::Egress) => Ok(flow),
        None if kind == kind::LATER_FRAGMENT => Err(Stop::drop(Reason::OrphanFragment)),
        _ => Err(Stop::NOT_OURS),
    }
}
