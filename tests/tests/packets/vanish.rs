// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any entry of any table may vanish at any time: for another flow, or as LRUs do. Random packets of a set of flows, with entries deleted
//! in between, one half of a pair at a time: every flow goes on between the same ends.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_common::flow::{FlowState, protocol, tcp_flags::ACK};
use shunt_tests::{
    packets::{
        Network, POD, Random, Rig, Segment, UPLINK, fragments,
        node::{self, BACKEND_PORT, Both, CALLER, HERE, OUTSIDE, Service, THERE, pick},
        with_rig,
    },
    reference::{Door, Setup, Tuple, Version},
};

use crate::{
    step::{ALL_PROTOCOLS, end, first, next, send},
    workers::share,
};

/// Nodes, and steps on each.
const NODES: usize = 8;
const STEPS: usize = 1500;
/// More backends of both Services, so that a decision made anew may go wrong.
const MORE: [(Service, Both, u32); 4] = [
    (HERE, ["10.1.0.21", "fd00:1::21"], 40),
    (HERE, ["10.1.0.22", "fd00:1::22"], 41),
    (THERE, ["10.2.0.31", "fd00:2::31"], 42),
    (THERE, ["10.2.0.32", "fd00:2::32"], 43),
];

/// Both Services with three backends, and clients that stay with theirs; nothing is ever too old.
fn setup(network: &Network) -> Setup {
    let mut setup = node::setup(network);
    setup.timeouts = [100_000; FlowState::COUNT];
    for version in Version::BOTH {
        for (service, address, index) in MORE {
            let index = index + if version == Version::V4 { 0 } else { 10 };
            node::add_backend(&mut setup, index, (pick(address, version), BACKEND_PORT), service.port == HERE.port);
            setup.backends[index as usize].service = service.index(version);
            node::change_frontends(&mut setup, service.index(version), |frontend| {
                frontend.tables.iter_mut().for_each(|slots| slots.extend([index; 7]));
                frontend.affinity = (service.port == THERE.port).then_some(100_000);
            });
        }
    }
    setup
}

/// Half of a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Original,
    Reply,
}

/// A flow as both of its ends know it.
struct Flow {
    /// The client, and where it sends.
    original: Tuple,
    /// The backend, and where it sends.
    reply: Tuple,
    /// Where the client's packets come in, and where replies are translated.
    at: [(Door, u32); 2],
    /// What was deleted and has not been made anew.
    lost: Option<Half>,
}

impl Flow {
    /// Begins one, and learns its ends from what becomes of the first packet.
    fn begin(rig: &mut Rig, original: Tuple, (door, device): (Door, u32)) -> Result<Self> {
        let begun = send(rig, (door, device), first(original.protocol, original.src, original.dst).build())?;
        let entry = rig.model().flows.0.get(&original).with_context(|| format!("{begun}"))?;
        let back = if entry.is_snat { (door, UPLINK) } else { (Door::Egress, device) };
        let at = [(door, device), back];
        Ok(Self { original, reply: entry.to.reversed(), at, lost: None })
    }

    /// The client sends: the backend must get it. That makes both halves whole again.
    fn send(&mut self, rig: &mut Rig) -> Result<()> {
        if self.lost == Some(Half::Reply) {
            // The other half is looked after once in eight ticks.
            rig.wait(9)?;
        }
        self.lost = None;
        follow(rig, self.at[0], self.original, self.reply.reversed())
    }

    /// The backend answers: the client must get it, if that half is there.
    fn answer(&mut self, rig: &mut Rig) -> Result<()> {
        if self.lost == Some(Half::Reply) {
            Ok(())
        } else {
            follow(rig, self.at[1], self.reply, self.original.reversed())
        }
    }

    /// Deletes one half, if both are there.
    fn lose(&mut self, rig: &mut Rig, half: Half) -> Result<()> {
        if self.lost.is_some() {
            return Ok(());
        }
        self.lost = Some(half);
        rig.evict(if half == Half::Original { self.original } else { self.reply })
    }

