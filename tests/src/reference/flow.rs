// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows: what stands in the table, how a connection lives and ends, and when a decision no longer holds.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::flow::{FlowState, protocol, tcp_flags};

use super::setup::Setup;

/// Ticks that have passed since a tick: none where another CPU's clock was ahead of this one's.
pub(super) const fn elapsed(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

/// Addresses and ports of a packet, as it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// Where it comes from.
    pub src: SocketAddr,
    /// Where it goes.
    pub dst: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

impl Tuple {
    /// The tuple of an answer.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, protocol: self.protocol }
    }
}

/// A device and the Ethernet header to send with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// The device; 0 is none.
    pub ifindex: u32,
    /// Generation of the routes under which it was found; 0 if the neighbour was not known.
    pub generation: u32,
    /// Destination and source Ethernet address.
    pub addresses: [u8; 12],
}

/// Which of the two tables an entry stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// That of the flows which have only begun.
    Young {
        /// The backend has sent something.
        is_answered: bool,
    },
    /// That of the flows whose client has spoken again after an answer.
    Grown,
}

impl Age {
    /// That of a new flow.
    #[must_use]
    pub const fn first() -> Self {
        Self::Young { is_answered: false }
    }

    const fn is_young(self) -> bool {
        matches!(self, Self::Young { .. })
    }
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Addresses and ports as the packet leaves.
    pub to: Tuple,
    /// Index of the backend.
    pub backend: u32,
    /// Its generation then.
    pub generation: u32,
    /// Where it was sent last.
    pub next_hop: NextHop,
    /// Tick of the last packet of either direction.
    pub last_seen: u32,
    /// Where the flow is in its life.
    pub state: FlowState,
    /// From the backend to the client.
    pub is_reply: bool,
    /// The client's address is translated as well.
    pub is_snat: bool,
    /// TCP is reset when the backend goes.
    pub resets: bool,
    /// Where it stands.
    pub age: Age,
}

impl Entry {
    /// Whether it applies where packets leave, not where they arrive.
    pub(super) const fn is_at_egress(&self) -> bool {
        self.is_reply && !self.is_snat
    }

    /// The other direction's entry, made from this one, found under `key`.
    pub(super) fn peer(&self, key: Tuple) -> Self {
        Self { to: key.reversed(), next_hop: NextHop::default(), is_reply: !self.is_reply, ..*self }
    }

    /// Whether the flow has been idle for longer than its state allows.
    pub(super) const fn is_expired(&self, setup: &Setup, now: u32) -> bool {
        elapsed(now, self.last_seen) > setup.timeouts[self.state.index()]
    }

    /// Whether the connection is over, or has been half-open for longer than clients wait for an answer to a SYN.
    fn is_ending(&self, now: u32) -> bool {
        match self.state {
            FlowState::CLOSING => elapsed(now, self.last_seen) >= 1,
            FlowState::HALF_OPEN | FlowState::RESET => elapsed(now, self.last_seen) >= 4,
            _ => false,
        }
    }

    /// Whether a packet of the client must be decided anew: it is UDP or a SYN and the backend has gone, or a SYN on a
    /// connection that is over, or the flow has been idle for too long.
    fn is_outdated(&self, key: Tuple, flags: u8, setup: &Setup, now: u32) -> bool {
        let may_move = key.protocol == protocol::UDP || is_syn(flags);
        let is_over = is_syn(flags) && is_over(self.state);
        may_move && self.has_lost_backend(setup) || is_over || self.is_expired(setup, now)
    }

    /// Whether a packet of the backend answers a connection that the client made to it without the Service, by the ports of
    /// one that is over.
    fn is_of_another(&self, key: Tuple, flags: u8) -> bool {
        let answer = tcp_flags::SYN | tcp_flags::ACK;
        key.protocol == protocol::TCP && flags & answer == answer && is_over(self.state)
    }

    /// Whether a packet of the client belongs to a TCP connection that shall be reset, as its backend has gone. A SYN begins
    /// another one.
    fn is_orphaned(&self, key: Tuple, flags: u8, setup: &Setup) -> bool {
        self.resets && key.protocol == protocol::TCP && !is_syn(flags) && self.has_lost_backend(setup)
    }

    fn has_lost_backend(&self, setup: &Setup) -> bool {
        setup.backend(self.backend).is_none_or(|backend| backend.generation != self.generation)
    }
}

/// Whether a connection is over, as far as it can be told.
const fn is_over(state: FlowState) -> bool {
    matches!(state, FlowState::CLOSING | FlowState::RESET)
}

const fn is_syn(flags: u8) -> bool {
    flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
}

/// What the table has for a packet.
pub(super) enum Found {
    /// Nothing that holds.
    Nothing,
    /// Its entry.
    Entry(Entry),
    /// The entry of a connection that shall be reset.
    Orphan(Entry),
}

/// The state that a flow starts in.
#[must_use]
pub fn first_state(protocol: u8, flags: u8) -> FlowState {
    let has = |flag| flags & flag != 0;
    match protocol {
        protocol::UDP => FlowState::UNREPLIED,
        _ if has(tcp_flags::RST) => FlowState::CLOSING,
        _ if has(tcp_flags::SYN) => FlowState::HALF_OPEN,
        _ => FlowState::ESTABLISHED,
    }
}

