// SPDX-License-Identifier: MIT OR Apache-2.0
//! Doors, how packets come to them and what they can do with one, and why one may end early.

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
    /// The net: what leaves by its device, or by the loopback device.
    Net,
    /// What arrives by the net's device.
    NetArrival,
}

impl Door {
    /// All that translate.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::Ingress, Self::Egress, Self::Net];
    /// Those that packets of others arrive by.
    pub const IN: [Self; 2] = [Self::Xdp, Self::Ingress];
}

/// A packet, and how it comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The hook.
    pub door: Door,
    /// The device of arrival (ingress) or departure (egress, the net).
    pub ifindex: u32,
    /// At the net, the device by which it has come to this node; 0 where it has begun here.
    pub arrived_by: u32,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
    /// A question of `trace`: it leaves no mark but the answer.
    pub is_trace: bool,
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
