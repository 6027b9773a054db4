// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pending flows: a handshake is not a connection, and a question without an answer no exchange (cilium 24177, 20068). They yield their
//! places and their source ports; those that live do not.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_common::flow::{
    FlowState, protocol,
    tcp_flags::{ACK, FIN, RST, SYN},
};
use shunt_tests::{
    packets::{
        POD, Rig, Room, SECOND, SEQUENCE, Segment, UPLINK,
        node::{self, CALLER, HERE, NODE, OUTSIDE, THERE, pick},
        with_rig, with_rig_for,
    },
    reference::{Arrival, Door, Entry, Outcome, Tuple, Verdict, Version},
};

use crate::step::{ALL_PROTOCOLS, answer, end, first, next, send, source_port};

/// Number that no end of a connection here has.
const FORGED: u32 = 0x8000_0000;

fn state(rig: &Rig, src: SocketAddr, dst: SocketAddr, protocol: u8) -> Result<FlowState> {
    rig.compare_flows()?;
    let tuple = Tuple { src, dst, protocol };
    Ok(rig.kernel_flow(tuple)?.with_context(|| format!("no flow {tuple:?}"))?.state)
}

/// A packet that the model is not asked about.
fn send_unobserved(rig: &mut Rig, (door, ifindex): (Door, u32), packet: &Segment) -> Result<(Verdict, Vec<u8>)> {
    rig.send_unobserved(&Arrival { door, ifindex, arrived_by: 0, frame: packet.build(), is_trace: false })
}

/// A client outside and its way to the backend elsewhere: the node's end of it.
fn begin_there(rig: &mut Rig, packet: &Segment, version: Version) -> Result<SocketAddr> {
    let begun = send(rig, (Door::Xdp, UPLINK), packet.build())?;
    ensure!(begun.verdict == Verdict::Transmit, "{begun}");
    Ok(SocketAddr::new(pick(NODE, version), source_port(&begun.frame, version)))
}