/// The state after a packet of one of the directions.
#[must_use]
pub fn next_state(state: FlowState, is_reply: bool, protocol: u8, flags: u8) -> FlowState {
    let has = |flag| flags & flag != 0;
    let (own_fin, other_fin) = if is_reply {
        (FlowState::FIN_REPLY, FlowState::FIN_ORIGINAL)
    } else {
        (FlowState::FIN_ORIGINAL, FlowState::FIN_REPLY)
    };
    if protocol == protocol::UDP {
        if is_reply { FlowState::REPLIED } else { state }
    } else if state == FlowState::CLOSING {
        FlowState::CLOSING
    } else if has(tcp_flags::RST) {
        // What ends an SCTP association bears its secret tag.
        if protocol == protocol::SCTP { FlowState::CLOSING } else { FlowState::RESET }
    } else if has(tcp_flags::FIN) {
        if state == other_fin { FlowState::CLOSING } else { own_fin }
    } else if state == FlowState::HALF_OPEN && !is_reply && !has(tcp_flags::SYN) {
        FlowState::ESTABLISHED
    } else if state == FlowState::RESET && !has(tcp_flags::SYN) {
        // An RST that its receiver has ignored.
        FlowState::ESTABLISHED
    } else {
        state
    }
}

/// See [`Flows::vacancy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// Nobody has it, or this flow itself, or one that has been idle for too long.
    Free,
    /// A connection has it that is over, or that never began: taken where nothing is free.
    Ending,
    /// A flow has it whose backend has not answered yet: taken after some probes.
    Unanswered,
    /// Another flow has it.
    Taken,
}

/// The flow table. Entries of a pair may be lost one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows(pub BTreeMap<Tuple, Entry>);

impl Flows {
    /// The entry of a packet. Unless `is_trace`, notes that the flow lives, in both entries,
    /// and makes a lost peer again.
    pub(super) fn find(&mut self, key: Tuple, flags: u8, setup: &Setup, now: u32, is_trace: bool) -> Found {
        let Some(&(mut entry)) = self.0.get(&key) else { return Found::Nothing };
        if !entry.is_reply && entry.is_orphaned(key, flags, setup) {
            return Found::Orphan(entry);
        }
        if entry.is_reply && entry.is_of_another(key, flags) {
            if !is_trace {
                self.0.remove(&key);
            }
            return Found::Nothing;
        }
        if entry.is_reply && entry.is_expired(setup, now) {
            return Found::Nothing;
        }
        if !entry.is_reply && entry.is_outdated(key, flags, setup, now) {
            return Found::Nothing;
        }
        if is_trace {
            return Found::Entry(entry);
        }
        let is_new_tick = entry.last_seen != now;
        let grows = !entry.is_reply && entry.age == Age::Young { is_answered: true };
        entry.last_seen = now;
        let state = entry.state;
        entry.state = next_state(state, entry.is_reply, key.protocol, flags);
        // A refusal is no answer.
        if entry.is_reply && entry.age.is_young() && !is_over(entry.state) {
            entry.age = Age::Young { is_answered: true };
        }
        let peer_key = entry.to.reversed();
        let is_own = |peer: &Entry| peer.to == key.reversed();
        match self.0.get_mut(&peer_key) {
            Some(peer) if is_own(peer) => {
                (peer.last_seen, peer.state) = (now, entry.state);
                peer.age = entry.age;
            }
            // Another flow's, which has taken the tuple: this one needs another port.
            Some(_) if (is_new_tick || entry.age.is_young()) && !entry.is_reply => {
                self.0.insert(key, Entry { state, ..entry });
                return Found::Nothing;
            }
            Some(_) => {}
            None if is_new_tick => drop(self.0.insert(peer_key, entry.peer(key))),
            None => {}
        }
        // Nor is a SYN that is sent again the client's next word.
        let goes_on = !is_over(entry.state) && entry.state != FlowState::HALF_OPEN;
        if grows && goes_on && self.0.get(&peer_key).is_some_and(is_own) {
            let grown = Entry { age: Age::Grown, ..entry };
            self.0.insert(peer_key, grown.peer(key));
            self.0.insert(key, grown);
        } else {
            self.0.insert(key, entry);
        }
        Found::Entry(entry)
    }

    /// Notes the way that was found for an entry. For one that was young when it was found, it is looked up again each time.
    pub(super) fn note_next_hop(&mut self, key: Tuple, found: &Entry) {
        if !found.age.is_young() {
            self.0.insert(key, *found);
        }
    }

    /// Writes both entries of a flow that was decided: the half that is left of a grown flow makes both grown.
    pub(super) fn begin(&mut self, key: Tuple, mut entry: Entry) {
        let reply = entry.to.reversed();
        entry.age = match self.0.get(&reply) {
            Some(half) if half.to == key.reversed() && half.age == Age::Grown => Age::Grown,
            _ => Age::first(),
        };
        self.0.insert(reply, entry.peer(key));
        self.0.insert(key, entry);
    }

    /// Whether the tuple of a reply can be had by the flow of the client's `key`.
    pub(super) fn vacancy(&self, reply: Tuple, key: Tuple, setup: &Setup, now: u32) -> Vacancy {
        match self.0.get(&reply) {
            None => Vacancy::Free,
            Some(holder) if holder.to == key.reversed() || holder.is_expired(setup, now) => Vacancy::Free,
            Some(holder) if holder.is_ending(now) => Vacancy::Ending,
            Some(holder) if holder.age == Age::first() => Vacancy::Unanswered,
            Some(_) => Vacancy::Taken,
        }
    }
}
