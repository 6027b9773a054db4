// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP: translated like TCP, under its own checksum (rule 62).

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::flow::{FlowState, protocol};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK, chunk, fragments, icmp_error,
        node::{self, EMPTY, GATEWAY, HERE, NODE, OUTSIDE, THERE, pick},
        port_unreachable, with_rig,
    },
    reference::{Door, Tuple, Verdict, Version},
};

use crate::step::{Step, begun, continued, end, replied, send, source_port, take};

/// Chunk types beside those that the model knows: COOKIE ECHO.
const COOKIE_ECHO: u8 = 10;
const INIT_ACK: u8 = 2;

fn for_both(test: impl Fn(&mut Rig, Version) -> Result<()> + Sync) -> Result<()> {
    with_rig(node::setup, |rig| Version::BOTH.iter().try_for_each(|&version| test(rig, version)))
}

#[test]
fn rule_62_sctp_is_translated_there_and_back() -> Result<()> {
    for_both(|rig, version| {
        for (door, port) in [(Door::Xdp, 40_001), (Door::Ingress, 40_002)] {
            let (client, frontend, backend) =
                (end(OUTSIDE, version, port), HERE.at_node(version), HERE.backend(version));
            let index = HERE.index(version);
            // Of many lengths, as the checksum's correction depends on them.
            for (number, len) in [0, 4, 8, 36, 252, 1000, 1396].into_iter().enumerate() {
                let kind = if number == 0 { chunk::INIT } else { chunk::DATA };
                let packet = Segment::sctp(client, frontend, kind).payload(&vec![0x5a; len]);
                let frame = packet.build();
                let output = packet.clone().between(client, backend).build();
                let moved = if number == 0 { begun(index, frame.len()) } else { continued(index, frame.len()) };
                let there = Step { what: "there", at: (door, UPLINK), frame, verdict: Verdict::Pass, output, moved };
                let frame = packet.clone().between(backend, client).build();
                let output = packet.between(frontend, client).build();
                let (at, moved) = ((Door::Egress, UPLINK), replied(index, frame.len()));
                take(rig, [there, Step { what: "back", at, frame, verdict: Verdict::Pass, output, moved }])?;
            }
        }
        Ok(())
    })
}

/// The checksum stands in the first fragment, and is over all of them.
#[test]
fn fragments_of_sctp_are_dropped_where_ports_change() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        send(rig, (Door::Ingress, UPLINK), Segment::sctp(client, frontend, chunk::INIT).build())?;
        for door in Door::IN {
            let packet = Segment::sctp(client, frontend, chunk::DATA).payload(&[0x5a; 200]);
            for (number, frame) in fragments(&packet.build(), 7, 64).into_iter().enumerate() {
                let at = (door, UPLINK);
                take(
                    rig,
                    [match number {
                        0 => Step::dropped("first", at, frame, "sctp-fragment=1"),
                        _ => Step::untouched("later", at, frame, "orphan-fragment=1"),
                    }],
                )?;
            }
        }
        Ok(())
    })
}

