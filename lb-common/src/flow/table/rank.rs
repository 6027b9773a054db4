// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Who yields: how urgently the flow in a slot gives it up to a newcomer, by its state, its age and whose it is (early drop, as
//! conntrack's; here nobody who lives is dropped).

use super::super::{Control, FlowState, flow_flags};
use crate::{address::Family, clock::elapsed};

/// The time, in the units that the table uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// See [`crate::clock`].
    pub tick: u32,
    /// The kernel's clock tick.
    pub jiffy: u32,
    /// Jiffies in a second.
    pub second: u32,
}

/// What is known of a flow when somebody else wants its place or its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its control word.
    pub control: Control,
    /// [`Entry::born`].
    pub born: u32,
    /// Whether it is of the class of whoever wants the place: see [`Entry::class`].
    pub is_own_class: bool,
    /// Time-out of its state in ticks.
    pub timeout: u32,
}

/// Who yields first, from the last to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Rank(u32);

impl Rank {
    /// Does not yield: an established flow that was seen lately, or one that is being written.
    pub const NEVER: Self = Self(0);
    /// Established, not seen for an eighth of its time-out and as long as the other direction may have kept that to itself.
    pub const IDLE: Self = Self(1);
    /// UDP: an exchange of this very tick, or one way for a while.
    pub const EXCHANGE: Self = Self(2);
    /// Pending for less than a second: a handshake may be under way.
    pub const PENDING: Self = Self(3);
    /// The same, of the class of whoever wants the place: a flood displaces its like first.
    pub const PENDING_OWN: Self = Self(4);
    /// UDP: an exchange that is over, as far as can be told.
    pub const EXCHANGED: Self = Self(5);
    /// Pending for a second or longer.
    pub const STALE: Self = Self(6);
    /// The same, of the class of whoever wants the place.
    pub const STALE_OWN: Self = Self(7);
    /// A connection that is over.
    pub const OVER: Self = Self(8);
    /// Idle for longer than its state allows.
    pub const EXPIRED: Self = Self(9);
    /// Nobody's.
    pub const EMPTY: Self = Self(10);

    /// As a plain number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }
}

/// What sort of flow had to yield its place to a new one; index into the map of evictions. Empty places and expired flows are not
/// counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Evicted {
    /// A connection that was over.
    Over = 0,
    /// A pending flow: a SYN or a question without an answer.
    Pending = 1,
    /// UDP: a question that was answered.
    Exchange = 2,
    /// An established flow that was idle for an eighth of its time-out.
    Idle = 3,
}

impl Evicted {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 4] = [Self::Over, Self::Pending, Self::Exchange, Self::Idle];

    /// The label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Over => "over",
            Self::Pending => "pending",
            Self::Exchange => "exchange",
            Self::Idle => "idle",
        }
    }

    /// By the rank of the flow; `None` where that was nobody's.
    #[inline(always)]
    #[must_use]
    pub const fn of(rank: Rank) -> Option<Self> {
        match rank {
            Rank::OVER => Some(Self::Over),
            Rank::PENDING | Rank::PENDING_OWN | Rank::STALE | Rank::STALE_OWN => Some(Self::Pending),
            Rank::EXCHANGE | Rank::EXCHANGED => Some(Self::Exchange),
            Rank::IDLE => Some(Self::Idle),
            _ => None,
        }
    }
}

/// Ticks after which a connection that an RST has ended counts as over: the RST may have been ignored.
const RESET_TICKS: i64 = 4;
/// Bits of [`Holder::urge`] below the rank.
pub(super) const AGE_BITS: u32 = 24;

impl Holder {
    /// Rank, and age within it.
    #[inline(always)]
    #[must_use]
    pub fn rank(self, now: Now) -> (Rank, u32) {
        let control = self.control;
        if control.is_empty() {
            return (Rank::EMPTY, 0);
        }
        if control.is_claimed() {
            return (Rank::NEVER, 0);
        }
        let idle = elapsed(now.tick, control.last_seen());
        let age = if idle > 0 { idle as u32 } else { 0 };
        if is_expired(control, self.timeout, now.tick) {
            return (Rank::EXPIRED, age);
        }
        let state = control.state();
        if state.is_pending() {
            return self.rank_of_pending(now, age);
        }
        let rank = match state {
            FlowState::CLOSING if idle > 0 => Rank::OVER,
            FlowState::RESET if idle >= RESET_TICKS => Rank::OVER,
            FlowState::REPLIED if idle > 0 => Rank::EXCHANGED,
            FlowState::REPLIED => Rank::EXCHANGE,
            _ if idle > i64::from(self.timeout >> 3) + i64::from(self.ticks_of_silence()) => Rank::IDLE,
            _ => Rank::NEVER,
        };
        (rank, age)
    }

