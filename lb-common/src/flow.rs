// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The flow table's key and value: a 5-tuple as the packet arrives, and the complete instruction for rewriting it.
//!
//! Every translated flow has two entries, one per direction, and each holds all that is needed to make the other
//! ([`Flow::write_peer`]): the tables are LRUs, so either may vanish at any time.
//!
//! New pairs stand in a small table of their own, the *young* flows, and move to the large one when the client speaks again
//! after an answer: a flood of first packets evicts but its like.
//!
//! ```text
//!                       key (as it arrives)       value (as it leaves)
//!  Original  client:c -> frontend:f               client|node:c' -> backend:b
//!  Reply     backend:b -> client|node:c'          frontend:f -> client:c
//! ```

use bytemuck::{Pod, Zeroable};

use crate::{
    address::{Family, V4, V6},
    checksum::{Delta, negate},
    hash::{join, siphash13},
};

/// IP protocol numbers (IANA).
pub mod protocol {
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// Flag bits in the fourteenth byte of the TCP header (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// Chunk types of SCTP (RFC 9260 section 3.2), as far as they begin or end an association.
pub mod sctp_chunk {
    use super::tcp_flags;

    /// The first of an association.
    pub const INIT: u8 = 1;
    /// It is over at once.
    pub const ABORT: u8 = 6;
    /// The last of an association.
    pub const SHUTDOWN_COMPLETE: u8 = 14;

    /// What TCP would say in place of a packet's first chunk: so that one state machine serves both. There is no half of an
    /// association, so nothing is a FIN.
    #[inline(always)]
    #[must_use]
    pub const fn flags(kind: u8) -> u8 {
        match kind {
            INIT => tcp_flags::SYN,
            ABORT | SHUTDOWN_COMPLETE => tcp_flags::RST,
            _ => tcp_flags::ACK,
        }
    }
}

/// A 5-tuple as a packet carries it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port, network byte order.
    pub sport_be: u16,
    /// Destination port, network byte order.
    pub dport_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero: hash maps compare padding too.
    pub pad: [u8; 3],
}

impl<F: Family> FlowKey<F> {
    /// The key of a packet.
    #[inline(always)]
    #[must_use]
    pub fn new(src: F::Addr, dst: F::Addr, sport_be: u16, dport_be: u16, protocol: u8) -> Self {
        Self { src, dst, sport_be, dport_be, protocol, pad: [0; 3] }
    }

    /// The keyed hash of a flow, from which Maglev takes its slot.
    #[inline(always)]
    #[must_use]
    pub fn keyed_hash(&self, seed: &[u64; 2]) -> u64 {
        let (src, dst) = (F::first_words(&self.src), F::first_words(&self.dst));
        if F::IS_V4 {
            return siphash13(seed, &[join(src[0], dst[0]), self.ports_and_protocol()]);
        }
        let (src, dst) = ([join(src[0], src[1]), join(src[2], src[3])], [join(dst[0], dst[1]), join(dst[2], dst[3])]);
        siphash13(seed, &[src[0], src[1], dst[0], dst[1], self.ports_and_protocol()])
    }

    #[inline(always)]
    fn ports_and_protocol(&self) -> u64 {
        u64::from(self.sport_be) | (u64::from(self.dport_be) << 16) | (u64::from(self.protocol) << 32)
    }
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the frontend.
    Original,
    /// From the backend to the client.
    Reply,
}

/// Where a flow is in its life. A newtype and not an enum: it stands in a map value, where any byte may be read.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowState(u8);

impl FlowState {
    /// TCP: a SYN was seen, and no later segment of the client.
    pub const HALF_OPEN: Self = Self(0);
    /// TCP: the client acknowledged.
    pub const ESTABLISHED: Self = Self(1);
    /// TCP: the client has sent its FIN.
    pub const FIN_ORIGINAL: Self = Self(2);
    /// TCP: the backend has sent its FIN.
    pub const FIN_REPLY: Self = Self(3);
    /// TCP: both FINs: a SYN on this tuple is a new connection.
    pub const CLOSING: Self = Self(4);
    /// UDP: no reply yet.
    pub const UNREPLIED: Self = Self(5);
    /// UDP: replied.
    pub const REPLIED: Self = Self(6);
    /// TCP: an RST, which may be one that its receiver ignores: it may be forged, or late. A SYN is a new connection, but any
    /// other segment shows that the old one goes on.
    pub const RESET: Self = Self(7);
    /// Number of states, and of time-outs in the configuration.
    pub const COUNT: usize = 8;

    /// As a plain number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// From [`FlowState::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The state of a new flow.
    #[inline(always)]
    #[must_use]
    pub const fn first(protocol: u8, flags: u8) -> Self {
        if protocol == protocol::UDP {
            Self::UNREPLIED
        } else if flags & tcp_flags::RST != 0 {
            Self::CLOSING
        } else if flags & tcp_flags::SYN != 0 {
            Self::HALF_OPEN
        } else {
            // Decided anew in mid-connection, after the entry was lost.
            Self::ESTABLISHED
        }
    }

