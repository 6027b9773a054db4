// SPDX-License-Identifier: MIT OR Apache-2.0
//! One line of a test's table: a packet, and all that must come of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_common::flow::{
    protocol,
    tcp_flags::{ACK, SYN},
};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, chunk,
        node::{Both, CALLER, pick},
    },
    reference::{Arrival, Door, Verdict, Version},
};

/// Both protocols of most tests.
pub const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];
/// All that there are.
pub const ALL_PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// A packet, and what must come of it.
pub struct Step {
    /// Why it is here.
    pub what: &'static str,
    /// The hook, and the device.
    pub at: (Door, u32),
    /// The packet.
    pub frame: Vec<u8>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// As it leaves.
    pub output: Vec<u8>,
    /// All counters that move, as `Counters` prints them.
    pub moved: String,
}

impl Step {
    /// A packet that passes as it came, with these counters.
    pub fn untouched(what: &'static str, at: (Door, u32), frame: Vec<u8>, moved: &str) -> Self {
        Self { what, at, output: frame.clone(), frame, verdict: Verdict::Pass, moved: moved.to_owned() }
    }

    /// A packet that is dropped as it came.
    pub fn dropped(what: &'static str, at: (Door, u32), frame: Vec<u8>, moved: &str) -> Self {
        Self { verdict: Verdict::Drop, ..Self::untouched(what, at, frame, moved) }
    }
}

/// Takes the steps one after the other, and compares the flow tables at the end.
pub fn take(rig: &mut Rig, steps: impl IntoIterator<Item = Step>) -> Result<()> {
    for step in steps {
        let context = || format!("{}: {:?}, {} bytes", step.what, step.at, step.frame.len());
        let outcome = send(rig, step.at, step.frame.clone()).with_context(context)?;
        let moved = outcome.moved.to_string();
        ensure!(outcome.verdict == step.verdict, "{}: {:?}, not {:?}", context(), outcome.verdict, step.verdict);
        ensure!(outcome.frame == step.output, "{}:\n{:02x?}, not\n{:02x?}", context(), outcome.frame, step.output);
        ensure!(moved == step.moved, "{}: moved {moved}, not {}", context(), step.moved);
    }
    rig.compare_flows()
}

/// One packet. What comes to the net from the calling pod has arrived by its device; what else does has begun on this node.
pub fn send(rig: &mut Rig, at: (Door, u32), frame: Vec<u8>) -> Result<shunt_tests::reference::Outcome> {
    let is_callers = |frame: &[u8]| {
        let octets = match pick(CALLER, if frame[12..14] == [8, 0] { Version::V4 } else { Version::V6 }) {
            IpAddr::V4(v4) => (26, v4.octets().to_vec()),
            IpAddr::V6(v6) => (22, v6.octets().to_vec()),
        };
        frame.get(octets.0..).is_some_and(|rest| rest.starts_with(&octets.1))
    };
    let arrived_by = if at.0 == Door::Net && is_callers(&frame) { POD } else { 0 };
    rig.send(&Arrival { door: at.0, ifindex: at.1, arrived_by, frame, is_trace: false })
}

/// The first packet of a flow.
pub fn first(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Segment {
    match protocol {
        protocol::TCP => Segment::tcp(src, dst, SYN),
        protocol::UDP => Segment::udp(src, dst),
        _ => Segment::sctp(src, dst, chunk::INIT),
    }
}

/// What the backend answers first.
pub fn answer(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Segment {
    match protocol {
        protocol::TCP => Segment::tcp(src, dst, SYN | ACK),
        protocol::UDP => Segment::udp(src, dst),
        _ => Segment::sctp(src, dst, chunk::INIT_ACK),
    }
}

/// The client's next packet.
pub fn next(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Segment {
    match protocol {
        protocol::TCP => Segment::tcp(src, dst, ACK),
        protocol::UDP => Segment::udp(src, dst),
        _ => Segment::sctp(src, dst, chunk::DATA),
    }
}

/// An address with a port.
pub fn end(both: Both, version: Version, port: u16) -> SocketAddr {
    SocketAddr::new(pick(both, version), port)
}

/// The source port of a translated frame.
pub fn source_port(frame: &[u8], version: Version) -> u16 {
    let at = 14 + if version == Version::V4 { 20 } else { 40 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// What moves when a flow of so many bytes begins.
pub fn begun(index: u32, len: usize) -> String {
    format!("service{index}.flows=1 backend{index}.original=1x{len}B backend{index}.flows=1")
}

/// What moves when it goes on.
pub fn continued(index: u32, len: usize) -> String {
    format!("backend{index}.original=1x{len}B")
}

/// What moves with a reply.
pub fn replied(index: u32, len: usize) -> String {
    format!("backend{index}.reply=1x{len}B")
}