    /// For how long nothing may be heard of an entry although its flow's other direction goes on: see [`Entry::peer_seen`].
    #[inline(always)]
    fn ticks_of_silence(self) -> u32 {
        refresh_ticks(self.timeout) + 1
    }

    #[inline(always)]
    fn rank_of_pending(self, now: Now, idle: u32) -> (Rank, u32) {
        let age = now.jiffy.wrapping_sub(self.born);
        // Another CPU may have looked at its clock a moment later.
        let age = if age > u32::MAX - now.second { 0 } else { age };
        let is_stale = age >= now.second;
        let is_reply = self.control.flags() & flow_flags::REPLY != 0;
        let most_idle = if is_reply { self.ticks_of_silence() } else { 0 };
        if is_stale && self.control.state() == FlowState::UNREPLIED && idle <= most_idle {
            // One way, but alive: syslog, a stream of samples.
            return (Rank::EXCHANGE, 0);
        }
        let rank = match (is_stale, self.is_own_class) {
            (true, true) => Rank::STALE_OWN,
            (true, false) => Rank::STALE,
            (false, true) => Rank::PENDING_OWN,
            (false, false) => Rank::PENDING,
        };
        (rank, age)
    }

    /// The rank as one number with the age: of two, the larger yields. 0 is never.
    #[inline(always)]
    #[must_use]
    pub fn urge(self, now: Now) -> u32 {
        let (rank, age) = self.rank(now);
        let most = (1 << AGE_BITS) - 1;
        rank.0 << AGE_BITS | if age < most { age } else { most }
    }
}

/// The rank within [`Holder::urge`].
#[inline(always)]
#[must_use]
pub const fn rank_of(urge: u32) -> Rank {
    Rank(urge >> AGE_BITS)
}

/// Ticks after which a direction's packets see to the other direction's entry again ([`Entry::peer_seen`]): an eighth of the
/// time-out, but not so long that a lost entry would be missed for long.
#[inline(always)]
const fn refresh_ticks(timeout: u32) -> u32 {
    const MOST: u32 = 8;
    if timeout >> 3 < MOST { timeout >> 3 } else { MOST }
}

/// Whether a direction's packets are to see to the other direction's entry again.
#[inline(always)]
#[must_use]
pub const fn is_due(peer_seen: u32, timeout: u32, tick: u32) -> bool {
    elapsed(tick, peer_seen) > refresh_ticks(timeout) as i64
}

/// Whether an entry has been idle for longer than its state allows. The other direction may have been seen some ticks later
/// ([`refresh_ticks`]): that much longer.
#[inline(always)]
#[must_use]
pub const fn is_expired(control: Control, timeout: u32, tick: u32) -> bool {
    elapsed(tick, control.last_seen()) > timeout as i64 + refresh_ticks(timeout) as i64
}

/// Class of the flows that come from a pod's device.
#[inline(always)]
#[must_use]
pub const fn class_of_device(ifindex: u32) -> u8 {
    (ifindex.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// Class of the flows that come from a network of an outside client: its /24, or its /48.
#[inline(always)]
#[must_use]
pub fn class_of_source<F: Family>(src: &F::Addr) -> u8 {
    const MASK_V4: u32 = 0xffff_ff00_u32.to_be();
    const MASK_V6: u32 = 0xffff_0000_u32.to_be();
    let network = if F::IS_V4 {
        F::word(src, 0) & MASK_V4
    } else {
        F::word(src, 0) ^ (F::word(src, 1) & MASK_V6).rotate_left(11)
    };
    (network.wrapping_mul(0x9e37_79b1) >> 24) as u8
}