/// Where none changes the checksum holds: it is over no address.
#[test]
fn fragments_of_sctp_are_translated_where_ports_stay() -> Result<()> {
    for_both(|rig, version| {
        let frontend = HERE.at_node(version);
        let backend = SocketAddr::new(HERE.backend(version).ip(), frontend.port());
        rig.change(|setup| {
            setup.backends[HERE.index(version) as usize].address = Some((backend.ip(), backend.port()))
        })?;
        for (door, port) in [(Door::Xdp, 40_001), (Door::Ingress, 40_002)] {
            let client = end(OUTSIDE, version, port);
            let packet = Segment::sctp(client, frontend, chunk::DATA).payload(&[0x5a; 200]);
            let output = fragments(&packet.clone().between(client, backend).build(), u32::from(port), 64);
            for (frame, output) in fragments(&packet.build(), u32::from(port), 64).into_iter().zip(output) {
                let translated = send(rig, (door, UPLINK), frame)?;
                ensure!(translated.frame == output, "{translated}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_62_sctp_to_another_node_is_forwarded() -> Result<()> {
    for_both(|rig, version| {
        let ethernet = rig.network.ethernet(UPLINK, pick(GATEWAY, version));
        let (client, frontend) = (end(OUTSIDE, version, 40_001), THERE.at_node(version));
        let packet = Segment::sctp(client, frontend, chunk::INIT).payload(b"twenty bytes of INIT");
        let first = send(rig, (Door::Ingress, UPLINK), packet.build())?;
        let node = SocketAddr::new(pick(NODE, version), source_port(&first.frame, version));
        ensure!(rig.model().setup.is_source_port(node.port()), "{node}");
        for (door, verdict) in [(Door::Xdp, Verdict::Transmit), (Door::Ingress, Verdict::Redirect)] {
            let out = packet.clone().between(node, THERE.backend(version)).ttl(63).ethernet(ethernet).build();
            let moved = continued(THERE.index(version), out.len());
            take(
                rig,
                [Step { what: "there", at: (door, UPLINK), frame: packet.build(), verdict, output: out, moved }],
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_checksum_that_is_left_to_the_device_is_left_to_it() -> Result<()> {
    for_both(|rig, version| {
        let l4 = 14 + if version == Version::V4 { 20 } else { 40 };
        let unchecked = |packet: &Segment| {
            let mut frame = packet.build();
            frame[l4 + 8..l4 + 12].fill(0);
            frame
        };
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let packet = Segment::sctp(client, frontend, chunk::INIT);
        let frame = unchecked(&packet);
        let output = unchecked(&packet.between(client, HERE.backend(version)));
        let moved = begun(HERE.index(version), frame.len());
        let (at, verdict) = ((Door::Ingress, UPLINK), Verdict::Pass);
        take(rig, [Step { what: "unchecked", at, frame, verdict, output, moved }])
    })
}

#[test]
fn an_association_is_half_open_established_and_closing() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let tuple = Tuple { src: client, dst: frontend, protocol: protocol::SCTP };
        let (there, back) = ((client, frontend), (HERE.backend(version), client));
        for ((src, dst), kind, state) in [
            (there, chunk::INIT, FlowState::HALF_OPEN),
            // No answer yet: whoever says so has guessed.
            (there, COOKIE_ECHO, FlowState::HALF_OPEN),
            (back, INIT_ACK, FlowState::HALF_OPEN),
            (there, COOKIE_ECHO, FlowState::ESTABLISHED),
            (there, chunk::DATA, FlowState::ESTABLISHED),
            (there, chunk::SHUTDOWN_COMPLETE, FlowState::CLOSING),
            // Another one, between the same ports.
            (there, chunk::INIT, FlowState::HALF_OPEN),
            (there, chunk::ABORT, FlowState::CLOSING),
        ] {
            let door = if src == client { Door::Ingress } else { Door::Egress };
            send(rig, (door, UPLINK), Segment::sctp(src, dst, kind).build())?;
            rig.compare_flows()?;
            let entry = rig.model().flows.0[&tuple];
            ensure!(entry.state == state, "chunk {kind}: {entry:?}");
        }
        Ok(())
    })
}

#[test]
fn rule_58_an_association_keeps_a_backend_that_has_gone() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend, index) = (end(OUTSIDE, version, 40_001), HERE.at_node(version), HERE.index(version));
        send(rig, (Door::Ingress, UPLINK), Segment::sctp(client, frontend, chunk::INIT).build())?;
        rig.change(|setup| setup.backends[index as usize].generation += 1)?;
        let packet = Segment::sctp(client, frontend, chunk::DATA);
        let (frame, output) = (packet.build(), packet.between(client, HERE.backend(version)).build());
        let moved = continued(index, frame.len());
        let (at, verdict) = ((Door::Xdp, UPLINK), Verdict::Pass);
        take(rig, [Step { what: "data", at, frame, verdict, output, moved }])
    })
}

#[test]
fn rule_40_sctp_without_endpoints_is_refused() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), EMPTY.at_node(version));
        let frame = Segment::sctp(client, frontend, chunk::INIT).payload(&[0; 16]).build();
        let output = port_unreachable(&frame, pick(NODE, version), client.ip());
        let outcome = send(rig, (Door::Ingress, UPLINK), frame)?;
        ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == output, "{outcome:?}");
        Ok(())
    })
}

#[test]
fn rule_64_an_error_about_sctp_reaches_the_client() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend, backend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version), HERE.backend(version));
        let packet = Segment::sctp(client, frontend, chunk::INIT);
        let sent = packet.build();
        send(rig, (Door::Ingress, UPLINK), sent.clone())?;
        let kind = if version == Version::V4 { (3, 2) } else { (1, 4) };
        let frame = icmp_error(&packet.between(client, backend).build(), backend.ip(), client.ip(), kind, 0);
        let outcome = send(rig, (Door::Egress, UPLINK), frame.clone())?;
        // The checksum in the quotation is that of what the backend has got: the client can't check it, as it is over more.
        let check = frame.len() - (sent.len() - 14 - if version == Version::V4 { 20 } else { 40 }) + 8;
        let mut expected = icmp_error(&sent, frontend.ip(), client.ip(), kind, 0);
        expected[check..check + 4].copy_from_slice(&frame[check..check + 4]);
        let icmp = 14 + if version == Version::V4 { 20 } else { 40 } + 2;
        expected[icmp..icmp + 2].copy_from_slice(&outcome.frame[icmp..icmp + 2]);
        ensure!(outcome.verdict == Verdict::Pass && outcome.frame == expected, "{outcome:?}");
        ensure!(shunt_tests::reference::is_sound(&outcome.frame), "{outcome:?}");
        Ok(())
    })
}

#[test]
fn sctp_without_a_whole_header_is_malformed() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let frame = Segment::sctp(client, frontend, chunk::INIT).build();
        for (door, device) in [(Door::Xdp, UPLINK), (Door::Ingress, POD)] {
            // Without its chunk, and without the last byte of the common header.
            let len = frame.len() - 5;
            take(rig, [Step::untouched("cut off", (door, device), frame[..len].to_vec(), "malformed=1")])?;
        }
        Ok(())
    })
}
