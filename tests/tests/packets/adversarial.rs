// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets that somebody has spoilt on purpose: every kind that there is, cut off after every byte, with every length that
//! is wrong, and with every bit turned. Programs and model must agree about each, and each that is only cut must be harmless.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        ETHERNET, Error, POD, Rig, Segment, UPLINK, behind_headers, fragments,
        node::{self, CALLER, CLUSTER_IP, EMPTY, GATEWAY, HERE, NODE, OUTSIDE, Service, THERE, pick},
        tagged, with_options,
    },
    reference::{Arrival, Door, Verdict, Version},
};

use crate::{
    step::{end, first, send, source_port},
    workers::share,
};

const IP: usize = 14;
/// Bytes of a frame whose bits are turned: all headers, and of a packet within a packet too.
const HEADERS: usize = 150;

/// A packet that something comes of.
struct Case {
    what: &'static str,
    at: (Door, u32),
    frame: Vec<u8>,
}

/// Doors that a packet may come to which belongs at this one: XDP is where others arrive first.
fn doors(door: Door) -> &'static [Door] {
    if door == Door::Egress { &[Door::Egress] } else { &Door::IN }
}

/// Runs a test on each case, on a node where the flows of all of them have begun.
fn for_each_case(test: impl Fn(&mut Rig, &Case) -> Result<()> + Send + Sync) -> Result<()> {
    let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP];
    let pairs: Vec<_> =
        Version::BOTH.into_iter().flat_map(|version| protocols.map(|protocol| (version, protocol))).collect();
    share(pairs.len(), |rig, piece, (): &mut ()| {
        let (version, protocol) = pairs[piece];
        let count = begin(rig, version, protocol)?.len();
        for number in 0..count {
            // Afresh, whatever the case before has ended.
            let case = begin(rig, version, protocol)?.swap_remove(number);
            test(rig, &case).with_context(|| format!("{}: {version:?}, protocol {protocol}", case.what))?;
            rig.compare_flows().with_context(|| format!("after {}", case.what))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Begins flows, and gives packets of theirs, about them, and of others.
fn begin(rig: &mut Rig, version: Version, protocol: u8) -> Result<Vec<Case>> {
    let mut setup = node::setup(&rig.network);
    setup.guarded.insert(pick(CLUSTER_IP, version));
    setup.rejects_per_tick = u32::MAX;
    rig.restart(setup)?;
    let client = end(OUTSIDE, version, 40_000);
    let whole = |src, dst| first(protocol, src, dst).payload(b"sixteen bytes or so").build();
    let translate = |rig: &mut Rig, service: Service| -> Result<Vec<u8>> {
        Ok(send(rig, (Door::Ingress, UPLINK), whole(client, service.at_node(version)))?.frame)
    };
    let (here, there) = (translate(rig, HERE)?, translate(rig, THERE)?);
    let own = SocketAddr::new(pick(NODE, version), source_port(&there, version));
    let (reply_here, reply_there) = (whole(HERE.backend(version), client), whole(THERE.backend(version), own));
    let arrives = (Door::Ingress, UPLINK);
    let leaves = (Door::Egress, UPLINK);
    let mut cases = vec![
        Case { what: "new", at: arrives, frame: whole(end(OUTSIDE, version, 41_000), HERE.at_node(version)) },
        Case { what: "known", at: arrives, frame: whole(client, HERE.at_node(version)) },
        Case { what: "known, forwarded", at: arrives, frame: whole(client, THERE.at_node(version)) },
        Case { what: "reply", at: leaves, frame: reply_here.clone() },
        Case { what: "reply, forwarded", at: arrives, frame: reply_there },
        Case {
            what: "refused",
            at: (Door::Ingress, POD),
            frame: whole(end(CALLER, version, 41_000), EMPTY.at_cluster_ip(version)),
        },
    ];
    let known = whole(client, HERE.at_node(version));
    cases.push(Case { what: "longer headers", at: arrives, frame: lengthen(&known) });
    cases.push(Case { what: "reply with longer headers", at: leaves, frame: lengthen(&reply_here) });
    cases.extend(of_fragments(rig, version, protocol)?);
    cases.extend(of_errors(version, [&here, &there, &reply_of(protocol, version)]));
    cases.push(Case { what: "tags", at: (Door::Xdp, UPLINK), frame: tagged(&known, &[(0x88a8, 5), (0x8100, 6)]) });
    Ok(cases)
}

/// A reply as the client sees it.
fn reply_of(protocol: u8, version: Version) -> Vec<u8> {
    first(protocol, HERE.at_node(version), end(OUTSIDE, version, 40_000)).build()
}

/// Fragments of datagrams whose first ones have passed.
fn of_fragments(rig: &mut Rig, version: Version, protocol: u8) -> Result<Vec<Case>> {
    let (client, backend) = (end(OUTSIDE, version, 40_000), HERE.backend(version));
    let cut = |segment: Segment| fragments(&segment.payload(&[0x5a; 80]).build(), 0x1234, 40);
    let (there, back) = (cut(first(protocol, client, HERE.at_node(version))), cut(first(protocol, backend, client)));
    send(rig, (Door::Ingress, UPLINK), there[0].clone())?;
    send(rig, (Door::Egress, UPLINK), back[0].clone())?;
    let case = |what, door, frame: &Vec<u8>| Case { what, at: (door, UPLINK), frame: frame.clone() };
    Ok(vec![
        case("first fragment", Door::Ingress, &there[0]),
        case("later fragment", Door::Ingress, &there[1]),
        case("last fragment", Door::Ingress, there.last().context("three of them")?),
        case("first fragment of a reply", Door::Egress, &back[0]),
        case("later fragment of a reply", Door::Egress, &back[1]),
    ])
}

/// Errors about a packet as the backend here got it, as the backend elsewhere did, and about a reply as the client did.
fn of_errors(version: Version, [here, there, reply]: [&[u8]; 3]) -> Vec<Case> {
    let error = |source, destination, quote: &[u8]| {
        let kind = if version == Version::V4 { (3, 4) } else { (2, 0) };
        Error { source, destination, kind, word: [0, 0, 5, 0x14], ttl: 64, ethernet: ETHERNET }.build(quote)
    };
    let (client, node, router) = (pick(OUTSIDE, version), pick(NODE, version), pick(GATEWAY, version));
    let backend = HERE.backend(version).ip();
    let longer = lengthen(here);
    vec![
        Case { what: "error to the client", at: (Door::Egress, UPLINK), frame: error(backend, client, &here[IP..]) },
        Case { what: "error to be forwarded", at: (Door::Ingress, UPLINK), frame: error(router, node, &there[IP..]) },
        Case { what: "error to the backend", at: (Door::Ingress, UPLINK), frame: error(client, node, &reply[IP..]) },
        Case {
            what: "error about longer headers",
            at: (Door::Egress, UPLINK),
            frame: lengthen(&error(backend, client, &longer[IP..])),
        },
    ]
}

/// With options, or behind three extension headers.
fn lengthen(frame: &[u8]) -> Vec<u8> {
    if frame[12] == 0x08 {
        return with_options(frame, &[1, 1, 1, 1, 7, 4, 4, 0]);
    }
    let last = frame[IP + 6];
    let headers = [[60, 0, 1, 4, 0, 0, 0, 0], [44, 0, 1, 4, 0, 0, 0, 0], [last, 0, 0, 0, 0, 0, 0, 9]];
    behind_headers(frame, 0, &headers.concat())
}

/// One packet through both, if the kernel will test it.
fn try_both(rig: &mut Rig, (door, ifindex): (Door, u32), frame: Vec<u8>) -> Result<()> {
    rig.try_send(&Arrival { door, ifindex, arrived_by: 0, frame, is_trace: false }).map(drop)
}

#[test]
fn packets_cut_off_after_every_byte() -> Result<()> {
    for_each_case(|rig, case| {
        for door in Door::ALL {
            for len in IP..case.frame.len() {
                let frame = case.frame[..len].to_vec();
                let arrival = Arrival { door, ifindex: case.at.1, arrived_by: 0, frame, is_trace: false };
                let Some(outcome) = rig.try_send(&arrival).with_context(|| format!("{len} bytes"))? else { continue };
                let is_harmless = outcome.verdict == Verdict::Pass && outcome.frame == arrival.frame;
                ensure!(is_harmless, "{len} bytes at {door:?}: {outcome}");
            }
        }
        Ok(())
    })
}

#[test]
fn packets_with_every_bit_turned() -> Result<()> {
    for_each_case(|rig, case| {
        for &door in doors(case.at.0) {
            for bit in 0..8 * case.frame.len().min(HEADERS) {
                let mut frame = case.frame.clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                try_both(rig, (door, case.at.1), frame)
                    .with_context(|| format!("bit {} of byte {}", bit % 8, bit / 8))?;
            }
        }
        Ok(())
    })
}

#[test]
fn packets_with_every_length_wrong() -> Result<()> {
    for_each_case(|rig, case| {
        for &door in doors(case.at.0) {
            for at in IP..case.frame.len().min(HEADERS) {
                for bytes in wrong_lengths(&case.frame, at) {
                    let mut frame = case.frame.clone();
                    frame[at..at + bytes.len()].copy_from_slice(&bytes);
                    try_both(rig, (door, case.at.1), frame).with_context(|| format!("{bytes:?} at byte {at}"))?;
                }
            }
        }
        Ok(())
    })
}

/// Whether a header may have its length here: IPv4's first byte, TCP's thirteenth, the second of an extension header.
fn is_length_of_byte(frame: &[u8], at: usize) -> bool {
    let is_behind_next_header = matches!(frame[at - 1], 6 | 17 | 44 | 60 | 132);
    matches!(frame[at], 0x45..=0x50) || frame[at] == 0 && is_behind_next_header && at >= IP + 40
}

/// What may stand at a byte that is or begins a length: of one byte everything, of two what is near the truth or extreme.
fn wrong_lengths(frame: &[u8], at: usize) -> Vec<Vec<u8>> {
    let mut wrong = Vec::new();
    if is_length_of_byte(frame, at) {
        wrong.extend((0..=u8::MAX).map(|value| vec![value]));
    }
    if let Some(&[high, low]) = frame.get(at..at + 2)
        && at.is_multiple_of(2)
        && (1..=frame.len()).contains(&usize::from(u16::from_be_bytes([high, low])))
    {
        let right = u16::from_be_bytes([high, low]);
        let near = (1..=40).flat_map(|by| [right.wrapping_sub(by), right.wrapping_add(by)]);
        wrong.extend(near.chain([0, 1, 7, 8, 0x7fff, 0x8000, u16::MAX]).map(|value| value.to_be_bytes().to_vec()));
    }
    wrong
}