#[test]
fn a_flow_is_established_when_the_client_speaks_again_after_an_answer() -> Result<()> {
    for protocol in ALL_PROTOCOLS {
        for version in Version::BOTH {
            with_rig(node::setup, |rig| {
                let (client, frontend) = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
                let (there, back) = ((Door::Ingress, POD), (Door::Egress, POD));
                let answer = answer(protocol, HERE.backend(version), client);
                let [begun, answered, established] = match protocol {
                    protocol::UDP => [FlowState::UNREPLIED, FlowState::REPLIED, FlowState::STREAM],
                    _ => [FlowState::HALF_OPEN, FlowState::HALF_OPEN, FlowState::ESTABLISHED],
                };
                for _ in 0..2 {
                    send(rig, there, first(protocol, client, frontend).build())?;
                    ensure!(state(rig, client, frontend, protocol)? == begun, "not without an answer");
                }
                send(rig, back, answer.build())?;
                ensure!(state(rig, client, frontend, protocol)? == answered, "nor with one that nobody takes up");
                send(rig, there, first(protocol, client, frontend).build())?;
                ensure!(state(rig, client, frontend, protocol)? == answered, "nor by sending the first one again");
                // Two ticks are more than two seconds, or a little less.
                rig.wait(3)?;
                send(rig, there, next(protocol, client, frontend).build())?;
                ensure!(state(rig, client, frontend, protocol)? == established, "now");
                send(rig, back, answer.build())?;
                ensure!(state(rig, client, frontend, protocol)? == established, "and it stays so");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Review B1: whoever knows the tuple could make a flow that outlives a flood.
#[test]
fn b1_a_spoofed_ack_establishes_nothing() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
            let at = (Door::Xdp, UPLINK);
            let node = begin_there(rig, &Segment::tcp(client, frontend, SYN), version)?;
            let ack = Segment::tcp(client, frontend, ACK);
            send(rig, at, ack.clone().acknowledging(FORGED).build())?;
            ensure!(state(rig, client, frontend, protocol::TCP)? == FlowState::HALF_OPEN, "without an answer");
            send(rig, at, Segment::tcp(THERE.backend(version), node, SYN | ACK).build())?;
            for acknowledged in [FORGED, 0, SEQUENCE, SEQUENCE.wrapping_sub(7)] {
                send(rig, at, ack.clone().acknowledging(acknowledged).build())?;
                let found = state(rig, client, frontend, protocol::TCP)?;
                ensure!(found == FlowState::HALF_OPEN, "{acknowledged:#x} is not the number of the SYN-ACK");
            }
            send(rig, at, ack.build())?;
            ensure!(state(rig, client, frontend, protocol::TCP)? == FlowState::ESTABLISHED, "the right one");
            // A connection met in its midst: no answer but an RST comes to a forged segment.
            let stranger = end(OUTSIDE, version, 40_001);
            begin_there(rig, &Segment::tcp(stranger, frontend, ACK).acknowledging(FORGED), version)?;
            for _ in 0..2 {
                send(rig, at, Segment::tcp(stranger, frontend, ACK).acknowledging(FORGED).build())?;
                ensure!(state(rig, stranger, frontend, protocol::TCP)? == FlowState::HALF_OPEN, "a stranger");
            }
        }
        Ok(())
    })
}

/// Review B2: an RST and then a SYN with the client's address moved its connection to another backend.
#[test]
fn b2_forged_rst_and_fin_end_no_connection() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
            let at = (Door::Xdp, UPLINK);
            let node = begin_there(rig, &Segment::tcp(client, frontend, SYN), version)?;
            let backend = THERE.backend(version);
            send(rig, at, Segment::tcp(backend, node, SYN | ACK).build())?;
            send(rig, at, Segment::tcp(client, frontend, ACK).build())?;
            for (src, dst) in [(client, frontend), (backend, node)] {
                for flags in [RST, RST | ACK, FIN | ACK] {
                    send(rig, at, Segment::tcp(src, dst, flags).sequence(FORGED).build())?;
                    ensure!(state(rig, client, frontend, protocol::TCP)? == FlowState::ESTABLISHED, "{flags:#x}");
                }
            }
            let syn = send(rig, at, Segment::tcp(client, frontend, SYN).sequence(FORGED).build())?;
            ensure!(syn.moved.services.is_empty(), "decided anew: {syn}");
            ensure!(source_port(&syn.frame, version) == node.port(), "moved to another port");
            let goes_on = send(rig, at, Segment::tcp(client, frontend, ACK).build())?;
            ensure!(source_port(&goes_on.frame, version) == node.port(), "{goes_on}");
            // The right ones do end it.
            send(rig, at, Segment::tcp(client, frontend, RST).sequence(SEQUENCE + 1).build())?;
            ensure!(state(rig, client, frontend, protocol::TCP)? == FlowState::RESET, "the right number");
        }
        Ok(())
    })
}

/// A FIN long after the handshake has a number far ahead of the SYN's: the flow keeps up with both ends.
#[test]
fn a_fin_after_a_long_transfer_is_believed() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
            let there = |flags| Segment::tcp(client, frontend, flags);
            let back = |flags| Segment::tcp(HERE.backend(version), client, flags);
            send(rig, (Door::Ingress, POD), there(SYN).build())?;
            send(rig, (Door::Egress, POD), back(SYN | ACK).build())?;
            let mut sequence = SEQUENCE;
            for _ in 0..300 {
                sequence = sequence.wrapping_add(50_000);
                send(rig, (Door::Ingress, POD), there(ACK).sequence(sequence).build())?;
                send(rig, (Door::Egress, POD), back(ACK).sequence(sequence).build())?;
            }
            send(rig, (Door::Ingress, POD), there(FIN | ACK).sequence(sequence).build())?;
            send(rig, (Door::Egress, POD), back(FIN | ACK).sequence(sequence).build())?;
            ensure!(state(rig, client, frontend, protocol::TCP)? == FlowState::CLOSING, "both ends");
        }
        Ok(())
    })
}