    /// The state after a packet. `flags` are TCP's, or those that mean the same for SCTP ([`sctp_chunk::flags`]); UDP has none.
    ///
    /// ```text
    ///  HALF_OPEN --ACK--> ESTABLISHED --FIN--> FIN_ORIGINAL | FIN_REPLY --other FIN--> CLOSING
    ///  UNREPLIED --reply--> REPLIED            any other TCP state --RST--> RESET --ACK--> ESTABLISHED
    /// ```
    #[inline(always)]
    #[must_use]
    pub const fn next(self, direction: Direction, protocol: u8, flags: u8) -> Self {
        let original = matches!(direction, Direction::Original);
        if protocol == protocol::UDP {
            return if original { self } else { Self::REPLIED };
        }
        if flags & tcp_flags::RST != 0 {
            // What ends an SCTP association bears its secret tag.
            let ends = matches!(self, Self::CLOSING) || protocol == protocol::SCTP;
            return if ends { Self::CLOSING } else { Self::RESET };
        }
        if flags & tcp_flags::FIN != 0 {
            return match (self, original) {
                (Self::CLOSING, _) | (Self::FIN_REPLY, true) | (Self::FIN_ORIGINAL, false) => Self::CLOSING,
                (_, true) => Self::FIN_ORIGINAL,
                (_, false) => Self::FIN_REPLY,
            };
        }
        match self {
            Self::HALF_OPEN if original && flags & tcp_flags::SYN == 0 => Self::ESTABLISHED,
            Self::RESET if flags & tcp_flags::SYN == 0 => Self::ESTABLISHED,
            other => other,
        }
    }

    /// Whether a SYN begins another connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::CLOSING | Self::RESET)
    }

    /// Index into [`crate::config::Config::timeouts`]; always below [`FlowState::COUNT`].
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        let index = self.0 as usize;
        if index < Self::COUNT { index } else { 0 }
    }

    /// The name that `get flows` shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HALF_OPEN => "half-open",
            Self::ESTABLISHED => "established",
            Self::FIN_ORIGINAL => "fin-original",
            Self::FIN_REPLY => "fin-reply",
            Self::CLOSING => "closing",
            Self::UNREPLIED => "unreplied",
            Self::REPLIED => "replied",
            Self::RESET => "reset",
            Self(_) => "invalid",
        }
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// This entry is the reply's.
    pub const REPLY: u8 = 1;
    /// The client's source address is translated: both directions are forwarded by route at the ingress where they
    /// arrive, and never handed to the local stack, which would drop a packet that claims to come from itself.
    pub const SNAT: u8 = 2;
    /// TCP is reset when its backend goes: each packet of the client checks the backend's generation.
    pub const RESET: u8 = 4;
    /// The backend has answered. Set while the pair is among the young flows: it grows up when the client then speaks again.
    pub const ANSWERED: u8 = 8;
}

/// A complete rewrite instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<F: Family> {
    /// Source address to write.
    pub src: F::Addr,
    /// Destination address to write.
    pub dst: F::Addr,
    /// Source port to write, network byte order.
    pub sport_be: u16,
    /// Destination port to write, network byte order.
    pub dport_be: u16,
    /// Checksum difference of both addresses.
    pub address_delta: u16,
    /// Checksum difference of both ports.
    pub port_delta: u16,
    /// Index of the backend.
    pub backend: u32,
    /// Generation of the backend when this was decided; another one now makes the entry stale.
    pub generation: u32,
    /// Device of the cached next hop; 0 is none.
    pub ifindex: u32,
    /// [`crate::config::Config::next_hop_generation`] when the next hop was found; another one makes it stale.
    pub next_hop_generation: u32,
    /// The cached next hop's Ethernet address and the sending device's, as they stand at the start of a frame.
    pub macs: [u32; 3],
    /// Time of the last packet, within a tick (see [`crate::config`]).
    pub last_seen: u32,
    /// State of the flow, kept alike in both entries.
    pub state: FlowState,
    /// [`flow_flags`].
    pub flags: u8,
    /// MTU of the cached next hop's way; 0 where it is not known.
    pub mtu: u16,
}

impl<F: Family> Flow<F> {
    /// Which way the packets go that this entry rewrites.
    #[inline(always)]
    #[must_use]
    pub fn direction(&self) -> Direction {
        if self.flags & flow_flags::REPLY == 0 { Direction::Original } else { Direction::Reply }
    }

