// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors about translated packets (rule 64): they reach whoever sent the packet, in that one's words.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        ETHERNET, Error, POD, Rig, Segment, UPLINK, behind_headers,
        node::{self, GATEWAY, HERE, NODE, OUTSIDE, Service, THERE, pick},
        with_options, with_rig,
    },
    reference::{Door, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, continued, end, first, replied, send, source_port, take};

/// A router somewhere on the way.
const ROUTER: node::Both = ["198.18.7.7", "2001:db8:77::7"];

/// Errors of each version: unreachable port, too big, time exceeded.
const fn kinds(version: Version) -> [(u8, u8); 3] {
    match version {
        Version::V4 => [(3, 3), (3, 4), (11, 0)],
        Version::V6 => [(1, 4), (2, 0), (3, 0)],
    }
}

/// The IP packet of a frame, up to so many bytes of its layer 4.
fn quote(frame: &[u8], version: Version, l4_len: usize) -> Vec<u8> {
    let end = 14 + if version == Version::V4 { 20 } else { 40 } + l4_len;
    frame[14..end.min(frame.len())].to_vec()
}

fn error(source: IpAddr, destination: IpAddr, kind: (u8, u8)) -> Error {
    Error { source, destination, kind, word: [0, 0, 5, 120], ttl: 64, ethernet: ETHERNET }
}

/// A flow whose client keeps its address, seen from both sides.
struct Kept {
    /// As the client sends it.
    sent: Segment,
    /// As the backend gets it.
    got: Segment,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
}