    /// A datagram in three fragments, of which the table forgets the ports after some.
    fn send_fragments(&mut self, rig: &mut Rig, id: u32, forgets_after: usize) -> Result<()> {
        self.send(rig)?;
        let pieces = |tuple| fragments(&packet(tuple).payload(&[7; 64]).build(), id, 32);
        let expected = pieces(self.reply.reversed());
        for (number, (piece, expected)) in pieces(self.original).into_iter().zip(expected).enumerate() {
            let outcome = send(rig, self.at[0], piece.clone())?;
            let is_known = number <= forgets_after;
            let is_translated = outcome.frame != piece;
            ensure!(is_translated == is_known, "fragment {number}, forgotten after {forgets_after}: {outcome}");
            let is_right = addresses(&outcome.frame) == addresses(&expected);
            ensure!(is_right || !is_known, "fragment {number}: {outcome}");
            if number == forgets_after {
                let datagram = rig.model().fragments.0.keys().find(|datagram| datagram.id == id).copied();
                rig.evict_fragment(datagram.context("a datagram under way")?)?;
            }
        }
        Ok(())
    }
}

fn packet(tuple: Tuple) -> Segment {
    next(tuple.protocol, tuple.src, tuple.dst)
}

/// Sends a packet of one tuple, which must leave with another.
fn follow(rig: &mut Rig, at: (Door, u32), from: Tuple, to: Tuple) -> Result<()> {
    let outcome = send(rig, at, packet(from).build())?;
    let expected = packet(to).build();
    let l4 = if from.src.is_ipv4() { 34 } else { 54 };
    let is_right = addresses(&outcome.frame) == addresses(&expected) && outcome.frame[l4..] == expected[l4..];
    ensure!(is_right, "{from:?} became {outcome}, and not {to:?}");
    Ok(())
}

/// Both IP addresses of a frame.
fn addresses(frame: &[u8]) -> &[u8] {
    if frame[12] == 0x08 { &frame[26..34] } else { &frame[22..54] }
}

#[test]
fn flows_go_on_whichever_entry_vanishes() -> Result<()> {
    share(NODES, |rig, node, (): &mut ()| {
        let setup = setup(&rig.network);
        rig.restart(setup)?;
        let mut random = Random::new(node as u64);
        let mut flows = begin_flows(rig)?;
        for step in 0..STEPS {
            let number = random.below(flows.len());
            act(rig, &mut random, &mut flows[number], step).with_context(|| format!("step {step} on node {node}"))?;
        }
        rig.compare_flows()
    })
    .map(drop)
}

/// Some of each kind: kept and translated sources, clients inside and outside.
fn begin_flows(rig: &mut Rig) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for version in Version::BOTH {
        for protocol in ALL_PROTOCOLS {
            for (door, port) in [(Door::Ingress, 40_000), (Door::Xdp, 40_001), (Door::Xdp, 40_002)] {
                let (outside, inside): (SocketAddr, _) = (end(OUTSIDE, version, port), end(CALLER, version, port));
                for (src, dst, at) in [
                    (outside, HERE.at_node(version), (door, UPLINK)),
                    (outside, THERE.at_node(version), (door, UPLINK)),
                    (inside, HERE.at_cluster_ip(version), (Door::Ingress, POD)),
                    (inside, THERE.at_cluster_ip(version), (Door::Ingress, POD)),
                ] {
                    flows.push(Flow::begin(rig, Tuple { src, dst, protocol }, at)?);
                }
            }
        }
    }
    Ok(flows)
}

/// Something happens to a flow.
fn act(rig: &mut Rig, random: &mut Random, flow: &mut Flow, step: usize) -> Result<()> {
    match random.below(12) {
        0..4 => flow.send(rig),
        4..6 => flow.answer(rig),
        6 => flow.lose(rig, Half::Original),
        7 => flow.lose(rig, Half::Reply),
        8 => rig.wait(1),
        9 => {
            let affinities = &rig.model().affinities.0;
            let victim = affinities.keys().nth(random.below(affinities.len().max(1))).copied();
            victim.map_or(Ok(()), |victim| rig.evict_affinity(victim))
        }
        10 if flow.original.protocol == protocol::UDP => flow.send_fragments(rig, step as u32, random.below(3)),
        _ => rig.compare_flows(),
    }
}

