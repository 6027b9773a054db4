// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows: what stands in the table, and when a decision no longer holds. How a connection lives and ends is in [`super::life`].

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::flow::{FlowState, protocol, tcp_flags};

use super::{
    life::{Ends, Signs, is_over, is_step, may_mean_something, meaning},
    setup::Setup,
    verdict::Door,
};

/// The time: the packet path's tick, and the kernel's finer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// About a second.
    pub tick: u32,
    /// A jiffy.
    pub jiffy: u32,
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The device.
    pub ifindex: u32,
    /// Generation of the routes under which it was found.
    pub generation: u32,
    /// Destination and source Ethernet address.
    pub addresses: [u8; 12],
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
    /// Where it was sent last, if the neighbour was known.
    pub next_hop: Option<NextHop>,
    /// Whose share of the table it is.
    pub class: u8,
    /// Jiffy of the first packet.
    pub born: u32,
    /// Tick of the last packet of this direction, or in which the other direction saw to it that this entry is there.
    pub last_seen: u32,
    /// Tick in which this direction saw to the other one's entry.
    pub peer_seen: u32,
    /// Where this direction is in its stream, roughly; 0 where that is not known.
    pub sequence: u32,
    /// Where the flow is in its life.
    pub state: FlowState,
    /// From the backend to the client.
    pub is_reply: bool,
    /// The client's address is translated as well; of the net's flows, its packets are forwarded at once.
    pub is_snat: bool,
    /// The client's packets are translated at the net.
    pub is_nets: bool,
    /// TCP is reset when the backend goes.
    pub resets: bool,
    /// The backend has answered.
    pub is_answered: bool,
    /// The first packet that was seen was not the connection's first.
    pub is_picked_up: bool,
}

/// A packet with ports, as far as flows care.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub key: Tuple,
    pub signs: Signs,
    /// Where it is.
    pub door: Door,
}

/// Ticks after which a direction sees to the other one's entry again: an eighth of the time-out, and no more than eight.
const fn refresh_ticks(timeout: u32) -> u32 {
    if timeout / 8 > 8 { 8 } else { timeout / 8 }
}

impl Entry {
    /// Whether packets are translated at a door. A client's packets are where they come to us: by a device, or at the net. The
    /// backend's come to the net where they are for its source; by a device, where we have forwarded the client's; and else they leave by
    /// the one that the client is behind.
    #[must_use]
    pub fn is_at(&self, door: Door) -> bool {
        let doors: &[Door] = match (self.is_reply, self.is_nets, self.is_snat) {
            (false, true, _) | (true, true, false) => &[Door::Net],
            (false, false, _) | (true, _, true) => &Door::IN,
            (true, false, false) => &[Door::Egress],
        };
        doors.contains(&door)
    }

    /// Whether packets that come to a door are somebody else's to translate. Those at the net have passed everybody else already; and
    /// where there is no net any more nobody translates its flows.
    fn is_left_alone(&self, door: Door, setup: &Setup) -> bool {
        match door {
            Door::Net => false,
            Door::Xdp | Door::Ingress => !self.is_nets || setup.net.is_some(),
            Door::Egress | Door::NetArrival => true,
        }
    }

    /// Whether packets go on as ones that arrive by the net's device: all of the net's flows, but those that it forwards.
    pub(super) const fn is_handed_to_net(&self) -> bool {
        self.is_nets && (self.is_reply || !self.is_snat)
    }

    /// Whether packets are forwarded at once.
    #[must_use]
    pub const fn is_forwarded(&self) -> bool {
        self.is_snat && !self.is_handed_to_net()
    }

    /// The other direction's entry, made from this one, found under `key`.
    pub(super) fn peer(&self, key: Tuple) -> Self {
        Self { to: key.reversed(), next_hop: None, sequence: 0, is_reply: !self.is_reply, ..*self }
    }

    /// Whether the flow has been idle for longer than its state allows. The other direction may have been seen a while after this one.
    pub(super) const fn is_expired(&self, setup: &Setup, now: u32) -> bool {
        let timeout = setup.timeouts[self.state.index()];
        elapsed(now, self.last_seen) > timeout + refresh_ticks(timeout)
    }

    /// Whether a packet of the client must be decided anew: it is UDP or a SYN and the backend has gone, or a SYN on a
    /// connection that is over, or the flow has been idle for too long.
    fn is_outdated(&self, look: &Look, setup: &Setup, now: u32) -> bool {
        let may_move = look.key.protocol == protocol::UDP || look.signs.is_opening();
        let is_over = look.signs.is_opening() && is_over(self.state);
        may_move && self.has_lost_backend(setup) || is_over || self.is_expired(setup, now)
    }

    /// Whether a packet of the backend answers a connection that the client made to it without the Service, by the ports of
    /// one that is over.
    fn is_of_another(&self, look: &Look) -> bool {
        let answer = tcp_flags::SYN | tcp_flags::ACK;
        look.key.protocol == protocol::TCP && look.signs.flags & answer == answer && is_over(self.state)
    }