fn kept(rig: &mut Rig, version: Version, protocol: u8) -> Result<Kept> {
    let (client, frontend, backend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version), HERE.backend(version));
    let sent = first(protocol, client, frontend).payload(b"an even number of bytes.");
    send(rig, (Door::Ingress, UPLINK), sent.build())?;
    Ok(Kept { got: sent.clone().between(client, backend), sent, client, frontend, backend })
}

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
fn rule_64_an_error_about_a_request_reaches_the_client() -> Result<()> {
    for_all(|rig, version, protocol| {
        let Kept { sent, got, client, frontend, backend } = kept(rig, version, protocol)?;
        // With and without the quoted checksum; 4 bytes of ports are the least.
        for len in [4, 8, 18, 20, 1000] {
            for kind in kinds(version) {
                let (sent, got) = (quote(&sent.build(), version, len), quote(&got.build(), version, len));
                for (from, named) in [(backend.ip(), frontend.ip()), (pick(ROUTER, version), pick(ROUTER, version))] {
                    let frame = error(from, client.ip(), kind).build(&got);
                    let output = error(named, client.ip(), kind).build(&sent);
                    let moved = replied(HERE.index(version), frame.len());
                    let (at, verdict) = ((Door::Egress, UPLINK), Verdict::Pass);
                    let there = Step { what: "error", at, frame: frame.clone(), verdict, output, moved };
                    take(rig, [Step::untouched("before it leaves", (Door::Ingress, POD), frame, ""), there])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn rule_64_an_error_about_a_reply_reaches_the_backend() -> Result<()> {
    for_all(|rig, version, protocol| {
        let Kept { sent, client, frontend, backend, .. } = kept(rig, version, protocol)?;
        let (sent, got) = (sent.clone().between(backend, client), sent.between(frontend, client));
        for kind in kinds(version) {
            for from in [client.ip(), pick(ROUTER, version)] {
                for door in Door::IN {
                    let frame = error(from, frontend.ip(), kind).build(&quote(&got.build(), version, 20));
                    let output = error(from, backend.ip(), kind).build(&quote(&sent.build(), version, 20));
                    let moved = continued(HERE.index(version), frame.len());
                    let (at, verdict) = ((door, UPLINK), Verdict::Pass);
                    take(rig, [Step { what: "error", at, frame, verdict, output, moved }])?;
                }
            }
        }
        Ok(())
    })
}

/// A flow whose client is this node to the backend.
fn forwarded(rig: &mut Rig, version: Version, protocol: u8) -> Result<(Segment, SocketAddr, SocketAddr)> {
    let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
    let sent = first(protocol, client, frontend).payload(b"odd");
    let begun = send(rig, (Door::Ingress, UPLINK), sent.build())?;
    let node = SocketAddr::new(pick(NODE, version), source_port(&begun.frame, version));
    Ok((sent, client, node))
}

/// An error that is sent on.
fn passed_on(rig: &Rig, error: Error, version: Version) -> Error {
    let ethernet = rig.network.ethernet(UPLINK, pick(GATEWAY, version));
    Error { ttl: error.ttl - 1, ethernet, ..error }
}

const DOORS: [(Door, Verdict); 2] = [(Door::Xdp, Verdict::Transmit), (Door::Ingress, Verdict::Redirect)];

#[test]
fn rule_64_errors_of_a_source_translated_flow_are_forwarded() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (sent, client, node) = forwarded(rig, version, protocol)?;
        let (frontend, backend, index) = (THERE.at_node(version), THERE.backend(version), THERE.index(version));
        let router = pick(ROUTER, version);
        for (door, verdict) in DOORS {
            for kind in kinds(version) {
                // About what this node has sent to the backend, for the client: routers are shown as they are.
                let got = sent.clone().between(node, backend);
                for (from, named) in [(backend.ip(), frontend.ip()), (router, router)] {
                    let frame = error(from, node.ip(), kind).build(&quote(&got.build(), version, 20));
                    let output = passed_on(rig, error(named, client.ip(), kind), version);
                    let output = output.build(&quote(&sent.build(), version, 20));
                    let moved = replied(index, frame.len());
                    take(rig, [Step { what: "to the client", at: (door, UPLINK), frame, verdict, output, moved }])?;
                }
                // About what it has sent to the client, for the backend, which knows nobody but this node.
                let (got, reply) = (sent.clone().between(frontend, client), sent.clone().between(backend, node));
                for from in [client.ip(), router] {
                    let frame = error(from, frontend.ip(), kind).build(&quote(&got.build(), version, 20));
                    let output = passed_on(rig, error(node.ip(), backend.ip(), kind), version);
                    let output = output.build(&quote(&reply.build(), version, 20));
                    let moved = continued(index, frame.len());
                    take(rig, [Step { what: "to the backend", at: (door, UPLINK), frame, verdict, output, moved }])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_at_the_end_of_its_ttl_is_dropped_and_not_answered() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (sent, _, node) = forwarded(rig, version, protocol)?;
        let got = sent.between(node, THERE.backend(version)).build();
        let error = Error { ttl: 1, ..error(pick(ROUTER, version), node.ip(), kinds(version)[0]) };
        let frame = error.build(&quote(&got, version, 20));
        let moved = "answer-forbidden=1 ttl-expired=1";
        take(
            rig,
            [
                Step::untouched("XDP", (Door::Xdp, UPLINK), frame.clone(), "left-to-tc=1"),
                Step::dropped("TC", (Door::Ingress, UPLINK), frame, moved),
            ],
        )
    })
}

#[test]
fn an_error_outlives_its_backend_and_does_not_keep_its_flow_alive() -> Result<()> {
    for_all(|rig, version, protocol| {
        let Kept { sent, got, client, frontend, backend } = kept(rig, version, protocol)?;
        let before = rig.model().flows.clone();
        rig.change(|setup| setup.backends[HERE.index(version) as usize].generation += 1)?;
        rig.wait(5)?;
        let kind = kinds(version)[0];
        let frame = error(backend.ip(), client.ip(), kind).build(&quote(&got.build(), version, 20));
        let output = error(frontend.ip(), client.ip(), kind).build(&quote(&sent.build(), version, 20));
        let moved = replied(HERE.index(version), frame.len());
        let (at, verdict) = ((Door::Egress, UPLINK), Verdict::Pass);
        take(rig, [Step { what: "error", at, frame, verdict, output, moved }])?;
        for (tuple, entry) in &rig.model().flows.0 {
            ensure!(entry.last_seen == before.0[tuple].last_seen.wrapping_sub(5), "{tuple:?}: {entry:?}");
        }
        rig.change(|setup| setup.backends[HERE.index(version) as usize].generation -= 1)?;
        rig.wait(100_000)
    })
}

#[test]
fn errors_behind_options_and_about_packets_with_options_are_translated() -> Result<()> {
    for_all(|rig, version, protocol| {
        let Kept { sent, got, client, frontend, backend } = kept(rig, version, protocol)?;
        // Timestamps that nobody fills in; destination options and a routing header.
        let extend = |frame: Vec<u8>| match version {
            Version::V4 => with_options(&frame, &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Version::V6 => behind_headers(&frame, 60, &[&[43, 0][..], &[0; 6], &[frame[20], 1], &[0; 14]].concat()),
        };
        let kind = kinds(version)[2];
        let frame = extend(error(backend.ip(), client.ip(), kind).build(&extend(got.build())[14..]));
        let output = extend(error(frontend.ip(), client.ip(), kind).build(&extend(sent.build())[14..]));
        let moved = replied(HERE.index(version), frame.len());
        let (at, verdict) = ((Door::Egress, UPLINK), Verdict::Pass);
        take(rig, [Step { what: "error", at, frame, verdict, output, moved }])
    })
}

#[test]
fn what_is_no_error_about_a_translated_packet_is_let_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let Kept { got, client, backend, frontend, .. } = kept(rig, version, protocol::UDP)?;
            let whole = got.build();
            let quote = quote(&whole, version, 8);
            let kind = kinds(version)[0];
            let other = |service: Service| Segment::udp(client, service.backend(version)).build()[14..].to_vec();
            let mut later = quote.clone();
            let mut encrypted = quote.clone();
            if version == Version::V4 {
                (later[7], encrypted[9]) = (1, 50);
            } else {
                (later[6], encrypted[6]) = (50, 59);
            }
            let strangers = [
                ("about another flow", error(backend.ip(), client.ip(), kind).build(&other(THERE))),
                ("about a fragment without ports", error(backend.ip(), client.ip(), kind).build(&later)),
                ("about another protocol", error(backend.ip(), client.ip(), kind).build(&encrypted)),
                ("without ports", error(backend.ip(), client.ip(), kind).build(&quote[..quote.len() - 5])),
                ("without a packet", error(backend.ip(), client.ip(), kind).build(&quote[..8])),
                (
                    "echo",
                    error(client.ip(), frontend.ip(), if version == Version::V4 { (8, 0) } else { (128, 0) })
                        .build(&quote),
                ),
            ];
            for (what, frame) in strangers {
                take(rig, Door::ALL.map(|door| Step::untouched(what, (door, UPLINK), frame.clone(), "")))?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_truncated_error_is_let_alone_wherever_it_ends() -> Result<()> {
    for_all(|rig, version, protocol| {
        let Kept { got, client, backend, .. } = kept(rig, version, protocol)?;
        let frame = error(backend.ip(), client.ip(), kinds(version)[0]).build(&quote(&got.build(), version, 20));
        for door in Door::ALL {
            for len in 14 + if version == Version::V4 { 20 } else { 40 }..frame.len() {
                let outcome = send(rig, (door, UPLINK), frame[..len].to_vec())?;
                let is_untouched = outcome.verdict == Verdict::Pass && outcome.frame == frame[..len];
                ensure!(is_untouched && outcome.moved.to_string().is_empty(), "{door:?}, {len} bytes: {outcome:?}");
            }
        }
        Ok(())
    })
}
