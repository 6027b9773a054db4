// SPDX-License-Identifier: MIT OR Apache-2.0
//! Doors, what they can do with a packet, and why one may end early.

use lb_common::verdict::Reason;

/// A hook that our programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// XDP of an uplink: does a packet completely, or leaves it untouched for TC.
    Xdp,
    /// TC, packets that arrive.
    Ingress,
    /// TC, packets that leave.
    Egress,
}

impl Door {
    /// All doors.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];
    /// Those that packets arrive by.
    pub const IN: [Self; 2] = [Self::Xdp, Self::Ingress];
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to whatever comes next.
    Pass,
    /// Gone.
    Drop,
    /// Out of the device that it came in by (XDP).
    Transmit,
    /// Out of a device.
    Redirect,
}

/// An early end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// No packet of a Service.
    NotOurs,
    /// XDP leaves it to TC.
    LeaveToTc,
    /// Untouched, counted.
    Pass(Reason),
    /// Counted: an ICMP error is due.
    Reject(Reason),
    /// Counted: a TCP RST is due.
    Reset(Reason),
    /// Dropped, counted.
    Drop(Reason),
}
