// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One direction of a flow as it stands in the table: the conntrack entry of this load balancer, in one or two cache lines.
//!
//! Both sides see it: the programs as 64-bit words in memory that other CPUs write ([`word`]), the agent and the slow path as a
//! plain copy ([`Entry`]).

use bytemuck::{Pod, Zeroable};

use super::{Direction, FlowKey, FlowState, flow_flags};
use crate::{
    address::{Family, V4, V6},
    bits::plain_bits,
    checksum::{Delta, negate},
};

/// The words of an entry, by index. `F::PAIR_WORDS` is 1 for IPv4 and 4 for IPv6.
pub mod word {
    use crate::address::Family;

    /// [`super::Control`].
    pub const CONTROL: usize = 0;
    /// The first word of the key: both addresses.
    pub const ADDRESSES: usize = 1;

    /// Ports, protocol, class, index of the next hop.
    #[inline(always)]
    #[must_use]
    pub const fn ports<F: Family>() -> usize {
        ADDRESSES + F::PAIR_WORDS
    }

    /// The first word of the new addresses.
    #[inline(always)]
    #[must_use]
    pub const fn new_addresses<F: Family>() -> usize {
        ports::<F>() + 1
    }

    /// New ports, and both checksum differences.
    #[inline(always)]
    #[must_use]
    pub const fn new_ports<F: Family>() -> usize {
        new_addresses::<F>() + F::PAIR_WORDS
    }

    /// Backend and its generation.
    #[inline(always)]
    #[must_use]
    pub const fn backend<F: Family>() -> usize {
        new_ports::<F>() + 1
    }

    /// Sequence number, and index of the peer's slot.
    #[inline(always)]
    #[must_use]
    pub const fn sequence<F: Family>() -> usize {
        backend::<F>() + 1
    }

    /// When the flow began, and when the peer was last seen to.
    #[inline(always)]
    #[must_use]
    pub const fn times<F: Family>() -> usize {
        sequence::<F>() + 1
    }

    /// Number of words with a meaning.
    #[inline(always)]
    #[must_use]
    pub const fn count<F: Family>() -> usize {
        times::<F>() + 1
    }

    /// Number of words from one entry to the next.
    #[inline(always)]
    #[must_use]
    pub const fn stride<F: Family>() -> usize {
        size_of::<super::Entry<F>>() / 8
    }
}

/// The first word of an entry, which says whether it is one.
///
/// ```text
///  bits  0..32  tick of the last packet of this direction (stored alone, without a lock)
///       32..40  [`FlowState`]
///       40..48  [`flow_flags`], of which LIVE and CLAIMED say what the slot is: neither, and it is empty
///       48..62  counts how often the slot was claimed: a reader who finds another number has read two entries
///       62..64  zero, which the programs rely on
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Control(u64);

plain_bits!(Control);

impl Control {
    const STATE_SHIFT: u32 = 32;
    const FLAGS_SHIFT: u32 = 40;
    const CLAIMS_SHIFT: u32 = 48;
    const CLAIMS_MASK: u64 = 0x3fff << Self::CLAIMS_SHIFT;
    const KIND_MASK: u64 = ((flow_flags::LIVE | flow_flags::CLAIMED) as u64) << Self::FLAGS_SHIFT;

    /// An empty slot that was never claimed.
    pub const NONE: Self = Self(0);

    /// Tick of the last packet of this direction.
    #[inline(always)]
    #[must_use]
    pub const fn last_seen(self) -> u32 {
        self.0 as u32
    }

    /// State of the flow.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> FlowState {
        FlowState::from_bits((self.0 >> Self::STATE_SHIFT) as u8)
    }

    /// [`flow_flags`].
    #[inline(always)]
    #[must_use]
    pub const fn flags(self) -> u8 {
        (self.0 >> Self::FLAGS_SHIFT) as u8
    }

    /// 1 where the slot is nobody's, else 0; without a branch.
    #[inline(always)]
    #[must_use]
    pub const fn emptiness(self) -> u32 {
        const { assert!(Self::KIND_MASK == 3 << 46) };
        (!(self.0 >> 46 | self.0 >> 47) & 1) as u32
    }

    /// Whether readers may use the entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.flags() & flow_flags::LIVE != 0
    }

    /// Whether somebody is writing the entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        self.flags() & flow_flags::CLAIMED != 0
    }

    /// Whether the slot is free.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 & Self::KIND_MASK == 0
    }

    /// Whether what was read between these two looks is one entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_same_entry(self, later: Self) -> bool {
        (self.0 ^ later.0) & (Self::CLAIMS_MASK | Self::KIND_MASK) == 0
    }

    /// The next claim on the slot.
    #[inline(always)]
    #[must_use]
    pub const fn claimed(self) -> Self {
        let claims = self.0.wrapping_add(1 << Self::CLAIMS_SHIFT) & Self::CLAIMS_MASK;
        Self(claims | (flow_flags::CLAIMED as u64) << Self::FLAGS_SHIFT)
    }

    /// The slot given back.
    #[inline(always)]
    #[must_use]
    pub const fn released(self) -> Self {
        Self(self.0.wrapping_add(1 << Self::CLAIMS_SHIFT) & Self::CLAIMS_MASK)
    }

    /// The claimed slot's entry, for readers to use.
    #[inline(always)]
    #[must_use]
    pub const fn published(self, state: FlowState, flags: u8, last_seen: u32) -> Self {
        let flags = flags & !flow_flags::CLAIMED | flow_flags::LIVE;
        let claims = self.0 & Self::CLAIMS_MASK;
        Self(
            claims
                | (flags as u64) << Self::FLAGS_SHIFT
                | (state.to_bits() as u64) << Self::STATE_SHIFT
                | last_seen as u64,
        )
    }

    /// The same entry in another state, with these flags.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, state: FlowState, flags: u8) -> Self {
        let others = self.0 & !(0xffff << Self::STATE_SHIFT);
        Self(others | (state.to_bits() as u64) << Self::STATE_SHIFT | (flags as u64) << Self::FLAGS_SHIFT)
    }
}