    /// Whether packets are sent on by route at once (both directions of a source-translated flow).
    #[inline(always)]
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.flags & flow_flags::SNAT != 0
    }

    /// Whether the entry applies where packets leave towards the client's side, not where they arrive.
    #[inline(always)]
    #[must_use]
    pub fn is_at_egress(&self) -> bool {
        self.flags & (flow_flags::REPLY | flow_flags::SNAT) == flow_flags::REPLY
    }

    /// Whether `key` arrives as the reply of what this entry, found under `own`, sends out.
    #[inline(always)]
    #[must_use]
    pub fn is_peer_key(&self, own: &FlowKey<F>, key: &FlowKey<F>) -> bool {
        self.src == key.dst
            && self.dst == key.src
            && self.sport_be == key.dport_be
            && self.dport_be == key.sport_be
            && own.protocol == key.protocol
    }

    /// Sets both checksum differences from the key and the translated tuple.
    #[inline(always)]
    pub fn set_deltas(&mut self, key: &FlowKey<F>) {
        self.address_delta =
            Delta::ZERO.replace_address::<F>(&key.src, &self.src).replace_address::<F>(&key.dst, &self.dst).fold();
        self.port_delta =
            Delta::ZERO.replace16(key.sport_be, self.sport_be).replace16(key.dport_be, self.dport_be).fold();
    }

    /// Writes the key of the other direction's entry.
    #[inline(always)]
    pub fn write_peer_key(&self, key: &FlowKey<F>, peer: &mut FlowKey<F>) {
        peer.src = self.dst;
        peer.dst = self.src;
        peer.sport_be = self.dport_be;
        peer.dport_be = self.sport_be;
        peer.protocol = key.protocol;
        peer.pad = [0; 3];
    }

    /// Writes the other direction's entry: the same flow, read backwards. Its next hop is not known yet.
    #[inline(always)]
    pub fn write_peer(&self, key: &FlowKey<F>, peer: &mut Self) {
        peer.src = key.dst;
        peer.dst = key.src;
        peer.sport_be = key.dport_be;
        peer.dport_be = key.sport_be;
        peer.address_delta = negate(self.address_delta);
        peer.port_delta = negate(self.port_delta);
        peer.backend = self.backend;
        peer.generation = self.generation;
        peer.ifindex = 0;
        peer.next_hop_generation = 0;
        peer.macs = [0; 3];
        peer.last_seen = self.last_seen;
        peer.state = self.state;
        peer.flags = self.flags ^ flow_flags::REPLY;
        peer.mtu = 0;
    }
}

/// `Pod` can't be derived for generic structs: it is promised here for the two that exist, next to the proof.
#[expect(unsafe_code, reason = "bytemuck can't derive for generics")]
mod pod {
    use super::{Family, Flow, FlowKey, Pod, V4, V6, Zeroable};

    /// The size of an entry is the sum of its fields' sizes: there is no padding but the fields named so.
    const fn is_packed<F: Family>() -> bool {
        let addresses = 2 * size_of::<F::Addr>();
        size_of::<FlowKey<F>>() == addresses + 8 && size_of::<Flow<F>>() == addresses + 44
    }
    const _: () = assert!(is_packed::<V4>() && is_packed::<V6>());

    // SAFETY: all fields are Zeroable.
    unsafe impl<F: Family> Zeroable for FlowKey<F> {}
    // SAFETY: all fields are Zeroable.
    unsafe impl<F: Family> Zeroable for Flow<F> {}
    // SAFETY: repr(C), all fields are Pod, and the assertion above leaves no room for padding.
    unsafe impl Pod for FlowKey<V4> {}
    // SAFETY: as above.
    unsafe impl Pod for FlowKey<V6> {}
    // SAFETY: as above.
    unsafe impl Pod for Flow<V4> {}
    // SAFETY: as above.
    unsafe impl Pod for Flow<V6> {}
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;
    use crate::checksum::apply;

    /// Nodes of different versions must send a client to the same backend.
    #[test]
    fn the_hash_of_a_flow_is_that_of_its_key_in_memory() {
        let seed = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let reference = |bytes: &[u8]| {
            let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
            hasher.write(bytes);
            hasher.finish()
        };
        let v4 = FlowKey::<V4>::new(1, 2, 3, 4, protocol::TCP);
        let v6 = FlowKey::<V6>::new([1, 2, 3, 4], [5, 6, 7, 8], 9, 10, protocol::UDP);
        assert_eq!(v4.keyed_hash(&seed), reference(bytemuck::bytes_of(&v4)));
        assert_eq!(v6.keyed_hash(&seed), reference(bytemuck::bytes_of(&v6)));
    }

    fn flow(key: &FlowKey<V4>, to: (u32, u32, u16, u16)) -> Flow<V4> {
        let mut flow: Flow<V4> = Zeroable::zeroed();
        (flow.src, flow.dst, flow.sport_be, flow.dport_be) = to;
        flow.set_deltas(key);
        flow
    }

