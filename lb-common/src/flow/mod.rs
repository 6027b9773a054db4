// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Flows: what conntrack is to netfilter. A 5-tuple as the packet arrives, and the complete instruction for rewriting it.
//!
//! Every translated flow has two entries, one per direction, and each holds all that is needed to make the other
//! ([`Entry::write_peer`]).
//!
//! ```text
//!                       key (as it arrives)       value (as it leaves)
//!  Original  client:c -> frontend:f               client|node:c' -> backend:b
//!  Reply     backend:b -> client|node:c'          frontend:f -> client:c
//! ```
//!
//! [`state`] is a flow's life, [`entry`] its layout, [`table`] where it stands and who yields to whom, [`next_hop`] where its packets go.

mod entry;
pub mod next_hop;
mod state;
pub mod table;

pub use self::{
    entry::{Control, Entry, word},
    state::{Event, FlowState, Known, STREAM_SECS, Seen, event, is_step},
    table::Evicted,
};
use crate::{address::Family, hash::siphash13};

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

    /// Whether a segment with these flags opens a connection: a SYN that answers none.
    #[inline(always)]
    #[must_use]
    pub const fn is_opening(flags: u8) -> bool {
        flags & (SYN | ACK) == SYN
    }

    /// Whether it is the answer to such a one.
    #[inline(always)]
    #[must_use]
    pub const fn is_answer(flags: u8) -> bool {
        flags & (SYN | ACK) == SYN | ACK
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Zero: keys are copied by whole words, of which the verifier wants every byte written.
    pub pad: [u8; 3],
}

impl<F: Family> FlowKey<F> {
    /// The key of a packet.
    #[inline(always)]
    #[must_use]
    pub fn new(src: F::Addr, dst: F::Addr, sport_be: u16, dport_be: u16, protocol: u8) -> Self {
        Self { src, dst, sport_be, dport_be, protocol, pad: [0; 3] }
    }

    /// Whether both are the same.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let mut differences = self.ports_and_protocol() ^ other.ports_and_protocol();
        let mut index = 0;
        while index < F::PAIR_WORDS {
            differences |= F::pair_word(&self.src, &self.dst, index) ^ F::pair_word(&other.src, &other.dst, index);
            index += 1;
        }
        differences == 0
    }

    /// Ports and protocol in one word, for hashing.
    #[inline(always)]
    #[must_use]
    pub fn ports_and_protocol(&self) -> u64 {
        u64::from(self.sport_be) | (u64::from(self.dport_be) << 16) | (u64::from(self.protocol) << 32)
    }

    /// The keyed hash of a flow, from which Maglev takes its slot. See [`crate::hash`].
    #[inline(always)]
    #[must_use]
    pub fn keyed_hash(&self, seed: &[u64; 2]) -> u64 {
        if F::IS_V4 {
            return siphash13(seed, &[F::pair_word(&self.src, &self.dst, 0), self.ports_and_protocol()]);
        }
        let pair = |index| F::pair_word(&self.src, &self.dst, index);
        siphash13(seed, &[pair(0), pair(1), pair(2), pair(3), self.ports_and_protocol()])
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

/// Where packets meet a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// They arrive by a device.
    Ingress,
    /// They leave by one.
    Egress,
    /// They leave by the net's device, or by the loopback device.
    Net,
}

/// Bits of [`Control::flags`].
pub mod flow_flags {
    use super::{Direction, Hook};

    /// This entry is the reply's.
    pub const REPLY: u8 = 1;
    /// The client's source address is translated: both directions are forwarded by route at the ingress where they
    /// arrive, and never handed to the local stack, which would drop a packet that claims to come from itself.
    pub const SNAT: u8 = 2;
    /// TCP is reset when its backend goes: each packet of the client checks the backend's generation.
    pub const RESET: u8 = 4;
    /// The backend has answered.
    pub const ANSWERED: u8 = 8;
    /// The flow was picked up in mid-connection.
    pub const PICKED_UP: u8 = 16;
    /// The flow is the net's: its client's packets are translated there, and no door must do so before. Both directions' packets
    /// go on as ones that arrive by the net's device; with [`SNAT`] those to the backend, which is elsewhere, are forwarded, and its
    /// replies arrive at a door.
    pub const NET: u8 = 32;
    /// The slot is being written.
    pub const CLAIMED: u8 = 64;
    /// The slot holds an entry.
    pub const LIVE: u8 = 128;

