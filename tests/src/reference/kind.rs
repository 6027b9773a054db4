// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which kinds of packets the programs do by now: one list. A kind goes in with the programs that do it, and when all are
//! in, this file goes.

/// A kind of packet, or a rule, that came after plain TCP and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ICMP errors about translated flows.
    IcmpErrors,
    /// IPv4 options, IPv6 extension headers.
    Headers,
    /// First and later fragments.
    Fragments,
    /// SCTP.
    Sctp,
    /// VLAN tags at XDP.
    Tags,
    /// New flows stand in a table of their own.
    Young,
}

/// Those that the programs do.
pub const ENABLED: &[Kind] = &[Kind::IcmpErrors, Kind::Headers, Kind::Fragments, Kind::Sctp, Kind::Tags];

impl Kind {
    /// Whether the programs do it. The model's own tests look at all of it.
    #[must_use]
    pub fn is_enabled(self) -> bool {
        cfg!(test) || ENABLED.contains(&self)
    }
}
