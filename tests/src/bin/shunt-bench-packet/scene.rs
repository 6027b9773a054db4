// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node that is measured: that of the packet tests, with enough backends elsewhere for a million flows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use lb_common::{
    flow::{protocol, tcp_flags::ACK},
    maglev::{self, Candidate},
};
use shunt_tests::{
    packets::{
        Network, Rig, Segment, UPLINK,
        node::{self, BACKEND_PORT, THERE},
        template,
    },
    reference::{Arrival, Door, Outcome, Place, Setup, Tuple, Version},
};

use crate::case::{Case, frame_of};

/// Backends elsewhere. Each takes as many flows as there are source ports.
const BACKENDS: u32 = 40;
const FIRST_BACKEND: u32 = 20;

/// The node.
pub fn setup(network: &Network) -> Setup {
    let mut setup = node::setup(network);
    setup.source_ports = 32_768..=65_535;
    let candidates: Vec<Candidate> = (0..BACKENDS)
        .map(|number| {
            let address = Ipv4Addr::new(10, 2, 1, 1 + number as u8);
            Candidate { address: address.into(), port: BACKEND_PORT, weight: 1, index: FIRST_BACKEND + number }
        })
        .collect();
    for candidate in &candidates {
        let address = IpAddr::from(candidate.address);
        node::add_backend(&mut setup, candidate.index, (address, candidate.port), false);
    }
    let there = (Place::Node(Version::V4), THERE.at_node(Version::V4).port(), protocol::TCP);
    let table = maglev::build(&candidates);
    setup.frontends.get_mut(&there).expect("a frontend of the node").tables = [table.clone(), table];
    setup
}

/// Begins flow 0 of a case, and sees its packet through kernel and model.
pub fn begin(rig: &mut Rig, case: &mut Case) -> Result<Outcome> {
    for opening in &case.opening {
        send(rig, frame_of(opening, case.version))?;
    }
    if let Some((client, frontend)) = case.reply_of {
        let (src, dst) = reply_of(rig, client, frontend)?;
        case.template = template(&Segment::tcp(src, dst, ACK));
    }
    send(rig, frame_of(&case.template, case.version))
}

/// From where to where the reply of a client's flow goes.
fn reply_of(rig: &Rig, src: SocketAddr, dst: SocketAddr) -> Result<(SocketAddr, SocketAddr)> {
    let tuple = Tuple { src, dst, protocol: protocol::TCP };
    let entry = rig.model().flows.0.get(&tuple).with_context(|| format!("no flow {tuple:?}"))?;
    Ok((entry.to.dst, entry.to.src))
}

fn send(rig: &mut Rig, frame: Vec<u8>) -> Result<Outcome> {
    rig.send(&Arrival { door: Door::Xdp, ifindex: UPLINK, frame, is_trace: false })
}