/// One direction of a flow: a key and a complete instruction for rewriting.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<F: Family> {
    /// Whether it is an entry, and where its flow is in its life.
    pub control: Control,
    /// Source address as the packet arrives.
    pub src: F::Addr,
    /// Destination address as the packet arrives.
    pub dst: F::Addr,
    /// Source port as the packet arrives, network byte order.
    pub sport_be: u16,
    /// Destination port as the packet arrives, network byte order.
    pub dport_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Whose flow it is, as far as shares of the table go: a hash of the device or the source network.
    pub class: u8,
    /// Index into the table of next hops ([`super::next_hop`]), for packets that are sent on from here.
    pub next_hop: u16,
    /// Source address to write.
    pub new_src: F::Addr,
    /// Destination address to write.
    pub new_dst: F::Addr,
    /// Source port to write, network byte order.
    pub new_sport_be: u16,
    /// Destination port to write, network byte order.
    pub new_dport_be: u16,
    /// Checksum difference of both addresses.
    pub address_delta: u16,
    /// Checksum difference of both ports.
    pub port_delta: u16,
    /// Index of the backend.
    pub backend: u32,
    /// Generation of the backend when this was decided; another one now makes the entry stale.
    pub generation: u32,
    /// Where in its stream this direction was seen last, to within a step ([`super::is_step`]); 0 where that is not known. Until
    /// the flow is established, of the reply: the number that the client must acknowledge. TCP only, host byte order.
    pub sequence: u32,
    /// Index of the slot where the other direction was written. A hint: it may stand elsewhere, or nowhere, by now.
    pub peer: u32,
    /// When the flow began, in jiffies.
    pub born: u32,
    /// Tick in which the other direction's entry was last seen to.
    pub peer_seen: u32,
    /// Zero: to whole cache lines.
    pub pad: F::LinePad,
}

impl<F: Family> Entry<F> {
    /// The key, as a packet bears it.
    #[inline(always)]
    #[must_use]
    pub fn key(&self) -> FlowKey<F> {
        FlowKey::new(self.src, self.dst, self.sport_be, self.dport_be, self.protocol)
    }

    /// [`flow_flags`].
    #[inline(always)]
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.control.flags()
    }

    /// Which way the packets go that this entry rewrites.
    #[inline(always)]
    #[must_use]
    pub fn direction(&self) -> Direction {
        flow_flags::direction(self.flags())
    }

    /// The key of the other direction's entry.
    #[inline(always)]
    #[must_use]
    pub fn peer_key(&self) -> FlowKey<F> {
        FlowKey::new(self.new_dst, self.new_src, self.new_dport_be, self.new_sport_be, self.protocol)
    }

    /// Sets both checksum differences.
    #[inline(always)]
    pub fn set_deltas(&mut self) {
        self.address_delta = Delta::ZERO
            .replace_address::<F>(&self.src, &self.new_src)
            .replace_address::<F>(&self.dst, &self.new_dst)
            .fold();
        self.port_delta =
            Delta::ZERO.replace16(self.sport_be, self.new_sport_be).replace16(self.dport_be, self.new_dport_be).fold();
    }

    /// Writes the other direction's entry: the same flow, read backwards. Its next hop, its peer's slot and its place in the
    /// stream are not known yet.
    #[inline(always)]
    pub fn write_peer(&self, peer: &mut Self) {
        peer.control = self.control.with(self.control.state(), self.flags() ^ flow_flags::REPLY);
        peer.src = self.new_dst;
        peer.dst = self.new_src;
        peer.sport_be = self.new_dport_be;
        peer.dport_be = self.new_sport_be;
        peer.protocol = self.protocol;
        peer.class = self.class;
        peer.next_hop = 0;
        peer.new_src = self.dst;
        peer.new_dst = self.src;
        peer.new_sport_be = self.dport_be;
        peer.new_dport_be = self.sport_be;
        peer.address_delta = negate(self.address_delta);
        peer.port_delta = negate(self.port_delta);
        peer.backend = self.backend;
        peer.generation = self.generation;
        peer.sequence = 0;
        peer.peer = 0;
        peer.born = self.born;
        peer.peer_seen = self.peer_seen;
        peer.pad = F::LinePad::zeroed();
    }
}

