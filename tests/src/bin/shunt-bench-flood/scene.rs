// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node that is flooded: NodePorts with ten backends on other nodes each, which are later exchanged for ten others. The old
//! ones stay where they are, so that established flows have no reason to move, and every flow that is decided anew gets to
//! another backend.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use lb_common::{
    flow::protocol,
    maglev::{self, Candidate},
};
use shunt_tests::{
    packets::{
        Network,
        node::{self, BACKEND_PORT, THERE},
    },
    reference::{Place, Setup, Version},
};

/// Backends of a family at a time.
const BACKENDS: u32 = 10;
const FIRST_BACKEND: u32 = 20;

/// Which backends serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// By those that established flows know.
    Old,
    /// By the others.
    New,
}

/// The node, with the old backends.
pub fn setup(network: &Network, source_ports: RangeInclusive<u16>) -> Setup {
    let mut setup = Setup { source_ports: [Some(source_ports), None], ..node::setup(network) };
    for version in Version::BOTH {
        for candidate in [Served::Old, Served::New].into_iter().flat_map(|served| candidates(version, served)) {
            node::add_backend(&mut setup, candidate.index, (candidate.address.into(), candidate.port), false);
        }
    }
    serve(&mut setup, Served::Old);
    setup
}

/// Lets the NodePorts lead to these backends alone.
pub fn serve(setup: &mut Setup, served: Served) {
    for version in Version::BOTH {
        let candidates: Vec<_> = candidates(version, served).collect();
        let table = maglev::build(&candidates);
        for protocol in [protocol::TCP, protocol::UDP] {
            let place = (Place::Node(version), frontend(version).port(), protocol);
            let frontend = setup.frontends.get_mut(&place).expect("a frontend of the node");
            frontend.tables = [table.clone(), table.clone()];
        }
    }
}

/// Where all clients send to.
pub fn frontend(version: Version) -> SocketAddr {
    THERE.at_node(version)
}

fn candidates(version: Version, served: Served) -> impl Iterator<Item = Candidate> {
    let first = FIRST_BACKEND
        + if version == Version::V6 { 2 * BACKENDS } else { 0 }
        + if served == Served::New { BACKENDS } else { 0 };
    (first..first + BACKENDS).map(move |index| {
        let address: IpAddr = match version {
            Version::V4 => Ipv4Addr::new(10, 2, 1, index as u8).into(),
            Version::V6 => Ipv6Addr::new(0xfd00, 2, 0, 0, 1, 0, 0, index as u16).into(),
        };
        Candidate { address: address.into(), port: BACKEND_PORT, weight: 1, index }
    })
}
