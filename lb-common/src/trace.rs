// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `trace`: a synthetic packet that the live programs recognise, answer about, and leave no mark of.
//!
//! The agent writes a [`TraceRecord`] with a random cookie, then runs the pinned program on a packet that carries the
//! cookie where no packet of a network can: in the socket buffer's control block (TC) or the XDP metadata area. The program
//! compares, writes what it decided into the record, and skips every write to flows, affinity and counters.

use bytemuck::{Pod, Zeroable};

/// First word of a trace packet's control block or metadata; the cookie follows. A quick test, not the proof.
pub const TRACE_MAGIC: u32 = 0x5348_4e54;

/// How far the pipeline came. Each step overwrites the one before.
pub mod trace_step {
    /// Not parsed, or of no interest to Shunt.
    pub const NOT_OURS: u32 = 0;
    /// An established flow was found.
    pub const FLOW: u32 = 1;
    /// A frontend was found, no backend.
    pub const FRONTEND: u32 = 2;
    /// A backend was chosen for a new flow.
    pub const DECIDED: u32 = 3;
}

/// The element of the trace map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceRecord {
    /// The secret of the run; zero between runs.
    pub cookie: [u32; 4],
    /// [`trace_step`].
    pub step: u32,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// [`crate::flow::flow_flags`] of the entry found or decided.
    pub flow_flags: u32,
    /// [`trace_verdict`].
    pub verdict: u32,
    /// [`crate::verdict::Reason`] of a pass, reject or drop.
    pub reason: u32,
    /// Device that a forwarded packet leaves by; 0 where the stack routes it.
    pub ifindex: u32,
    /// 1 for a client inside the node, 0 for one outside.
    pub internal: u32,
}

/// What becomes of the packet.
pub mod trace_verdict {
    /// Untouched, no Service's.
    pub const NOT_OURS: u32 = 0;
    /// Translated and handed to the network stack.
    pub const TRANSLATED: u32 = 1;
    /// Translated and sent out by a device.
    pub const FORWARDED: u32 = 2;
    /// Untouched, with a reason.
    pub const PASSED: u32 = 3;
    /// Answered with an ICMP error.
    pub const REJECTED: u32 = 4;
    /// Dropped.
    pub const DROPPED: u32 = 5;
    /// XDP leaves it to TC.
    pub const LEFT_TO_TC: u32 = 6;
    /// Answered with a TCP RST.
    pub const RESET: u32 = 7;
}

const _: () = assert!(size_of::<TraceRecord>() == 48);
