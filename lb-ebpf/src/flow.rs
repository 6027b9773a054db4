// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 2: is the packet of a flow that was decided before, and does the decision still hold?
//!
//! The hot path only reads the entry. It is written at most once a tick ([`touch`]), and when the flow's state changes,
//! which happens a handful of times in its life. Both writes look after the peer entry as well: that is how a lost half
//! of the pair is found and made again.

use lb_common::{
    config::Config,
    flow::{Direction, Flow, FlowState, flow_flags, protocol, tcp_flags},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    bounds::opaque,
    header::Header,
    maps::{self, InsertError},
    parse::Parsed,
};

/// What the flow table has to say about a packet.
pub enum Found<F: Header> {
    /// Follow this instruction.
    Valid(&'static mut Flow<F>),
    /// A TCP segment of the client, whose backend has gone and whose Service wants that reset.
    Orphaned(&'static mut Flow<F>),
    /// The slow path must decide: there is no entry, or one that no longer holds.
    Undecided,
}

/// Looks the packet's flow up and judges whether its decision holds. `dry` writes nothing.
#[inline(always)]
pub fn find<F: Header>(parsed: &Parsed<F>, now: u32, dry: bool) -> Stage<Found<F>> {
    let Some(flow) = maps::find_flow(&parsed.key) else { return Ok(Found::Undecided) };
    if flow.direction() == Direction::Original && concerns_backend(flow, parsed) && is_overtaken(flow, parsed) {
        let is_open = parsed.key.protocol == protocol::TCP && !is_syn(parsed);
        return Ok(if is_open { Found::Orphaned(flow) } else { Found::Undecided });
    }
    if flow.last_seen != now {
        let config = maps::config()?;
        if flow.direction() == Direction::Original && is_expired(flow, config, now) {
            return Ok(Found::Undecided);
        }
        if !dry {
            maps::scratch::<F>()?.parsed = *parsed;
            if F::touch_apart(now).unpack().is_err() {
                return Ok(Found::Undecided);
            }
        }
    }
    let next = flow.state.next(flow.direction(), parsed.key.protocol, parsed.tcp_flags);
    if next != flow.state && !dry {
        maps::scratch::<F>()?.parsed = *parsed;
        F::advance_apart(next).unpack()?;
    }
    Ok(Found::Valid(flow))
}

/// Whether an entry has been idle for longer than its state allows.
#[inline(always)]
pub fn is_expired<F: Header>(flow: &Flow<F>, config: &Config, now: u32) -> bool {
    // verifier: 6.1 and older lose the bound of a 32-bit copy ("invalid access to map value").
    let timeout = config.timeouts.get(opaque(flow.state.to_bits().into())).copied().unwrap_or_default();
    now.wrapping_sub(flow.last_seen) > timeout
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

/// Whether the world has moved on since the decision: the backend has gone, or the connection is over and this is the
/// SYN of another.
#[inline(always)]
fn is_overtaken<F: Header>(flow: &Flow<F>, parsed: &Parsed<F>) -> bool {
    if is_syn(parsed) && flow.state.is_over() {
        return true;
    }
    maps::find_backend(flow.backend).is_none_or(|backend| backend.generation != flow.generation)
}

/// Notes that the flow of the packet in the scratch space lives, in both entries, and makes the peer anew if it was
/// evicted. An error where it can't be: the flow needs another source port.
///
/// A torn or lost update here costs nothing: the next tick repeats it.
#[inline(always)]
pub fn touch<F: Header>(now: u32) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    let key = &scratch.parsed.key;
    let Some(flow) = maps::find_flow(key) else { return Ok(()) };
    flow.last_seen = now;
    flow.write_peer_key(key, &mut scratch.peer_key);
    if let Some(peer) = maps::find_flow(&scratch.peer_key) {
        if peer.is_peer_key(&scratch.peer_key, key) {
            peer.last_seen = now;
        } else if flow.direction() == Direction::Original {
            // Evicted, and the tuple is another flow's now: replies would go there.
            return Err(Stop::NOT_OURS);
        }
        return Ok(());
    }
    flow.write_peer(key, &mut scratch.peer);
    if maps::insert_new_flow(&scratch.peer_key, &scratch.peer) == Err(InsertError::Refused) {
        maps::count_reason(Reason::FlowInsertFailed as u32);
    }
    Ok(())
}

/// Moves both entries of the packet in the scratch space to the next state.
#[inline(always)]
pub fn advance<F: Header>(next: FlowState) -> Stage<()> {
    let scratch = maps::scratch::<F>()?;
    let key = &scratch.parsed.key;
    let Some(flow) = maps::find_flow(key) else { return Ok(()) };
    flow.state = next;
    flow.write_peer_key(key, &mut scratch.peer_key);
    if let Some(peer) = maps::find_flow(&scratch.peer_key)
        && peer.is_peer_key(&scratch.peer_key, key)
    {
        peer.state = next;
    }
    Ok(())
}