    /// Which way the packets of an entry with these flags go.
    #[inline(always)]
    #[must_use]
    pub const fn direction(flags: u8) -> Direction {
        if flags & REPLY == 0 { Direction::Original } else { Direction::Reply }
    }

    /// Whether packets are sent on by route at once (both directions of a source-translated flow).
    #[inline(always)]
    #[must_use]
    pub const fn is_forwarded(flags: u8) -> bool {
        flags & SNAT != 0
    }

    /// Of the net's flows, those to backends elsewhere.
    pub const NETS_FORWARDED: u8 = NET | SNAT;
    const NETS_REPLY: u8 = NET | REPLY;

    /// Where packets of an entry with these flags are translated.
    #[inline(always)]
    #[must_use]
    pub const fn hook(flags: u8) -> Hook {
        match flags & (REPLY | SNAT | NET) {
            NET | NETS_FORWARDED | NETS_REPLY => Hook::Net,
            REPLY => Hook::Egress,
            _ => Hook::Ingress,
        }
    }

    /// Whether that is at a hook. All flags that the answer depends on are below bit 6, so that one bit of a constant is it: no
    /// branch in a packet's way.
    #[inline(always)]
    #[must_use]
    pub const fn is_at(flags: u8, at: Hook) -> bool {
        const fn entries_at(at: Hook) -> u64 {
            let (mut entries, mut flags) = (0, 0);
            while flags < 64 {
                entries |= (hook(flags) as u64 == at as u64) as u64 * (1 << flags);
                flags += 1;
            }
            entries
        }
        const AT: [u64; 3] = [entries_at(Hook::Ingress), entries_at(Hook::Egress), entries_at(Hook::Net)];
        AT[at as usize] >> (flags & 63) & 1 != 0
    }

    /// Whether packets go on as ones that arrive by the net's device.
    #[inline(always)]
    #[must_use]
    pub const fn is_handed_to_net(flags: u8) -> bool {
        flags & NET != 0 && flags & (SNAT | REPLY) != SNAT
    }
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use siphasher::sip::SipHasher13;

    use super::*;
    use crate::address::{V4, V6};

    /// Nodes of different versions must send a client to the same backend.
    #[test]
    fn the_hash_of_a_flow_is_that_of_its_tuple_in_memory() {
        let seed = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let reference = |addresses: &[u8], ports: [u8; 4], protocol: u8| {
            let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
            hasher.write(addresses);
            hasher.write(&ports);
            hasher.write(&[protocol, 0, 0, 0]);
            hasher.finish()
        };
        let (v4, v6) = ([10, 0, 0, 1, 10, 96, 0, 10], core::array::from_fn::<u8, 32, _>(|index| 7 * index as u8));
        let ports = [0x9c, 0x40, 0x01, 0xbb];
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        let (sport_be, dport_be) = (40_000_u16.to_be(), 443_u16.to_be());
        let key = FlowKey::<V4>::new(word(&v4[..4]), word(&v4[4..]), sport_be, dport_be, protocol::TCP);
        assert_eq!(key.keyed_hash(&seed), reference(&v4, ports, 6));
        let words = |bytes: &[u8]| core::array::from_fn(|index| word(&bytes[4 * index..4 * index + 4]));
        let key = FlowKey::<V6>::new(words(&v6[..16]), words(&v6[16..]), sport_be, dport_be, protocol::UDP);
        assert_eq!(key.keyed_hash(&seed), reference(&v6, ports, 17));
    }

    #[test]
    fn each_entry_is_translated_at_one_hook() {
        use flow_flags::{ANSWERED, LIVE, NET, REPLY, RESET, SNAT, hook, is_at, is_handed_to_net};
        for (flags, at, is_handed) in [
            (0, Hook::Ingress, false),
            (REPLY, Hook::Egress, false),
            (SNAT, Hook::Ingress, false),
            (SNAT | REPLY, Hook::Ingress, false),
            (NET, Hook::Net, true),
            (NET | REPLY, Hook::Net, true),
            (NET | SNAT, Hook::Net, false),
            (NET | SNAT | REPLY, Hook::Ingress, true),
        ] {
            let flags = flags | LIVE | RESET | ANSWERED;
            assert_eq!((hook(flags), is_handed_to_net(flags)), (at, is_handed), "{flags:#b}");
            for other in [Hook::Ingress, Hook::Egress, Hook::Net] {
                assert_eq!(is_at(flags, other), other == at, "{flags:#b} {other:?}");
            }
        }
    }
}
