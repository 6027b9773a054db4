// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet is translated once, although the address and port of its backend, a process of this node, are a frontend, too.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        Rig, UPLINK,
        node::{self, NODE, OUTSIDE, THERE, pick},
        with_rig,
    },
    reference::{Door, Frontend, Place, Version},
};

use crate::step::{Step, continued, end, first, next, take};

/// A Service of one process of this node.
const PORT: u16 = 443;
const INDEX: u32 = 50;
/// Its address of a load balancer.
const VIP: node::Both = ["203.0.113.200", "2001:db8:c::200"];

fn vip(version: Version) -> SocketAddr {
    end(VIP, version, PORT)
}

fn index(version: Version) -> u32 {
    INDEX + u32::from(version == Version::V6)
}

/// The VIP, and with it what may be a frontend at the backend's own address and port.
fn prepare(rig: &mut Rig, second: Option<u32>) -> Result<()> {
    rig.change(|setup| {
        for version in Version::BOTH {
            let node: IpAddr = pick(NODE, version);
            node::add_backend(setup, index(version), (node, PORT), true);
            for protocol in [protocol::TCP, protocol::UDP] {
                let to =
                    |index: u32| Frontend { service: index, tables: [vec![index], vec![index]], ..Frontend::default() };
                setup.frontends.insert((Place::Address(vip(version).ip()), PORT, protocol), to(index(version)));
                if let Some(second) = second {
                    let offset =
                        if version == Version::V6 { THERE.index(Version::V6) - THERE.index(Version::V4) } else { 0 };
                    setup.frontends.insert((Place::Address(node), PORT, protocol), to(second + offset));
                }
            }
        }
    })
}

/// XDP leaves it to TC, which alone translates: whatever the frontend at the backend's address leads to.
#[test]
fn xdp_leaves_to_tc_what_would_be_translated_there_once_more() -> Result<()> {
    with_rig(node::setup, |rig| {
        prepare(rig, Some(THERE.index(Version::V4)))?;
        for version in Version::BOTH {
            for protocol in [protocol::TCP, protocol::UDP] {
                let (client, index) = (end(OUTSIDE, version, 40_000), index(version));
                for (round, packet) in [first(protocol, client, vip(version)), next(protocol, client, vip(version))]
                    .into_iter()
                    .enumerate()
                {
                    let (frame, len) = (packet.build(), packet.build().len());
                    let begun = format!(" service{index}.flows=1 backend{index}.flows=1");
                    let left = format!("left-to-tc=1{}", if round == 0 { &begun } else { "" });
                    take(rig, [Step::untouched("left to TC", (Door::Xdp, UPLINK), frame.clone(), &left)])?;
                    let output = packet.clone().between(client, end(NODE, version, PORT)).build();
                    let moved = continued(index, len);
                    let step = Step::untouched("translated", (Door::Ingress, UPLINK), frame, &moved);
                    take(rig, [Step { output, ..step }])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn xdp_translates_for_a_process_of_this_node_where_nothing_else_is_there() -> Result<()> {
    with_rig(node::setup, |rig| {
        prepare(rig, None)?;
        for version in Version::BOTH {
            for protocol in [protocol::TCP, protocol::UDP] {
                let (client, to) = (end(OUTSIDE, version, 40_000), end(NODE, version, PORT));
                let packet = first(protocol, client, vip(version));
                let sent = crate::step::send(rig, (Door::Xdp, UPLINK), packet.build())?;
                ensure!(sent.frame == packet.clone().between(client, to).build(), "{sent:?}");
            }
        }
        rig.compare_flows()
    })
}