#[test]
fn a_refused_connection_is_never_established() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
            send(rig, (Door::Ingress, POD), first(protocol::TCP, client, frontend).build())?;
            // A refusal has no sequence number of its own.
            let reset = Segment::tcp(HERE.backend(version), client, RST | ACK).sequence(0);
            send(rig, (Door::Egress, POD), reset.build())?;
            ensure!(state(rig, client, frontend, protocol::TCP)? == FlowState::RESET, "refused");
        }
        Ok(())
    })
}

#[test]
fn either_half_of_a_pending_flow_may_be_lost() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in ALL_PROTOCOLS {
                let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
                let packet = first(protocol, client, frontend);
                let port = begin_there(rig, &packet, version)?.port();
                let original = Tuple { src: client, dst: frontend, protocol };
                let reply = rig.model().flows.0[&original].to.reversed();
                for half in [original, reply] {
                    rig.evict(half)?;
                    // As many ticks as pass before a direction looks after the other.
                    rig.wait(9)?;
                    let again = begin_there(rig, &packet, version)?;
                    ensure!(again.port() == port, "another source port");
                    rig.compare_flows()?;
                    ensure!(rig.model().flows.0.contains_key(&reply), "the reply's entry was not made again");
                }
            }
        }
        Ok(())
    })
}

/// Review A1: a port was held for minutes by each question that had been answered, so that 25 a second used all of them up.
#[test]
fn a1_answered_udp_exchanges_never_run_out_of_ports() -> Result<()> {
    const EXCHANGES: u32 = 5_000;
    with_rig_for(Room::of(65_536), node::setup, |rig| {
        for version in Version::BOTH {
            let frontend = THERE.at_node(version);
            for number in 0..EXCHANGES {
                let client = end(OUTSIDE, version, 10_000 + number as u16);
                let question = Segment::udp(client, frontend);
                let (verdict, frame) = send_unobserved(rig, (Door::Xdp, UPLINK), &question)?;
                ensure!(verdict == Verdict::Transmit, "exchange {number}: {verdict:?}, {}", rig.unobserved()?);
                let node = SocketAddr::new(pick(NODE, version), source_port(&frame, version));
                let answer = Segment::udp(THERE.backend(version), node);
                let (_, frame) = send_unobserved(rig, (Door::Xdp, UPLINK), &answer)?;
                let expected = answer.between(frontend, client).build();
                let ports = if version == Version::V4 { 34..38 } else { 54..58 };
                ensure!(frame[ports.clone()] == expected[ports], "exchange {number}: the answer went astray");
            }
            let counted = rig.unobserved()?;
            ensure!(counted.reasons.is_empty(), "{counted}");
        }
        Ok(())
    })
}

/// Review A2: a flood whose SYNs are answered used the ports up, for as long as half-open flows are kept.
#[test]
fn a2_an_honest_syn_connects_in_the_midst_of_an_answered_flood() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (frontend, backend) = (THERE.at_node(version), THERE.backend(version));
            let at = (Door::Xdp, UPLINK);
            for port in 10_000..13_000 {
                let syn = Segment::tcp(end(OUTSIDE, version, port), frontend, SYN);
                let (verdict, frame) = send_unobserved(rig, at, &syn)?;
                ensure!(verdict == Verdict::Transmit, "SYN {port}: {verdict:?}, {}", rig.unobserved()?);
                let node = SocketAddr::new(pick(NODE, version), source_port(&frame, version));
                send_unobserved(rig, at, &Segment::tcp(backend, node, SYN | ACK))?;
            }
            let honest = end(OUTSIDE, version, 40_000);
            let (verdict, frame) = send_unobserved(rig, at, &Segment::tcp(honest, frontend, SYN))?;
            ensure!(verdict == Verdict::Transmit, "{verdict:?}, {}", rig.unobserved()?);
            let node = SocketAddr::new(pick(NODE, version), source_port(&frame, version));
            send_unobserved(rig, at, &Segment::tcp(backend, node, SYN | ACK))?;
            let (_, frame) = send_unobserved(rig, at, &Segment::tcp(honest, frontend, ACK))?;
            ensure!(source_port(&frame, version) == node.port(), "its ACK took another way");
            let tuple = Tuple { src: honest, dst: frontend, protocol: protocol::TCP };
            let state = rig.kernel_flow(tuple)?.context("no flow")?.state;
            ensure!(state == FlowState::ESTABLISHED, "{}", state.as_str());
            let counted = rig.unobserved()?;
            ensure!(counted.reasons.is_empty(), "{counted}");
        }
        Ok(())
    })
}

