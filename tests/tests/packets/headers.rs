// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv4 options and IPv6 extension headers: walked over within bounds, and left as they are.

use anyhow::Result;
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK, behind_headers,
        node::{self, CALLER, HERE, NODE, OUTSIDE, THERE, pick},
        with_options, with_rig,
    },
    reference::{Door, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, begun, continued, end, first, replied, send, take};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;

/// Extension headers by kind and length.
fn chain(headers: &[(u8, usize)], last: u8) -> Vec<u8> {
    let nexts = headers.iter().skip(1).map(|(kind, _)| *kind).chain([last]);
    let header = |(&(kind, len), next): (&(u8, usize), u8)| {
        let units = if kind == AUTHENTICATION { len / 4 - 2 } else { len / 8 - 1 };
        let mut header = vec![next, units as u8];
        header.resize(len, 0);
        header
    };
    headers.iter().zip(nexts).flat_map(header).collect()
}

/// The frame behind extension headers.
fn extended(packet: &Segment, protocol: u8, headers: &[(u8, usize)]) -> Vec<u8> {
    behind_headers(&packet.build(), headers[0].0, &chain(headers, protocol))
}

#[test]
fn a_packet_with_options_is_translated() -> Result<()> {
    with_rig(node::setup, |rig| {
        for protocol in PROTOCOLS {
            let mut port = 40_000;
            for words in 1..=10 {
                // Options that do nothing.
                let shape = |packet: &Segment| with_options(&packet.build(), &vec![1; 4 * words]);
                port += 1;
                translated(rig, Version::V4, protocol, port, shape)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_packet_behind_extension_headers_is_translated() -> Result<()> {
    let chains: [&[(u8, usize)]; 6] = [
        &[(HOP_BY_HOP, 8)],
        &[(ROUTING, 24)],
        &[(OPTIONS, 256)],
        &[(AUTHENTICATION, 28)],
        &[(HOP_BY_HOP, 8), (OPTIONS, 16), (ROUTING, 8), (AUTHENTICATION, 24), (OPTIONS, 8)],
        &[(OPTIONS, 8), (OPTIONS, 8), (OPTIONS, 8), (OPTIONS, 8), (OPTIONS, 8), (OPTIONS, 216)],
    ];
    with_rig(node::setup, |rig| {
        for protocol in PROTOCOLS {
            for (port, chain) in (40_000..).zip(chains) {
                translated(rig, Version::V6, protocol, port, |packet| extended(packet, protocol, chain))?;
            }
        }
        Ok(())
    })
}

/// There, again, and back.
fn translated(
    rig: &mut Rig,
    version: Version,
    protocol: u8,
    port: u16,
    shape: impl Fn(&Segment) -> Vec<u8>,
) -> Result<()> {
    let (client, frontend, backend) = (end(OUTSIDE, version, port), HERE.at_node(version), HERE.backend(version));
    let packet = first(protocol, client, frontend);
    let (index, len) = (HERE.index(version), shape(&packet).len());
    let step = |what, at, frame, output, moved| Step { what, at, frame, verdict: Verdict::Pass, output, moved };
    let (there, reply) = (packet.clone().between(client, backend), packet.clone().between(backend, client));
    let (packet, back) = (shape(&packet), shape(&packet.between(frontend, client)));
    take(
        rig,
        [
            step("first", (Door::Xdp, UPLINK), packet.clone(), shape(&there), begun(index, len)),
            step("second", (Door::Ingress, UPLINK), packet, shape(&there), continued(index, len)),
            step("reply", (Door::Egress, UPLINK), shape(&reply), back, replied(index, len)),
        ],
    )
}

#[test]
fn more_headers_than_are_followed_are_dropped_where_only_a_service_can_be_meant() -> Result<()> {
    let too_many: [&[(u8, usize)]; 3] =
        [&[(OPTIONS, 8); 7], &[(OPTIONS, 264)], &[(HOP_BY_HOP, 128), (OPTIONS, 128), (ROUTING, 8)]];
    with_rig(node::setup, |rig| {
        let version = Version::V6;
        rig.change(|setup| {
            setup.guarded.insert(pick(node::CLUSTER_IP, version));
        })?;
        for protocol in PROTOCOLS {
            for headers in too_many {
                let to_service = first(protocol, end(CALLER, version, 1), HERE.at_cluster_ip(version));
                let to_node = first(protocol, end(OUTSIDE, version, 1), HERE.at_node(version));
                let (to_service, to_node) =
                    (extended(&to_service, protocol, headers), extended(&to_node, protocol, headers));
                for door in Door::IN {
                    let moved = "too-many-headers=1";
                    take(
                        rig,
                        [
                            Step::dropped("to a ClusterIP", (door, POD), to_service.clone(), moved),
                            Step::untouched("to the node", (door, UPLINK), to_node.clone(), moved),
                        ],
                    )?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn headers_that_end_within_the_chain_are_malformed() -> Result<()> {
    with_rig(node::setup, |rig| {
        let version = Version::V6;
        let packet = first(protocol::UDP, end(OUTSIDE, version, 1), HERE.at_node(version));
        let headers = chain(&[(HOP_BY_HOP, 16), (OPTIONS, 8)], protocol::UDP);
        let whole = behind_headers(&packet.build(), HOP_BY_HOP, &headers);
        // As a bad sender makes them: the length says the same as the frame.
        for len in 14 + 40 + 8..14 + 40 + headers.len() + 8 {
            let mut frame = whole[..len].to_vec();
            frame[14 + 5] = (len - 14 - 40) as u8;
            take(rig, Door::IN.map(|door| Step::untouched("cut off", (door, UPLINK), frame.clone(), "malformed=1")))?;
        }
        Ok(())
    })
}

#[test]
fn rule_44_another_protocol_behind_extension_headers_is_let_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        let version = Version::V6;
        let packet = first(protocol::UDP, end(OUTSIDE, version, 1), HERE.at_node(version));
        // No next header, and what is encrypted.
        for protocol in [59, 50] {
            let frame = extended(&packet, protocol, &[(OPTIONS, 8)]);
            take(rig, Door::ALL.map(|door| Step::untouched("other", (door, UPLINK), frame.clone(), "")))?;
        }
        Ok(())
    })
}

#[test]
fn a_refused_packet_behind_headers_is_answered() -> Result<()> {
    with_rig(node::setup, |rig| {
        for (version, service) in [(Version::V4, node::EMPTY), (Version::V6, node::EMPTY)] {
            let packet = first(protocol::TCP, end(OUTSIDE, version, 40_000), service.at_node(version));
            let frame = match version {
                Version::V4 => with_options(&packet.build(), &[1; 8]),
                Version::V6 => extended(&packet, protocol::TCP, &[(OPTIONS, 16)]),
            };
            let outcome = send(rig, (Door::Ingress, UPLINK), frame.clone())?;
            let quoted = shunt_tests::packets::port_unreachable(&frame, pick(NODE, version), pick(OUTSIDE, version));
            anyhow::ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == quoted, "{outcome:?}");
        }
        let frame = with_options(
            &first(protocol::TCP, end(OUTSIDE, Version::V4, 1), THERE.at_node(Version::V4)).ttl(1).build(),
            &[1; 8],
        );
        let outcome = send(rig, (Door::Ingress, UPLINK), frame)?;
        anyhow::ensure!(outcome.verdict == Verdict::Redirect, "{outcome:?}");
        Ok(())
    })
}