/// Review A7: a flow that lost its original entry took the first port that was free, and not its own, where one before it in the order
/// of probes had become free since.
#[test]
fn a7_a_segment_in_mid_connection_finds_its_own_reply_entry_wherever_it_stands() -> Result<()> {
    const PORTS: u16 = 4;
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.source_ports = [Some(50_000..=50_000 + PORTS - 1), None])?;
        for version in Version::BOTH {
            for protocol in [protocol::TCP, protocol::SCTP] {
                for ended in 0..PORTS {
                    let mut flows = Vec::new();
                    for number in 0..PORTS {
                        let src = end(OUTSIDE, version, 40_000 + 10 * ended + number);
                        let tuple = Tuple { src, dst: THERE.at_node(version), protocol };
                        let mut flow = Flow::begin(rig, tuple, (Door::Xdp, UPLINK))?;
                        flow.answer(rig)?;
                        flow.send(rig)?;
                        flows.push(flow);
                    }
                    let gone = flows.remove(usize::from(ended));
                    rig.evict(gone.original)?;
                    rig.evict(gone.reply)?;
                    for flow in &mut flows {
                        flow.lose(rig, Half::Original)?;
                        flow.send(rig).with_context(|| format!("flow {ended} has ended"))?;
                    }
                    rig.compare_flows()?;
                    for flow in flows {
                        rig.evict(flow.original)?;
                        rig.evict(flow.reply)?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// The same where so many ports were taken that the flow got one only in a later row of probes, and a few of the first are free by now.
#[test]
fn a7_a_segment_finds_its_own_reply_entry_in_a_later_row_of_ports() -> Result<()> {
    const PORTS: u16 = 64;
    const TAKEN: u16 = 61;
    const ENDED: usize = 4;
    for version in Version::BOTH {
        with_rig(node::setup, |rig| {
            rig.change(|setup| setup.source_ports = [Some(50_000..=50_000 + PORTS - 1), None])?;
            let mut flows = Vec::new();
            for number in 0..TAKEN {
                let src = end(OUTSIDE, version, 40_000 + number);
                let tuple = Tuple { src, dst: THERE.at_node(version), protocol: protocol::TCP };
                let mut flow = Flow::begin(rig, tuple, (Door::Xdp, UPLINK))?;
                flow.answer(rig)?;
                flow.send(rig)?;
                flows.push(flow);
            }
            for gone in flows.drain(..ENDED) {
                rig.evict(gone.original)?;
                rig.evict(gone.reply)?;
            }
            for (number, flow) in flows.iter_mut().enumerate() {
                flow.lose(rig, Half::Original)?;
                flow.send(rig).with_context(|| format!("flow {number} of those that are left"))?;
            }
            rig.compare_flows()
        })?;
    }
    Ok(())
}

/// The same for a flow that keeps its client's address, but not its port, which another flow to the backend had when it began.
#[test]
fn a7_a_segment_finds_its_own_reply_entry_although_the_clients_port_is_free_by_now() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let src = end(CALLER, version, 40_000);
            let tuple = |dst| Tuple { src, dst, protocol: protocol::TCP };
            let begin = |rig: &mut Rig, dst| -> Result<Flow> {
                let mut flow = Flow::begin(rig, tuple(dst), (Door::Ingress, POD))?;
                flow.answer(rig)?;
                flow.send(rig)?;
                Ok(flow)
            };
            let first = begin(rig, HERE.at_cluster_ip(version))?;
            let mut second = begin(rig, HERE.at_node(version))?;
            ensure!(first.reply.dst.port() == 40_000 && second.reply.dst.port() != 40_000, "no flow is in the way");
            rig.evict(first.original)?;
            rig.evict(first.reply)?;
            second.lose(rig, Half::Original)?;
            second.send(rig).context("its segment goes by another port than before")?;
            // One that nobody knows keeps its port.
            let stranger = Segment::tcp(src, HERE.at_cluster_ip(version), ACK);
            let sent = send(rig, (Door::Ingress, POD), stranger.build())?;
            ensure!(sent.frame == stranger.between(src, HERE.backend(version)).build(), "{sent:?}");
        }
        rig.compare_flows()
    })
}
