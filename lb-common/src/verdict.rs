// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Why a packet left the pipeline before its end, and what becomes of it.

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
    /// A fragment to a Service address; passed untranslated.
    Fragment = 4, "fragment";
    /// An IP header with options or extension headers to a Service address; passed untranslated.
    HeaderOptions = 5, "header-options";
    /// A packet to be forwarded whose TTL or hop limit has run out.
    TtlExpired = 6, "ttl-expired";
    /// No route to the backend or back to the client.
    NoRoute = 7, "no-route";
    /// No free source port in the reserved range among those that were tried.
    NoSourcePort = 8, "no-source-port";
    /// A packet to the reserved port range that belongs to no flow.
    NoReplyFlow = 9, "no-reply-flow";
    /// A reset due to a backend that has gone.
    BackendGone = 10, "backend-gone";
    /// The flow table refused an entry; the packet goes on without state. Counted beside the verdict.
    FlowInsertFailed = 11, "flow-insert-failed";
    /// The kernel refused to change the packet.
    RewriteFailed = 12, "rewrite-failed";
    /// Impossible: a lookup table names a backend that does not exist, or lies outside the array.
    TableCorrupt = 13, "table-corrupt";
    /// Impossible: a map that always holds its element did not give it.
    MapMissing = 14, "map-missing";
    /// XDP left a packet of a Service to the TC door, which can do what XDP can't. Counted beside the verdict.
    LeftToTc = 15, "left-to-tc";
}

/// Number of reasons: size of the counter array.
pub const REASON_COUNT: u32 = Reason::ALL.len() as u32;

/// An early end of the pipeline. The entry point counts the reason and maps it to the hook's action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Not a packet of any Service: untouched, uncounted.
    NotOurs,
    /// Untouched, counted.
    Pass(Reason),
    /// Answered with ICMP port-unreachable.
    Reject(Reason),
    /// Dropped in silence.
    Drop(Reason),
    /// XDP only: the TC door shall handle the packet, which is untouched.
    LeaveToTc,
}

/// Shorthand for a stage's result.
pub type Stage<T> = Result<T, Stop>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_their_indices() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