/// `Pod` can't be derived for generic structs: it is promised here for the two that exist, next to the proof.
#[expect(unsafe_code, reason = "bytemuck can't derive for generics")]
mod pod {
    use super::{Entry, Family, Pod, V4, V6, Zeroable, word};

    /// The size of an entry is the sum of its fields' sizes, and whole cache lines: there is no padding but what is named so.
    const fn is_packed<F: Family>() -> bool {
        let fields = 4 * size_of::<F::Addr>() + 48 + size_of::<F::LinePad>();
        size_of::<Entry<F>>() == fields && fields % 64 == 0 && word::count::<F>() <= word::stride::<F>()
    }
    const _: () = assert!(is_packed::<V4>() && is_packed::<V6>());
    const _: () = assert!(core::mem::offset_of!(Entry<V4>, backend) == 8 * word::backend::<V4>());
    const _: () = assert!(core::mem::offset_of!(Entry<V6>, born) == 8 * word::times::<V6>());

    // SAFETY: all fields are Zeroable.
    unsafe impl<F: Family> Zeroable for Entry<F> {}
    // SAFETY: repr(C), all fields are Pod, and the assertion above leaves no room for padding.
    unsafe impl Pod for Entry<V4> {}
    // SAFETY: as above.
    unsafe impl Pod for Entry<V6> {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{checksum::apply, flow::protocol};

    proptest! {
        #[test]
        fn the_peer_of_the_peer_is_the_flow(src: u32, dst: u32, ports: (u16, u16), to: (u32, u32, u16, u16), flags in 0..8_u8) {
            let mut original: Entry<V4> = Zeroable::zeroed();
            (original.src, original.dst, original.sport_be, original.dport_be) = (src, dst, ports.0, ports.1);
            (original.new_src, original.new_dst, original.new_sport_be, original.new_dport_be) = to;
            original.protocol = protocol::TCP;
            original.set_deltas();
            original.control = original.control.with(FlowState::HALF_OPEN, flags & !flow_flags::REPLY);
            let (mut peer, mut again) = (original, original);
            original.write_peer(&mut peer);
            prop_assert_eq!((original.peer_key(), peer.peer_key()), (peer.key(), original.key()));
            prop_assert_eq!(peer.direction(), Direction::Reply);
            peer.write_peer(&mut again);
            prop_assert_eq!(again, original);
        }

        #[test]
        fn a_rewritten_checksum_is_the_computed_one(src: u32, dst: u32, ports: (u16, u16), to: (u32, u32, u16, u16)) {
            let mut entry: Entry<V4> = Zeroable::zeroed();
            (entry.src, entry.dst, entry.sport_be, entry.dport_be) = (src, dst, ports.0, ports.1);
            (entry.new_src, entry.new_dst, entry.new_sport_be, entry.new_dport_be) = to;
            entry.set_deltas();
            let sum = |src: u32, dst: u32, ports: [u16; 2]| {
                let words = [src as u16, (src >> 16) as u16, dst as u16, (dst >> 16) as u16, ports[0], ports[1], 0x4500];
                crate::checksum::finish(words.iter().map(|&word| u64::from(word)).sum())
            };
            let before = sum(src, dst, [ports.0, ports.1]);
            let after = sum(to.0, to.1, [to.2, to.3]);
            prop_assert_eq!(apply(apply(before, entry.address_delta.into()), entry.port_delta.into()), after);
        }
    }

    #[test]
    fn a_slot_is_empty_claimed_or_live() {
        let empty = Control::zeroed();
        assert!(empty.is_empty() && !empty.is_live() && !empty.is_claimed());
        let claimed = empty.claimed();
        assert!(claimed.is_claimed() && !claimed.is_live() && !claimed.is_empty());
        let live = claimed.published(FlowState::STREAM, flow_flags::SNAT, 77);
        assert!(live.is_live() && !live.is_claimed());
        assert_eq!(
            (live.state(), live.flags(), live.last_seen()),
            (FlowState::STREAM, flow_flags::SNAT | flow_flags::LIVE, 77)
        );
        assert!(!claimed.is_same_entry(live) && live.is_same_entry(live.with(FlowState::STREAM, live.flags())));
        let released = live.released();
        assert!(released.is_empty() && !released.is_same_entry(live));
        let mut control = released;
        for _ in 0..40_000 {
            control = control.claimed();
            assert_eq!(control.to_bits() >> 62, 0);
        }
    }
}
