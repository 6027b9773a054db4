// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Why a packet left the pipeline before its end, and what becomes of it.

use core::num::NonZeroU64;

use crate::bits::plain_bits;

/// Declares [`Reason`] with its texts, so that a reason, its metric label and its explanation stand on one line.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $index:literal, $label:literal;)+) => {
        /// Index into the per-CPU array of reasons; [`Reason::as_str`] is the metric's label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name = $index,)+
        }

        impl Reason {
            /// All reasons, in the order of their indices.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The label in metrics and in `trace`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// The reason of an index, as it stands in counters and traces.
            #[must_use]
            pub fn from_index(index: u32) -> Option<Self> {
                Self::ALL.get(index as usize).copied()
            }
        }
    };
}

reasons! {
    /// Service with no usable endpoint anywhere: rejected (rule 40).
    NoEndpoints = 0, "no-endpoints";
    /// A local-only policy and no endpoint on this node: dropped (rules 41, 42).
    NoLocalEndpoints = 1, "no-local-endpoints";
    /// A reject was due, but this tick's budget of ICMP errors is spent.
    RejectLimit = 2, "reject-limit";
    /// The reject could not be built or sent.
    RejectFailed = 3, "reject-failed";
    /// A process's socket that is bound to a loopback address, and a backend elsewhere: packets from there never leave the
    /// machine. Its call fails with EPERM.
    LoopbackSource = 4, "loopback-source";
    /// The first fragment of an SCTP packet whose ports would change: its checksum is over bytes that are in other fragments.
    SctpFragment = 5, "sctp-fragment";
    /// A packet to be forwarded whose TTL or hop limit has run out: answered.
    TtlExpired = 6, "ttl-expired";
    /// No route to the backend or back to the client.
    NoRoute = 7, "no-route";
    /// No free source port in the reserved range among those that were tried.
    NoSourcePort = 8, "no-source-port";
    /// The flow table refused an entry: a packet whose source is kept goes on without state, and this is counted beside the verdict;
    /// another is dropped.
    FlowInsertFailed = 9, "flow-insert-failed";
    /// The kernel refused to change the packet.
    RewriteFailed = 10, "rewrite-failed";
    /// Impossible: a lookup table names a backend that does not exist, or lies outside the array.
    TableCorrupt = 11, "table-corrupt";
    /// Impossible: a map that always holds its element did not give it.
    MapMissing = 12, "map-missing";
    /// XDP left a packet of a Service to the TC door, which can do what XDP can't. Counted beside the verdict.
    LeftToTc = 13, "left-to-tc";
    /// Neither the device nor the node has an address to translate the source to.
    NoSourceAddress = 14, "no-source-address";
    /// Header fields that contradict each other or the length of the packet; passed untranslated.
    Malformed = 15, "malformed";
    /// A source outside the Service's ranges: dropped (rule 35).
    SourceRange = 16, "source-range";
    /// A port of a ClusterIP that no Service defines: rejected (rule 44).
    UndefinedPort = 17, "undefined-port";
    /// The backend of a TCP flow has gone, and its Service wants a reset: answered with RST.
    BackendGone = 18, "backend-gone";
    /// A later fragment of a datagram whose first one was not seen: dropped where only a Service can be meant.
    OrphanFragment = 19, "orphan-fragment";
    /// More extension headers than are followed: dropped where only a Service can be meant.
    TooManyHeaders = 20, "too-many-headers";
    /// A packet to be forwarded that is longer than the way's MTU: answered, so that its sender learns the MTU.
    TooBig = 21, "too-big";
    /// An answer was due, but nobody answers such a packet (RFC 1122 section 3.2.2, RFC 4443 section 2.4): dropped.
    /// Counted beside the reason for the answer.
    AnswerForbidden = 22, "answer-forbidden";
    /// The route to the backend or back to the client is of the kind blackhole, unreachable or prohibit.
    RouteRefuses = 23, "route-refuses";
    /// The device by which the packet came, or to which it would go, does not forward (sysctl `forwarding`).
    ForwardingOff = 24, "forwarding-off";
    /// The route wraps packets (`ip route … encap`), which programs can't.
    RouteWraps = 25, "route-wraps";
}

/// Number of reasons: size of the counter array.
pub const REASON_COUNT: u32 = Reason::ALL.len() as u32;

/// What becomes of a packet that leaves the pipeline early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not a packet of any Service: untouched, uncounted.
    NotOurs = 0,
    /// XDP only: the TC door shall handle the packet, which is untouched.
    LeaveToTc = 1,
    /// Untouched, counted.
    Pass = 2,
    /// Answered with the ICMP error that the reason calls for.
    Reject = 3,
    /// Dropped in silence.
    Drop = 4,
    /// Answered with a TCP RST.
    Reset = 5,
    /// Not a plain packet: untouched, for the same door's other program.
    Rare = 6,
    /// Untouched, for the program that asks conntrack whose it is ([`crate::conntrack`]).
    AskConntrack = 7,
}

