// SPDX-License-Identifier: MIT OR Apache-2.0
//! Translation, there and back.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::flow::{
    protocol,
    tcp_flags::{ACK, SYN},
};
use shunt_tests::{
    packets::{
        POD, Rig, SECOND, Segment, UPLINK,
        node::{
            self, CALLER, ELSEWHERE, GATEWAY, HAIRPIN, HERE, NAMELESS, NODE, OUTSIDE, SECOND_GATEWAY, Service, THERE,
            UNRESOLVED, pick,
        },
        with_rig,
    },
    reference::{Door, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, begun, continued, end, first, replied, send, source_port, take};

const LEFT_TO_TC: &str = "left-to-tc=1";

/// Runs a test for both versions and protocols on one node.
fn for_all(test: impl Fn(&mut Rig, Version, u8) -> Result<()> + Sync) -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                test(rig, version, protocol)?;
            }
        }
        Ok(())
    })
}

#[test]
fn cluster_ip_from_a_pod() -> Result<()> {
    for_all(|rig, version, protocol| {
        for service in [HERE, THERE] {
            let (client, frontend) = (end(CALLER, version, 40_000), service.at_cluster_ip(version));
            kept_source(
                rig,
                (Door::Ingress, POD),
                version,
                first(protocol, client, frontend),
                (client, frontend),
                service,
            )?;
        }
        Ok(())
    })
}

/// Rigs take turns with the CPUs.
#[test]
fn every_cpu_counts_in_its_own_place() -> Result<()> {
    for port in 40_020..40_024 {
        with_rig(node::setup, |rig| {
            let (client, frontend) = (end(CALLER, Version::V4, port), HERE.at_cluster_ip(Version::V4));
            let first = first(protocol::TCP, client, frontend);
            kept_source(rig, (Door::Ingress, POD), Version::V4, first, (client, frontend), HERE)?;
            ensure!(rig.are_counted_here()?);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn node_port_with_a_backend_here_keeps_the_client() -> Result<()> {
    for_all(|rig, version, protocol| {
        for (door, port) in [(Door::Xdp, 40_001), (Door::Ingress, 40_002)] {
            let (client, frontend) = (end(OUTSIDE, version, port), HERE.at_node(version));
            kept_source(rig, (door, UPLINK), version, first(protocol, client, frontend), (client, frontend), HERE)?;
        }
        Ok(())
    })
}

/// A flow whose client keeps its address: there at ingress, back at egress of the same device.
fn kept_source(
    rig: &mut Rig,
    at: (Door, u32),
    version: Version,
    packet: Segment,
    (client, frontend): (SocketAddr, SocketAddr),
    service: Service,
) -> Result<()> {
    let (index, backend) = (service.index(version), service.backend(version));
    let len = packet.build().len();
    let there = packet.clone().between(client, backend).build();
    let (reply, back) = (packet.clone().between(backend, client), packet.clone().between(frontend, client));
    let step = |what, at, frame, output, moved| Step { what, at, frame, verdict: Verdict::Pass, output, moved };
    take(
        rig,
        [
            step("first", at, packet.build(), there.clone(), begun(index, len)),
            step("second", at, packet.build(), there, continued(index, len)),
            step("reply", (Door::Egress, at.1), reply.build(), back.build(), replied(index, len)),
            Step::untouched("reply, before it leaves", (Door::Ingress, POD), reply.build(), ""),
        ],
    )
}

#[test]
fn node_port_with_a_backend_on_another_node_translates_the_source() -> Result<()> {
    for_all(|rig, version, protocol| {
        for (door, port, verdict) in
            [(Door::Xdp, 40_001, Verdict::Transmit), (Door::Ingress, 40_002, Verdict::Redirect)]
        {
            let to_gateway = rig.network.ethernet(UPLINK, pick(GATEWAY, version));
            let (client, frontend) = (end(OUTSIDE, version, port), THERE.at_node(version));
            let packet = first(protocol, client, frontend);
            let there = Leg { at: (door, UPLINK), verdict, ethernet: to_gateway };
            let back = Leg { at: (door, UPLINK), verdict, ethernet: to_gateway };
            translated_source(rig, version, &packet, (client, frontend), (THERE, pick(NODE, version)), &[there, back])?;
        }
        Ok(())
    })
}

#[test]
fn a_way_by_another_uplink_takes_its_address() -> Result<()> {
    for_all(|rig, version, protocol| {
        let own = rig.network.addresses[&SECOND][&version];
        let (client, frontend) = (end(OUTSIDE, version, 40_001), ELSEWHERE.at_node(version));
        let packet = first(protocol, client, frontend);
        let there = Leg {
            at: (Door::Ingress, UPLINK),
            verdict: Verdict::Redirect,
            ethernet: rig.network.ethernet(SECOND, pick(SECOND_GATEWAY, version)),
        };
        // The first uplink takes frames from XDP, so the way back needs no TC.
        let back = Leg {
            at: (Door::Xdp, SECOND),
            verdict: Verdict::Redirect,
            ethernet: rig.network.ethernet(UPLINK, pick(GATEWAY, version)),
        };
        // The second does not.
        let index = ELSEWHERE.index(version);
        let begun = format!("{LEFT_TO_TC} service{index}.flows=1 backend{index}.flows=1");
        take(
            rig,
            [
                Step::untouched("XDP", (Door::Xdp, UPLINK), packet.build(), &begun),
                Step::untouched("XDP again", (Door::Xdp, UPLINK), packet.build(), LEFT_TO_TC),
            ],
        )?;
        going_on(rig, version, &packet, (client, frontend), (ELSEWHERE, own), &[there, back])
    })
}

#[test]
fn a_neighbour_that_must_be_asked_is_left_to_the_kernel() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), UNRESOLVED.at_node(version));
        let packet = first(protocol, client, frontend);
        let outcome = send(rig, (Door::Ingress, UPLINK), packet.build())?;
        let node = SocketAddr::new(pick(NODE, version), source_port(&outcome.frame, version));
        // The Ethernet addresses are the kernel's to write.
        let expected = packet.between(node, UNRESOLVED.backend(version)).ttl(63).build();
        ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == expected, "{outcome:?}");
        rig.compare_flows()
    })
}

