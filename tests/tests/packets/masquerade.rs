// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--masquerade-all`: sources of clients from outside are translated wherever a packet can be forwarded.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::flow::tcp_flags::{ACK, SYN};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK,
        node::{self, BACKEND_PORT, CALLER, GATEWAY, HERE, NODE, OUTSIDE, THERE, UNRESOLVED, UNROUTED, pick},
        with_rig,
    },
    reference::{Door, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, continued, end, first, replied, send, source_port, take};

fn masquerade(rig: &mut Rig) -> Result<()> {
    rig.change(|setup| setup.masquerades_all = true)
}

/// What is redirected passes neither the rules for forwarded packets, NetworkPolicies among them, nor the queues of its device.
#[test]
fn rule_46_n1_a_pods_packets_are_left_to_the_stack() -> Result<()> {
    with_rig(node::setup, |rig| {
        masquerade(rig)?;
        for version in Version::BOTH {
            for (service, protocol) in PROTOCOLS.into_iter().flat_map(|protocol| [(HERE, protocol), (THERE, protocol)])
            {
                let (client, frontend) = (end(CALLER, version, 40_000), service.at_cluster_ip(version));
                let packet = first(protocol, client, frontend);
                let sent = send(rig, (Door::Ingress, POD), packet.build())?;
                let kept = packet.between(client, service.backend(version)).build();
                ensure!(sent.verdict == Verdict::Pass && sent.frame == kept, "{sent:?}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_46_a_client_outside_is_translated_there_and_back() -> Result<()> {
    with_rig(node::setup, |rig| {
        masquerade(rig)?;
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
                let packet = first(protocol, client, frontend);
                let sent = send(rig, (Door::Ingress, UPLINK), packet.build())?;
                let own = rig.network.addresses[&POD][&version];
                let node = SocketAddr::new(own, source_port(&sent.frame, version));
                let there = rig.network.ethernet(POD, HERE.backend(version).ip());
                let back = rig.network.ethernet(UPLINK, pick(GATEWAY, version));
                let (index, len) = (HERE.index(version), packet.build().len());
                let forwarded = |packet: Segment, ethernet| packet.ttl(63).ethernet(ethernet).build();
                let there = Step {
                    what: "there",
                    at: (Door::Ingress, UPLINK),
                    frame: packet.build(),
                    verdict: Verdict::Redirect,
                    output: forwarded(packet.clone().between(node, HERE.backend(version)), there),
                    moved: continued(index, len),
                };
                let back = Step {
                    what: "back",
                    at: (Door::Ingress, POD),
                    frame: packet.clone().between(HERE.backend(version), node).build(),
                    verdict: Verdict::Redirect,
                    output: forwarded(packet.between(frontend, client), back),
                    moved: replied(index, len),
                };
                take(rig, [there, back])?;
            }
        }
        Ok(())
    })
}

#[test]
fn rule_47_a_client_outside_is_translated_for_a_backend_here_too() -> Result<()> {
    with_rig(node::setup, |rig| {
        masquerade(rig)?;
        for version in Version::BOTH {
            let own = rig.network.addresses[&POD][&version];
            for (door, port, verdict) in
                [(Door::Xdp, 40_000, Verdict::Pass), (Door::Ingress, 40_001, Verdict::Redirect)]
            {
                let packet = Segment::tcp(end(OUTSIDE, version, port), HERE.at_node(version), SYN);
                let sent = send(rig, (door, UPLINK), packet.build())?;
                ensure!(sent.verdict == verdict, "{door:?}: {sent:?}");
                // The pod's device takes no frames from XDP; TC follows what was decided there.
                let sent = send(rig, (Door::Ingress, UPLINK), packet.build())?;
                let node = SocketAddr::new(own, source_port(&sent.frame, version));
                let ethernet = rig.network.ethernet(POD, HERE.backend(version).ip());
                let output = packet.between(node, HERE.backend(version)).ttl(63).ethernet(ethernet).build();
                ensure!(sent.frame == output && sent.verdict == Verdict::Redirect, "{door:?}: {sent:?}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn a_backend_on_the_node_itself_sees_the_client() -> Result<()> {
    with_rig(node::setup, |rig| {
        masquerade(rig)?;
        rig.change(|setup| {
            for version in Version::BOTH {
                node::add_backend(setup, HERE.index(version), (pick(NODE, version), BACKEND_PORT), true);
            }
        })?;
        for version in Version::BOTH {
            let backend = end(NODE, version, BACKEND_PORT);
            for (at, client) in
                [((Door::Xdp, UPLINK), OUTSIDE), ((Door::Ingress, UPLINK), OUTSIDE), ((Door::Ingress, POD), CALLER)]
            {
                let port = if at.0 == Door::Xdp { 40_000 } else { 40_001 };
                let packet = Segment::tcp(end(client, version, port), HERE.at_node(version), SYN);
                let sent = send(rig, at, packet.build())?;
                let kept = packet.between(end(client, version, port), backend).build();
                ensure!(sent.verdict == Verdict::Pass && sent.frame == kept, "{at:?}: {sent:?}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn without_a_route_a_pods_packet_is_the_stacks() -> Result<()> {
    with_rig(node::setup, |rig| {
        masquerade(rig)?;
        for version in Version::BOTH {
            let (client, frontend) = (end(CALLER, version, 40_000), UNROUTED.at_cluster_ip(version));
            let packet = Segment::tcp(client, frontend, SYN);
            let sent = send(rig, (Door::Ingress, POD), packet.build())?;
            let kept = packet.between(client, UNROUTED.backend(version)).build();
            ensure!(sent.verdict == Verdict::Pass && sent.frame == kept, "{sent:?}");
            // Who comes from outside must be translated, and can't.
            let packet = Segment::tcp(end(OUTSIDE, version, 40_000), UNROUTED.at_node(version), SYN).build();
            take(rig, [Step::dropped("outside", (Door::Ingress, UPLINK), packet, "no-route=1")])?;
        }
        Ok(())
    })
}

#[test]
fn without_a_source_address_a_pods_packet_keeps_its_own() -> Result<()> {
    with_rig(node::setup, |rig| {
        masquerade(rig)?;
        rig.change(|setup| {
            setup.node.clear();
            setup.interfaces.values_mut().for_each(|interface| interface.addresses.clear());
        })?;
        for version in Version::BOTH {
            for service in [THERE, UNRESOLVED] {
                let (client, frontend) = (end(CALLER, version, 40_000), service.at_cluster_ip(version));
                for flags in [SYN, ACK] {
                    let packet = Segment::tcp(client, frontend, flags);
                    let sent = send(rig, (Door::Ingress, POD), packet.build())?;
                    let kept = packet.between(client, service.backend(version)).build();
                    ensure!(sent.verdict == Verdict::Pass && sent.frame == kept, "{sent:?}");
                }
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn a_flow_from_before_keeps_its_source() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(CALLER, version, 40_000), THERE.at_cluster_ip(version));
            rig.change(|setup| setup.masquerades_all = false)?;
            send(rig, (Door::Ingress, POD), Segment::tcp(client, frontend, SYN).build())?;
            masquerade(rig)?;
            let data = Segment::tcp(client, frontend, ACK);
            let sent = send(rig, (Door::Ingress, POD), data.build())?;
            ensure!(sent.frame == data.between(client, THERE.backend(version)).build(), "{sent:?}");
        }
        rig.compare_flows()
    })
}
