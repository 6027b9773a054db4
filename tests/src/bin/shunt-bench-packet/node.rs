// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node that is measured, and all that the bench knows of how a revision keeps flows. `bench packet --against` builds the rest
//! of the bench on another revision, with that one's own copy of this file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use lb_common::{
    bench::FLOWS,
    flow::protocol,
    maglev::{self, Candidate},
    maps,
};
use shunt_tests::{
    packets::{
        Network, Rig, Room,
        node::{self, BACKEND_PORT, HERE, NODE, OUTSIDE, THERE, pick},
        with_rig_for,
    },
    reference::{Arrival, Door, Place, Setup, Verdict, Version},
};

/// Maps whose memory is shown, with their entries.
pub const FLOW_MAPS: [(&str, u32); 2] = [(maps::FLOWS_V4, FLOWS), (maps::FLOWS_V6, FLOWS)];

/// Backends elsewhere at a time. Each takes as many flows as there are source ports.
const BACKENDS: u32 = 20;
const FIRST_BACKEND: u32 = 20;

/// The node with room for a million entries of each family.
pub fn with_room<T: Send>(work: impl FnOnce(&mut Rig) -> Result<T> + Send) -> Result<T> {
    with_rig_for(Room::of(FLOWS), setup, work)
}

/// The node with the room that an agent makes by default.
pub fn with_default_room<T: Send>(work: impl FnOnce(&mut Rig) -> Result<T> + Send) -> Result<T> {
    with_rig_for(Room::DEFAULT, setup, work)
}

/// A NodePort with a backend on another node; for IPv4 there are many.
pub fn elsewhere(version: Version) -> SocketAddr {
    THERE.at_node(version)
}

/// A NodePort with a backend on this node.
pub fn here(version: Version) -> SocketAddr {
    HERE.at_node(version)
}

/// A ClusterIP with a backend on another node.
pub fn cluster_ip(version: Version) -> SocketAddr {
    THERE.at_cluster_ip(version)
}

/// A backend on this node.
pub fn backend(version: Version) -> SocketAddr {
    HERE.backend(version)
}

/// The node's own port for something else than a NodePort.
pub fn own_port(version: Version) -> SocketAddr {
    SocketAddr::new(pick(NODE, version), 22)
}

/// Somebody who is no Service.
pub fn stranger(version: Version) -> SocketAddr {
    SocketAddr::new(pick(OUTSIDE, version), 80)
}

/// Sends a packet through kernel and model, which must agree in everything. Gives the verdict and the frame as it left.
pub fn send(rig: &mut Rig, door: Door, ifindex: u32, frame: Vec<u8>) -> Result<(Verdict, Vec<u8>)> {
    let outcome = rig.send(&Arrival { door, ifindex, arrived_by: 0, frame, is_trace: false })?;
    Ok((outcome.verdict, outcome.frame))
}

/// Compares all flows of kernel and model.
pub fn compare(rig: &Rig) -> Result<()> {
    rig.compare_flows()
}

/// Lets [`elsewhere`] of IPv4 lead to other backends. The ones before stay, so that their flows have no reason to move, and a
/// flow that is decided again gets to another one.
pub fn exchange_backends(rig: &mut Rig) -> Result<()> {
    rig.change(|setup| serve(setup, FIRST_BACKEND + BACKENDS))
}

fn setup(network: &Network) -> Setup {
    let mut setup = node::setup(network);
    setup.source_ports = [Some(32_768..=65_535), None];
    for candidate in candidates(FIRST_BACKEND).chain(candidates(FIRST_BACKEND + BACKENDS)) {
        node::add_backend(&mut setup, candidate.index, (IpAddr::from(candidate.address), candidate.port), false);
    }
    serve(&mut setup, FIRST_BACKEND);
    setup
}

fn serve(setup: &mut Setup, first: u32) {
    let candidates: Vec<_> = candidates(first).collect();
    let table = maglev::build(&candidates);
    for protocol in [protocol::TCP, protocol::UDP] {
        let there = (Place::Node(Version::V4), elsewhere(Version::V4).port(), protocol);
        setup.frontends.get_mut(&there).expect("a frontend of the node").tables = [table.clone(), table.clone()];
    }
}

fn candidates(first: u32) -> impl Iterator<Item = Candidate> {
    (first..first + BACKENDS).map(|index| {
        let address = Ipv4Addr::new(10, 2, 1, index as u8);
        Candidate { address: address.into(), port: BACKEND_PORT, weight: 1, index }
    })
}