    /// Whether a packet of the client belongs to a TCP connection that shall be reset, as its backend has gone. A SYN begins
    /// another one.
    fn is_orphaned(&self, look: &Look, setup: &Setup) -> bool {
        self.resets && look.key.protocol == protocol::TCP && !look.signs.is_opening() && self.has_lost_backend(setup)
    }

    fn has_lost_backend(&self, setup: &Setup) -> bool {
        setup.backend(self.backend).is_none_or(|backend| backend.generation != self.generation)
    }
}

/// What the table has for a packet.
pub(super) enum Found {
    /// Nothing that holds.
    Nothing,
    /// An entry that is for another hook.
    Elsewhere,
    /// Its entry.
    Entry(Entry),
    /// The entry of a connection that shall be reset.
    Orphan(Entry),
}

/// Who has the tuple of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody, or a flow that has been idle for too long.
    Nobody,
    /// This very flow, by an earlier decision.
    Own,
    /// Another flow.
    Other(Urge),
}

/// How soon a flow gives its source port to one that needs it: of two, the greater one does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Urge {
    pub rank: Rank,
    age: u32,
}

/// From the one that keeps its port to the one that loses it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Living,
    Idle,
    Exchange,
    Pending,
    Exchanged,
    Stale,
    Over,
}

impl Rank {
    /// Whether it may keep nobody else from a port.
    pub fn yields(self) -> bool {
        self >= Self::Exchange
    }

    /// Under which name its eviction is counted.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Living | Self::Idle => "idle",
            Self::Exchange | Self::Exchanged => "exchange",
            Self::Pending | Self::Stale => "pending",
            Self::Over => "over",
        }
    }
}

/// The flow table. Entries of a pair may be lost one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows(pub BTreeMap<Tuple, Entry>);

impl Flows {
    /// The entry of a packet. Unless `is_trace`, notes what the packet means to the flow, and makes a lost peer again.
    pub(super) fn find(&mut self, look: &Look, setup: &Setup, now: Now, is_trace: bool) -> Found {
        let Some(&entry) = self.0.get(&look.key) else { return Found::Nothing };
        if !entry.is_at(look.door) {
            return if entry.is_left_alone(look.door, setup) { Found::Elsewhere } else { Found::Nothing };
        }
        if !entry.is_reply && entry.is_orphaned(look, setup) {
            return Found::Orphan(entry);
        }
        if entry.is_reply && entry.is_of_another(look) {
            if !is_trace {
                self.remove(look.key);
            }
            return Found::Nothing;
        }
        if entry.is_expired(setup, now.tick) || !entry.is_reply && entry.is_outdated(look, setup, now.tick) {
            return Found::Nothing;
        }
        if is_trace || self.follow(look, entry, setup, now) { Found::Entry(self.0[&look.key]) } else { Found::Nothing }
    }

    /// Notes a packet in its flow; false where its tuple of replies is another flow's by now.
    fn follow(&mut self, look: &Look, before: Entry, setup: &Setup, now: Now) -> bool {
        let signs = &look.signs;
        let is_new_tick = before.last_seen != now.tick;
        let is_lasting = is_new_tick && now.jiffy.wrapping_sub(before.born) >= 2 * setup.second;
        let peer_key = before.to.reversed();
        let peer_sequence = self.peer(look.key, &before).map_or(0, |peer| peer.sequence);
        let mut entry = Entry { last_seen: now.tick, ..before };
        let is_tcp = look.key.protocol == protocol::TCP;
        let is_half_open = before.state == FlowState::HALF_OPEN;
        let is_answer = entry.is_reply && before.state.is_pending() && !signs.has(tcp_flags::RST);
        let ends = Ends {
            is_reply: entry.is_reply,
            is_answered: before.is_answered,
            is_picked_up: before.is_picked_up,
            own_sequence: before.sequence,
            peer_sequence,
            is_lasting,
        };
        if may_mean_something(before.state, look.key.protocol, &ends, signs) {
            let meaning = meaning(before.state, look.key.protocol, &ends, signs);
            let advance = |entry: &mut Entry| {
                entry.state = meaning.map_or(entry.state, |meaning| meaning.after(entry.state));
                entry.is_answered |= is_answer;
            };
            advance(&mut entry);
            if let Some(peer) = self.peer_mut(look.key, &before) {
                advance(peer);
            }
        }
        // What the client must acknowledge; or its SYN, sent again.
        let is_first = is_answer || signs.is_opening() && !entry.is_reply;
        if is_tcp && is_half_open && is_first {
            entry.sequence = signs.sequence;
        }
        let timeout = setup.timeouts[before.state.index()];
        let is_due = is_new_tick && elapsed(now.tick, before.peer_seen) > refresh_ticks(timeout);
        let mut holds = true;
        if is_due {
            let is_taken = self.0.contains_key(&peer_key);
            if let Some(peer) = self.peer_mut(look.key, &before) {
                peer.last_seen = now.tick;
            } else if is_taken {
                holds = entry.is_reply;
            } else {
                self.0.insert(peer_key, Entry { peer_seen: now.tick, ..entry.peer(look.key) });
            }
            if holds {
                entry.peer_seen = now.tick;
            }
        }
        let ends_something = signs.has(tcp_flags::FIN) || signs.has(tcp_flags::RST);
        if holds && is_tcp && !ends_something && is_step(signs.sequence, entry.sequence) {
            entry.sequence = signs.sequence;
        }
        self.0.insert(look.key, entry);
        holds
    }

