// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model itself, asked about packets made by hand: what it says must be right before anything is compared with it.

mod errors;
mod fragments;
mod headers;
mod life;
mod random;
mod sctp;

use std::net::SocketAddr;

use lb_common::flow::{protocol, tcp_flags::SYN};

use super::{Arrival, Door, Model, Now, Outcome, Verdict, Version, is_sound};
use crate::packets::{
    Network, Segment,
    node::{self, OUTSIDE, Service, pick},
};

/// When all packets come.
const NOW: Now = Now { tick: 1_000, jiffy: 256_000 };
/// Three protocols that have ports.
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// A node as the packet tests have it.
fn model() -> Model {
    Model::new(node::setup(&Network::plan()))
}

/// One packet.
fn send(model: &mut Model, (door, ifindex): (Door, u32), frame: Vec<u8>) -> Outcome {
    model.step(&Arrival { door, ifindex, arrived_by: 0, frame, is_trace: false }, NOW)
}

/// The first packet of a client outside to a Service's NodePort.
fn first(protocol: u8, service: Service, version: Version) -> Segment {
    segment(protocol, client(version), service.at_node(version))
}

fn client(version: Version) -> SocketAddr {
    SocketAddr::new(pick(OUTSIDE, version), 40_000)
}

fn segment(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Segment {
    match protocol {
        protocol::TCP => Segment::tcp(src, dst, SYN),
        protocol::UDP => Segment::udp(src, dst),
        _ => Segment::sctp(src, dst, crate::packets::chunk::INIT),
    }
    .payload(b"a payload of some length")
}

/// Asserts that a packet passes as it came, with these counters moved.
fn assert_untouched(outcome: &Outcome, frame: &[u8], moved: &str) {
    assert_eq!((outcome.verdict, outcome.moved.to_string().as_str()), (Verdict::Pass, moved));
    assert_eq!(outcome.frame, frame);
}

/// Asserts that a packet is whole, and all its checksums right.
fn assert_sound(frame: &[u8]) {
    assert!(is_sound(frame), "{frame:02x?}");
}
