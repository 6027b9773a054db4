// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers to what the node itself has sent, from a port that is a Service's, too: no Service's (cilium 44348, 10261, 34041, kubernetes
//! 139276).

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_common::flow::{
    protocol,
    tcp_flags::{ACK, FIN, SYN},
};
use shunt_tests::{
    load::{Protocol, Talk},
    packets::{
        POD, Rig, Segment, UPLINK,
        node::{self, EMPTY, HERE, NODE, OUTSIDE, Service, pick},
        with_rig,
    },
    reference::{Door, Place, Prefix, Tuple, Version},
};

use crate::step::{Step, begun, end, next, send, take};

/// Where what the node has sent gets to: another address of its own, so that sockets have somebody to talk to.
const PEER: node::Both = ["198.51.100.1", "2001:db8:2::1"];
const DOORS: [(Door, u32); 3] = [(Door::Xdp, UPLINK), (Door::Ingress, UPLINK), (Door::Ingress, POD)];
const LIMIT: Duration = Duration::from_secs(5);

/// A port of the load balancer at the node's own address, of the same Service.
fn with_external_ip(rig: &mut Rig, service: Service) -> Result<()> {
    rig.change(|setup| {
        for version in Version::BOTH {
            for protocol in [protocol::TCP, protocol::UDP] {
                let frontend = setup.frontends[&(Place::Node(version), 30_000 + service.port, protocol)].clone();
                setup.frontends.insert((Place::Address(pick(NODE, version)), service.port, protocol), frontend);
            }
        }
    })
}

/// The node's frontends of a Service.
fn frontends(service: Service, version: Version) -> [SocketAddr; 2] {
    [service.at_node(version), end(NODE, version, service.port)]
}

fn loopback_up() -> Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("can't start ip")?;
    ensure!(status.success(), "ip link set lo up: {status}");
    Ok(())
}

fn know(rig: &mut Rig, protocol: u8, peer: SocketAddr, own: SocketAddr) -> Result<()> {
    rig.change(|setup| {
        setup.sockets.insert(Tuple { src: peer, dst: own, protocol });
    })
}

#[test]
fn pitfall_28_a_syn_ack_opens_nothing() -> Result<()> {
    with_rig(node::setup, |rig| {
        with_external_ip(rig, HERE)?;
        for version in Version::BOTH {
            let [node_port, external] = frontends(HERE, version);
            for to in [node_port, external, HERE.at_cluster_ip(version)] {
                for at in DOORS {
                    let answer = Segment::tcp(end(OUTSIDE, version, 443), to, SYN | ACK).build();
                    take(rig, [Step::untouched("a SYN-ACK", at, answer, "")])?;
                }
            }
        }
        ensure!(rig.kernel_flows()?.is_empty(), "a SYN-ACK has opened a flow");
        Ok(())
    })
}

#[test]
fn pitfall_28_answers_to_the_nodes_connected_sockets_are_its_own() -> Result<()> {
    with_rig(node::setup, |rig| {
        loopback_up()?;
        // Neither endpoints nor source ranges are asked about.
        for service in [HERE, EMPTY] {
            with_external_ip(rig, service)?;
        }
        rig.change(|setup| {
            for index in Version::BOTH.map(|version| HERE.index(version)) {
                node::change_frontends(setup, index, |frontend| frontend.is_restricted = true);
                setup.source_ranges.insert(index, [Prefix { network: "192.0.2.77".parse().unwrap(), len: 32 }].into());
            }
        })?;
        let mut sockets = Vec::new();
        for version in Version::BOTH {
            for own in frontends(HERE, version).into_iter().chain(frontends(EMPTY, version)) {
                let listener = TcpListener::bind(end(PEER, version, 0))?;
                let peer = listener.local_addr()?;
                let talk = Talk::begin_at(Protocol::Tcp, own, peer, LIMIT)?;
                know(rig, protocol::TCP, peer, own)?;
                let socket = UdpSocket::bind(own)?;
                socket.connect(peer)?;
                know(rig, protocol::UDP, peer, own)?;
                for at in DOORS {
                    for flags in [ACK, FIN | ACK] {
                        let data = Segment::tcp(peer, own, flags).build();
                        take(rig, [Step::untouched("a segment of a connection", at, data, "")])?;
                    }
                    let datagram = Segment::udp(peer, own).build();
                    take(rig, [Step::untouched("a datagram for a connected socket", at, datagram, "")])?;
                }
                sockets.push((listener, talk, socket));
            }
        }
        ensure!(rig.kernel_flows()?.is_empty(), "an answer has opened a flow");
        Ok(())
    })
}

#[test]
fn pitfall_28_other_clients_of_such_a_port_are_served() -> Result<()> {
    with_rig(node::setup, |rig| {
        loopback_up()?;
        with_external_ip(rig, HERE)?;
        let mut sockets = Vec::new();
        for version in Version::BOTH {
            for own in frontends(HERE, version) {
                // One that listens, one that is bound, and one that is connected to somebody else.
                let listener = TcpListener::bind(own)?;
                let bound = UdpSocket::bind(own)?;
                let peer = TcpListener::bind(end(PEER, version, 0))?;
                let talk = Talk::begin_at(Protocol::Tcp, end(NODE, version, 0), peer.local_addr()?, LIMIT)?;
                for (protocol, port) in [(protocol::TCP, 40_000), (protocol::UDP, 40_001)] {
                    let client = end(OUTSIDE, version, port);
                    let packet = next(protocol, client, own);
                    let sent = send(rig, (Door::Xdp, UPLINK), packet.build())?;
                    let to = packet.clone().between(client, HERE.backend(version)).build();
                    ensure!(sent.frame == to, "{own}: {sent:?}");
                    let counted = begun(HERE.index(version), packet.build().len());
                    ensure!(sent.moved.to_string() == counted, "{own}: {sent:?}");
                }
                sockets.push((listener, bound, peer, talk));
                rig.compare_flows()?;
                rig.restart(rig.model().setup.clone())?;
            }
        }
        Ok(())
    })
}