/// Review B4: handshakes that were under way were lost to a flood, as all that had begun stood in one small LRU.
#[test]
fn b4_a_handshake_survives_a_flood_from_elsewhere() -> Result<()> {
    flood(end(OUTSIDE, Version::V4, 0))
}

/// Review B5: one pod's first packets displaced those of all others.
#[test]
fn b5_one_classes_flood_displaces_no_other_classes_pending_flows() -> Result<()> {
    flood(end(CALLER, Version::V4, 0))
}

/// A few handshakes of one pod, and so many SYNs of somebody else between SYN and SYN-ACK, in a table of a thousand entries: all of them
/// become connections.
fn flood(from: SocketAddr) -> Result<()> {
    const HANDSHAKES: u16 = 20;
    // Within the second in which a handshake is under way, also on a slow machine.
    const SYNS: u16 = 4_096;
    with_rig_for(Room::of(1_024), node::setup, |rig| {
        let version = Version::V4;
        let frontend = HERE.at_cluster_ip(version);
        // Another device, and another network: another class.
        let (noisy, quiet) = if from.ip() == pick(CALLER, version) { (POD, SECOND) } else { (UPLINK, POD) };
        let client = |port| end(["198.18.0.5", "2001:db8:d::5"], version, port);
        for port in 40_000..40_000 + HANDSHAKES {
            send_unobserved(rig, (Door::Ingress, quiet), &Segment::tcp(client(port), frontend, SYN))?;
        }
        for number in 0..SYNS {
            let src = SocketAddr::new(from.ip(), 1_000 + number);
            send_unobserved(rig, (Door::Ingress, noisy), &Segment::tcp(src, frontend, SYN))?;
        }
        let flows = rig.kernel_flows()?;
        let left = (40_000..40_000 + HANDSHAKES)
            .filter(|&port| flows.contains_key(&Tuple { src: client(port), dst: frontend, protocol: protocol::TCP }))
            .count();
        ensure!(left == usize::from(HANDSHAKES), "{left} of {HANDSHAKES} handshakes are left");
        for port in 40_000..40_000 + HANDSHAKES {
            let answer = Segment::tcp(HERE.backend(version), client(port), SYN | ACK);
            send_unobserved(rig, (Door::Egress, quiet), &answer)?;
            send_unobserved(rig, (Door::Ingress, quiet), &Segment::tcp(client(port), frontend, ACK))?;
        }
        let established = rig.flows_in(&[FlowState::ESTABLISHED])?.len();
        ensure!(established == 2 * usize::from(HANDSHAKES), "{established} entries of {HANDSHAKES} handshakes");
        let counted = rig.unobserved()?;
        ensure!(counted.evictions.keys().copied().collect::<Vec<_>>() == ["pending"], "{counted}");
        Ok(())
    })
}