#[test]
fn a_device_without_addresses_takes_the_nodes() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), NAMELESS.at_node(version));
        let packet = first(protocol, client, frontend);
        let neighbour = NAMELESS.backend(version).ip();
        let there = Leg {
            at: (Door::Ingress, UPLINK),
            verdict: Verdict::Redirect,
            ethernet: rig.network.ethernet(shunt_tests::packets::BARE, neighbour),
        };
        translated_source(rig, version, &packet, (client, frontend), (NAMELESS, pick(NODE, version)), &[there])
    })
}

#[test]
fn hairpin_to_the_client_itself_translates_the_source() -> Result<()> {
    for_all(|rig, version, protocol| {
        let own = rig.network.addresses[&POD][&version];
        let (client, frontend) = (end(CALLER, version, 40_000), HAIRPIN.at_cluster_ip(version));
        let packet = first(protocol, client, frontend);
        let ethernet = rig.network.ethernet(POD, client.ip());
        let leg = || Leg { at: (Door::Ingress, POD), verdict: Verdict::Redirect, ethernet };
        translated_source(rig, version, &packet, (client, frontend), (HAIRPIN, own), &[leg(), leg()])
    })
}

/// How one direction of a source-translated flow arrives and leaves.
struct Leg {
    at: (Door, u32),
    verdict: Verdict,
    ethernet: [u8; 12],
}

/// A new flow whose source is translated to `own`, there and, if there are two legs, back.
fn translated_source(
    rig: &mut Rig,
    version: Version,
    packet: &Segment,
    ends: (SocketAddr, SocketAddr),
    to: (Service, std::net::IpAddr),
    legs: &[Leg],
) -> Result<()> {
    let outcome = send(rig, legs[0].at, packet.build())?;
    let moved = begun(to.0.index(version), packet.build().len());
    ensure!(outcome.moved.to_string() == moved, "first: moved {}, not {moved}", outcome.moved);
    going_on(rig, version, packet, ends, to, legs)
}

/// The same for a flow that has begun.
fn going_on(
    rig: &mut Rig,
    version: Version,
    packet: &Segment,
    (client, frontend): (SocketAddr, SocketAddr),
    (service, own): (Service, std::net::IpAddr),
    legs: &[Leg],
) -> Result<()> {
    let (index, backend, len) = (service.index(version), service.backend(version), packet.build().len());
    // Which port it is, the model knows; that it is one of the range, and the same for all packets, is seen here.
    let probe = send(rig, legs[0].at, packet.build())?;
    let port = source_port(&probe.frame, version);
    ensure!(rig.model().setup.is_source_port(port), "port {port}");
    let node = SocketAddr::new(own, port);
    let forwarded = |packet: Segment, leg: &Leg| packet.ttl(63).ethernet(leg.ethernet).build();
    let there = Step {
        what: "there",
        at: legs[0].at,
        frame: packet.build(),
        verdict: legs[0].verdict,
        output: forwarded(packet.clone().between(node, backend), &legs[0]),
        moved: continued(index, len),
    };
    let back = legs.get(1).map(|leg| Step {
        what: "back",
        at: leg.at,
        frame: packet.clone().between(backend, node).build(),
        verdict: leg.verdict,
        output: forwarded(packet.clone().between(frontend, client), leg),
        moved: replied(index, len),
    });
    take(rig, [there].into_iter().chain(back))
}