/// An early end of the pipeline. The entry point counts the reason and maps the fate to the hook's action.
///
/// In one word, so that it travels through a function that is not inlined: BPF returns no more than 64 bits. Never zero, so
/// that a result without a value is one word as well, and the verifier meets none that is not initialised.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Stop(NonZeroU64);

impl Stop {
    /// Makes it differ from success in [`Packed`].
    const MARK: u64 = 1 << 63;

    /// See [`Fate::NotOurs`].
    pub const NOT_OURS: Self = Self::new(Fate::NotOurs, 0);
    /// See [`Fate::LeaveToTc`].
    pub const LEAVE_TO_TC: Self = Self::new(Fate::LeaveToTc, Reason::LeftToTc as u32);
    /// See [`Fate::Rare`].
    pub const RARE: Self = Self::new(Fate::Rare, 0);
    /// See [`Fate::AskConntrack`].
    pub const ASK_CONNTRACK: Self = Self::new(Fate::AskConntrack, 0);

    #[inline(always)]
    const fn new(fate: Fate, reason: u32) -> Self {
        Self::from_bits(Self::MARK | (fate as u64) << 32 | reason as u64)
    }

    #[inline(always)]
    const fn from_bits(bits: u64) -> Self {
        match NonZeroU64::new(bits) {
            Some(bits) => Self(bits),
            None => Self(NonZeroU64::MAX),
        }
    }

    /// See [`Fate::Pass`].
    #[inline(always)]
    #[must_use]
    pub const fn pass(reason: Reason) -> Self {
        Self::new(Fate::Pass, reason as u32)
    }

    /// See [`Fate::Reject`].
    #[inline(always)]
    #[must_use]
    pub const fn reject(reason: Reason) -> Self {
        Self::new(Fate::Reject, reason as u32)
    }

    /// See [`Fate::Reset`].
    #[inline(always)]
    #[must_use]
    pub const fn reset(reason: Reason) -> Self {
        Self::new(Fate::Reset, reason as u32)
    }

    /// See [`Fate::Drop`].
    #[inline(always)]
    #[must_use]
    pub const fn drop(reason: Reason) -> Self {
        Self::new(Fate::Drop, reason as u32)
    }

    /// What becomes of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn fate(self) -> Fate {
        match (self.0.get() >> 32) as u32 & 0xff {
            0 => Fate::NotOurs,
            1 => Fate::LeaveToTc,
            2 => Fate::Pass,
            3 => Fate::Reject,
            5 => Fate::Reset,
            6 => Fate::Rare,
            7 => Fate::AskConntrack,
            _ => Fate::Drop,
        }
    }

    /// Index of the [`Reason`] to count; meaningless for [`Fate::NotOurs`], [`Fate::Rare`] and [`Fate::AskConntrack`].
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> u32 {
        self.0.get() as u32
    }
}

impl core::fmt::Debug for Stop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stop").field("fate", &self.fate()).field("reason", &Reason::from_index(self.reason())).finish()
    }
}

/// Shorthand for a stage's result.
pub type Stage<T> = Result<T, Stop>;

/// The result of a stage without output, in one register. 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Packed(u64);

plain_bits!(Packed);

impl Packed {
    /// Packs a result.
    #[inline(always)]
    #[must_use]
    pub const fn pack(result: Stage<()>) -> Self {
        match result {
            Ok(()) => Self(0),
            Err(stop) => Self(stop.0.get()),
        }
    }

    /// Unpacks it again.
    ///
    /// # Errors
    /// The [`Stop`] that was packed.
    #[inline(always)]
    pub const fn unpack(self) -> Stage<()> {
        match NonZeroU64::new(self.0) {
            None => Ok(()),
            Some(bits) => Err(Stop(bits)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_their_indices() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_index(index as u32), Some(*reason));
        }
    }

    #[test]
    fn a_packed_result_is_the_result() {
        let stops = Reason::ALL
            .iter()
            .flat_map(|&reason| [Stop::pass, Stop::reject, Stop::drop, Stop::reset].map(|stop| stop(reason)));
        for stop in stops.chain([Stop::NOT_OURS, Stop::LEAVE_TO_TC, Stop::RARE, Stop::ASK_CONNTRACK]) {
            assert_eq!(Packed::pack(Err(stop)).unpack(), Err(stop));
        }
        assert_eq!(Packed::pack(Ok(())).unpack(), Ok(()));
    }
}