#[test]
fn a_flood_of_first_packets_spares_the_flows_that_live() -> Result<()> {
    const LIVING: u16 = 100;
    with_rig_for(Room::of(512), node::setup, |rig| {
        let version = Version::V4;
        let frontend = HERE.at_cluster_ip(version);
        let client = |port| end(CALLER, version, port);
        for port in 1000..1000 + LIVING {
            send_unobserved(rig, (Door::Ingress, POD), &first(protocol::TCP, client(port), frontend))?;
            let answer = Segment::tcp(HERE.backend(version), client(port), SYN | ACK);
            send_unobserved(rig, (Door::Egress, POD), &answer)?;
            send_unobserved(rig, (Door::Ingress, POD), &next(protocol::TCP, client(port), frontend))?;
        }
        let living = rig.flows_in(&[FlowState::ESTABLISHED])?;
        ensure!(living.len() == 2 * usize::from(LIVING), "{}", living.len());
        for port in 10_000..20_000 {
            send_unobserved(rig, (Door::Ingress, POD), &first(protocol::TCP, client(port), frontend))?;
        }
        ensure!(rig.flows_in(&[FlowState::ESTABLISHED])? == living, "some are lost");
        Ok(())
    })
}

/// Review A6: each packet of UDP that nobody answers (syslog, samples) was decided as if its flow had just begun.
#[test]
fn a6_one_way_udp_is_decided_once() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for service in [HERE, THERE] {
                let packet = Segment::udp(end(OUTSIDE, version, 40_000), service.at_node(version));
                let decided = |outcome: Outcome| !outcome.moved.services.is_empty();
                ensure!(decided(send(rig, (Door::Xdp, UPLINK), packet.build())?), "the first");
                for second in 0..100 {
                    rig.wait(1)?;
                    let went_on = send(rig, (Door::Xdp, UPLINK), packet.build())?;
                    ensure!(!decided(went_on), "after {second} s");
                }
                rig.compare_flows()?;
            }
        }
        Ok(())
    })
}

/// Review A16: both FINs at once, of which one was lost, kept a connection for an hour. Here one after the other; at once in `race`.
#[test]
fn a16_both_fins_close() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for order in [[false, true], [true, false]] {
                let (client, frontend) =
                    (end(CALLER, version, 40_000 + u16::from(order[0])), HERE.at_cluster_ip(version));
                let there = |flags| ((Door::Ingress, POD), Segment::tcp(client, frontend, flags).build());
                let back = |flags| ((Door::Egress, POD), Segment::tcp(HERE.backend(version), client, flags).build());
                for (at, frame) in [there(SYN), back(SYN | ACK), there(ACK)] {
                    send(rig, at, frame)?;
                }
                for is_reply in order {
                    let (at, frame) = if is_reply { back(FIN | ACK) } else { there(FIN | ACK) };
                    send(rig, at, frame)?;
                }
                let flows = rig.kernel_flows()?;
                let states: Vec<_> =
                    flows.values().filter(|entry| is_of(entry, client)).map(|entry| entry.state).collect();
                ensure!(states == [FlowState::CLOSING; 2], "{states:?}");
            }
        }
        rig.compare_flows()
    })
}

fn is_of(entry: &Entry, client: SocketAddr) -> bool {
    [entry.to.src, entry.to.dst].contains(&client)
}

/// Nine of ten source ports are those of connections: each new one finds another all the same.
#[test]
fn a_port_is_found_where_nearly_all_are_taken() -> Result<()> {
    const PORTS: u16 = 200;
    for version in Version::BOTH {
        with_rig(node::setup, |rig| {
            rig.change(|setup| setup.source_ports = [Some(50_000..=50_000 + PORTS - 1), None])?;
            let mut taken = BTreeSet::new();
            for number in 0..PORTS * 9 / 10 {
                let (client, frontend) = (end(OUTSIDE, version, 20_000 + number), THERE.at_node(version));
                let node = begin_there(rig, &first(protocol::TCP, client, frontend), version)
                    .with_context(|| format!("connection {number}"))?;
                ensure!(taken.insert(node.port()), "port {} is taken", node.port());
                send(rig, (Door::Xdp, UPLINK), answer(protocol::TCP, THERE.backend(version), node).build())?;
                send(rig, (Door::Xdp, UPLINK), next(protocol::TCP, client, frontend).build())?;
            }
            rig.compare_flows()
        })?;
    }
    Ok(())
}