#[test]
fn payload_and_segment_flags_are_left_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
            let begin = Segment::tcp(client, frontend, SYN);
            send(rig, (Door::Xdp, UPLINK), begin.build())?;
            // Odd lengths: the last byte of the checksum's last word is padding.
            for (door, payload) in [(Door::Xdp, &b"odd"[..]), (Door::Ingress, b"even"), (Door::Ingress, &[0xff; 1399])]
            {
                let packet = Segment::tcp(client, frontend, ACK).payload(payload);
                let output = packet.clone().between(client, HERE.backend(version)).build();
                let moved = continued(HERE.index(version), output.len());
                let (frame, verdict) = (packet.build(), Verdict::Pass);
                take(rig, [Step { what: "data", at: (door, UPLINK), frame, verdict, output, moved }])?;
            }
        }
        Ok(())
    })
}

#[test]
fn udp_without_a_checksum_stays_without() -> Result<()> {
    with_rig(node::setup, |rig| {
        for (door, port) in [(Door::Xdp, 40_001), (Door::Ingress, 40_002)] {
            let (client, frontend) = (end(OUTSIDE, Version::V4, port), HERE.at_node(Version::V4));
            let packet = Segment::udp(client, frontend);
            let frame = unchecked(packet.build());
            let output = unchecked(packet.between(client, HERE.backend(Version::V4)).build());
            let moved = begun(HERE.index(Version::V4), output.len());
            take(rig, [Step { what: "UDP", at: (door, UPLINK), frame, verdict: Verdict::Pass, output, moved }])?;
        }
        Ok(())
    })
}

/// An IPv4 datagram without its checksum.
fn unchecked(mut frame: Vec<u8>) -> Vec<u8> {
    frame[14 + 20 + 6..][..2].fill(0);
    frame
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_written_as_ffff() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let check_at = 14 + if version == Version::V4 { 20 } else { 40 } + 6;
            for (door, port) in [(Door::Xdp, 40_001), (Door::Ingress, 40_002)] {
                let (client, frontend) = (end(OUTSIDE, version, port), HERE.at_node(version));
                let translated =
                    |payload: u16| Segment::udp(client, HERE.backend(version)).payload(&payload.to_be_bytes()).build();
                let is_all_ones = |payload: &u16| translated(*payload)[check_at..][..2] == [0xff, 0xff];
                let payload = (0..=u16::MAX).find(is_all_ones).expect("one of all sums");
                let frame = Segment::udp(client, frontend).payload(&payload.to_be_bytes()).build();
                let output = translated(payload);
                let moved = begun(HERE.index(version), output.len());
                take(rig, [Step { what: "UDP", at: (door, UPLINK), frame, verdict: Verdict::Pass, output, moved }])?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_stranger_is_let_alone() -> Result<()> {
    for_all(|rig, version, protocol| {
        let strangers = [
            (
                "another port of a Service",
                first(protocol, end(CALLER, version, 40_000), end(node::CLUSTER_IP, version, 9)),
            ),
            ("another port of the node", first(protocol, end(OUTSIDE, version, 40_000), end(NODE, version, 22))),
            ("another address", first(protocol, end(CALLER, version, 40_000), end(OUTSIDE, version, 80))),
        ];
        for (what, packet) in strangers {
            let steps = Door::ALL.map(|door| Step::untouched(what, (door, UPLINK), packet.build(), ""));
            take(rig, steps)?;
        }
        // A ClusterIP's port is no NodePort, and the other way round.
        let wrong = end(NODE, version, HERE.port);
        take(
            rig,
            [Step::untouched(
                "wrong",
                (Door::Ingress, UPLINK),
                first(protocol, end(OUTSIDE, version, 1), wrong).build(),
                "",
            )],
        )
    })
}

#[test]
fn another_protocol_is_let_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        let mut frame = Segment::udp(end(OUTSIDE, Version::V4, 40_000), HERE.at_node(Version::V4)).build();
        // What is encrypted (RFC 4303).
        frame[14 + 9] = 50;
        take(rig, Door::ALL.map(|door| Step::untouched("ESP", (door, UPLINK), frame.clone(), "")))
    })
}