    /// The other direction's entry of one, if it is there.
    fn peer(&self, key: Tuple, entry: &Entry) -> Option<&Entry> {
        self.0.get(&entry.to.reversed()).filter(|peer| peer.to == key.reversed())
    }

    fn peer_mut(&mut self, key: Tuple, entry: &Entry) -> Option<&mut Entry> {
        self.0.get_mut(&entry.to.reversed()).filter(|peer| peer.to == key.reversed())
    }

    /// Notes the way that was found for an entry.
    pub(super) fn note_next_hop(&mut self, key: Tuple, found: &Entry) {
        if let Some(entry) = self.0.get_mut(&key) {
            entry.next_hop = found.next_hop;
        }
    }

    /// Writes both entries of a flow that was decided. What is left of an earlier decision goes, unless it is the reply's entry under
    /// the same tuple: a segment in mid-connection goes on where that one is. Gives the original's entry,
    /// and whether the flow begins with this packet.
    pub(super) fn begin(&mut self, key: Tuple, mut entry: Entry, signs: &Signs) -> (Entry, bool) {
        let reply = entry.to.reversed();
        let own = self.0.get(&reply).copied().filter(|holder| holder.to == key.reversed());
        let old = self.0.get(&key).copied();
        if own.is_none() || old.is_some_and(|old| old.to != entry.to) {
            self.remove(key);
        }
        let peer = match own {
            None => {
                self.remove(reply);
                entry.peer(key)
            }
            Some(own) => {
                let Entry { backend, generation, last_seen, is_snat, is_nets, resets, .. } = entry;
                let own = Entry { backend, generation, last_seen, is_snat, is_nets, resets, ..own };
                let next_hop = own.next_hop.filter(|_| own.is_forwarded());
                let own = Entry { next_hop, ..own };
                if signs.is_opening() {
                    let (state, born) = (entry.state, entry.born);
                    Entry { state, born, sequence: 0, is_answered: false, is_picked_up: false, ..own }
                } else {
                    (entry.state, entry.born) = (own.state, own.born);
                    (entry.is_answered, entry.is_picked_up) = (own.is_answered, own.is_picked_up);
                    own
                }
            }
        };
        self.0.insert(reply, peer);
        self.0.insert(key, entry);
        (entry, own.is_none() || signs.is_opening() || key.protocol == protocol::UDP)
    }

    /// Removes a flow, both halves.
    fn remove(&mut self, key: Tuple) {
        let Some(entry) = self.0.remove(&key) else { return };
        if self.peer(key, &entry).is_some() {
            self.0.remove(&entry.to.reversed());
        }
    }

    /// Who has the tuple of a reply that the flow of the client's `key` would like to have.
    pub(super) fn holder(&self, reply: Tuple, key: Tuple, setup: &Setup, now: Now) -> Holder {
        match self.0.get(&reply) {
            None => Holder::Nobody,
            Some(holder) if holder.to == key.reversed() => Holder::Own,
            Some(holder) if holder.is_expired(setup, now.tick) => Holder::Nobody,
            Some(holder) => Holder::Other(urge(holder, setup, now)),
        }
    }
}

/// See [`Urge`].
fn urge(holder: &Entry, setup: &Setup, now: Now) -> Urge {
    const MOST: u32 = (1 << 24) - 1;
    let (idle, age) = (elapsed(now.tick, holder.last_seen), now.jiffy.wrapping_sub(holder.born));
    let is_a_second_old = age >= setup.second;
    let timeout = setup.timeouts[holder.state.index()];
    // For so long one direction may not have heard of the other.
    let silence = refresh_ticks(timeout) + 1;
    let is_alive = idle <= if holder.is_reply { silence } else { 0 };
    let (rank, age) = match holder.state {
        // One way, and alive.
        FlowState::UNREPLIED if is_a_second_old && is_alive => (Rank::Exchange, 0),
        FlowState::HALF_OPEN | FlowState::UNREPLIED if is_a_second_old => (Rank::Stale, age),
        FlowState::HALF_OPEN | FlowState::UNREPLIED => (Rank::Pending, age),
        FlowState::CLOSING if idle >= 1 => (Rank::Over, idle),
        // The RST may have been ignored.
        FlowState::RESET if idle >= 4 => (Rank::Over, idle),
        FlowState::REPLIED if idle >= 1 => (Rank::Exchanged, idle),
        FlowState::REPLIED => (Rank::Exchange, idle),
        _ if idle > timeout / 8 + silence => (Rank::Idle, idle),
        _ => (Rank::Living, idle),
    };
    Urge { rank, age: age.min(MOST) }
}