    proptest! {
        #[test]
        fn the_peer_of_the_peer_is_the_flow(src: u32, dst: u32, ports: (u16, u16), to: (u32, u32, u16, u16), flags in 0..8_u8) {
            let key = FlowKey::<V4>::new(src, dst, ports.0, ports.1, protocol::TCP);
            let mut original = flow(&key, to);
            original.flags = flags & !flow_flags::REPLY;
            let (mut peer_key, mut peer) = (key, original);
            original.write_peer_key(&key, &mut peer_key);
            original.write_peer(&key, &mut peer);
            prop_assert!(original.is_peer_key(&key, &peer_key));
            let (mut again_key, mut again) = (peer_key, peer);
            peer.write_peer_key(&peer_key, &mut again_key);
            peer.write_peer(&peer_key, &mut again);
            prop_assert_eq!(again_key, key);
            prop_assert_eq!(again, original);
        }

        #[test]
        fn deltas_there_and_back_restore_a_checksum(check in 1..0xffff_u16, src: u32, dst: u32, to: (u32, u32, u16, u16)) {
            let key = FlowKey::<V4>::new(src, dst, 1, 2, protocol::UDP);
            let original = flow(&key, to);
            let mut peer = original;
            original.write_peer(&key, &mut peer);
            let there = apply(apply(check, original.address_delta), original.port_delta);
            prop_assert_eq!(apply(apply(there, peer.address_delta), peer.port_delta), check);
        }
    }

    #[test]
    fn a_tcp_connection_lives_and_dies() {
        use Direction::{Original, Reply};
        use tcp_flags::{ACK, FIN, RST, SYN};
        let tcp = protocol::TCP;
        let mut state = FlowState::first(tcp, SYN);
        for (direction, flags, expected) in [
            (Reply, SYN | ACK, FlowState::HALF_OPEN),
            (Original, ACK, FlowState::ESTABLISHED),
            (Original, FIN | ACK, FlowState::FIN_ORIGINAL),
            (Reply, ACK, FlowState::FIN_ORIGINAL),
            (Reply, FIN | ACK, FlowState::CLOSING),
            (Original, ACK, FlowState::CLOSING),
        ] {
            state = state.next(direction, tcp, flags);
            assert_eq!(state, expected);
        }
        assert_eq!(state.next(Reply, tcp, RST), FlowState::CLOSING);
    }

    /// Who forges an RST need not know the sequence numbers, and the programs don't either.
    #[test]
    fn a_reset_that_is_ignored_ends_no_connection() {
        use Direction::{Original, Reply};
        use tcp_flags::{ACK, FIN, RST, SYN};
        let tcp = protocol::TCP;
        for direction in [Original, Reply] {
            let reset = FlowState::ESTABLISHED.next(direction, tcp, RST);
            assert_eq!(reset, FlowState::RESET);
            assert_eq!(reset.next(Reply, tcp, SYN | ACK), FlowState::RESET);
            assert_eq!(reset.next(direction, tcp, ACK), FlowState::ESTABLISHED);
            assert_eq!(reset.next(Original, tcp, FIN | ACK), FlowState::FIN_ORIGINAL);
        }
        // A connection that begins meanwhile is acknowledged after all.
        assert_eq!(FlowState::HALF_OPEN.next(Original, tcp, RST).next(Original, tcp, ACK), FlowState::ESTABLISHED);
    }

    #[test]
    fn an_sctp_association_lives_and_dies() {
        use Direction::{Original, Reply};
        let (sctp, flags) = (protocol::SCTP, sctp_chunk::flags);
        // INIT, INIT ACK, COOKIE ECHO, DATA, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
        let mut state = FlowState::first(sctp, flags(1));
        assert_eq!(state, FlowState::HALF_OPEN);
        for (direction, chunk, expected) in [
            (Reply, 2, FlowState::HALF_OPEN),
            (Original, 10, FlowState::ESTABLISHED),
            (Reply, 0, FlowState::ESTABLISHED),
            (Original, 7, FlowState::ESTABLISHED),
            (Reply, 8, FlowState::ESTABLISHED),
            (Original, 14, FlowState::CLOSING),
        ] {
            state = state.next(direction, sctp, flags(chunk));
            assert_eq!(state, expected);
        }
        assert_eq!(FlowState::ESTABLISHED.next(Reply, sctp, flags(6)), FlowState::CLOSING);
    }

    #[test]
    fn udp_is_replied_by_its_backend_only() {
        let udp = protocol::UDP;
        let state = FlowState::first(udp, 0);
        assert_eq!(state.next(Direction::Original, udp, 0), FlowState::UNREPLIED);
        assert_eq!(state.next(Direction::Reply, udp, 0), FlowState::REPLIED);
        assert_eq!(FlowState::REPLIED.next(Direction::Original, udp, 0), FlowState::REPLIED);
    }
}
