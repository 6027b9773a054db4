// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments: all of a datagram go where the first one goes.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{flow::protocol, fragment::FRAGMENT_TICKS};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK, fragments,
        node::{self, CALLER, GATEWAY, HERE, NODE, OUTSIDE, THERE, pick},
        with_rig,
    },
    reference::{Arrival, Door, Tuple, Verdict, Version},
};

use crate::step::{Step, begun, continued, end, replied, send, source_port, take};

const ID: u32 = 0x4a5b;
/// Bytes in each fragment but the last, which has one: so short that it ends before a layer-4 header would.
const LEN: usize = 64;

fn datagram(client: SocketAddr, server: SocketAddr) -> Segment {
    Segment::udp(client, server).payload(&[0xa5; 2 * LEN - 8 + 1])
}

fn for_both(test: impl Fn(&mut Rig, Version) -> Result<()> + Sync) -> Result<()> {
    with_rig(node::setup, |rig| Version::BOTH.iter().try_for_each(|&version| test(rig, version)))
}

/// Steps of all fragments of a datagram, in this order.
fn steps(
    at: (Door, u32),
    verdict: Verdict,
    there: &[Vec<u8>],
    out: &[Vec<u8>],
    moved: impl Fn(usize) -> String,
) -> Vec<Step> {
    let steps = there.iter().zip(out).enumerate();
    let step = |(number, (frame, output)): (usize, (&Vec<u8>, &Vec<u8>))| {
        let (frame, output, moved) = (frame.clone(), output.clone(), moved(number));
        Step { what: "fragment", at, frame, verdict, output, moved }
    };
    steps.map(step).collect()
}

#[test]
fn fragments_follow_the_first_one_there_and_back() -> Result<()> {
    for_both(|rig, version| {
        for (door, port) in [(Door::Xdp, 40_001), (Door::Ingress, 40_002)] {
            let (client, frontend, backend) =
                (end(OUTSIDE, version, port), HERE.at_node(version), HERE.backend(version));
            let index = HERE.index(version);
            let cut = |segment: Segment| fragments(&segment.build(), ID + u32::from(port), LEN);
            let (there, out) = (cut(datagram(client, frontend)), cut(datagram(client, backend)));
            let moved = |number: usize| match number {
                0 => begun(index, there[0].len()),
                _ => continued(index, there[number].len()),
            };
            take(rig, steps((door, UPLINK), Verdict::Pass, &there, &out, moved))?;
            let (there, out) = (cut(datagram(backend, client)), cut(datagram(frontend, client)));
            let moved = |number: usize| replied(index, there[number].len());
            take(rig, steps((Door::Egress, UPLINK), Verdict::Pass, &there, &out, moved))?;
        }
        Ok(())
    })
}

#[test]
fn fragments_of_a_source_translated_flow_are_forwarded() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), THERE.at_node(version));
        let first = send(rig, (Door::Ingress, UPLINK), datagram(client, frontend).build())?;
        let node = SocketAddr::new(pick(NODE, version), source_port(&first.frame, version));
        let ethernet = rig.network.ethernet(UPLINK, pick(GATEWAY, version));
        for (door, verdict) in [(Door::Xdp, Verdict::Transmit), (Door::Ingress, Verdict::Redirect)] {
            let there = fragments(&datagram(client, frontend).build(), ID, LEN);
            let out = datagram(node, THERE.backend(version)).ttl(63).ethernet(ethernet).build();
            let moved = |number: usize| continued(THERE.index(version), there[number].len());
            take(rig, steps((door, UPLINK), verdict, &there, &fragments(&out, ID, LEN), moved))?;
        }
        // Never answered.
        let dying = fragments(&datagram(client, frontend).ttl(1).build(), ID, LEN);
        let moved = "answer-forbidden=1 ttl-expired=1";
        take(rig, [Step::dropped("later fragment", (Door::Ingress, UPLINK), dying[1].clone(), moved)])
    })
}

#[test]
fn an_orphan_is_dropped_where_only_a_service_can_be_meant() -> Result<()> {
    for_both(|rig, version| {
        rig.change(|setup| {
            setup.guarded.insert(pick(node::CLUSTER_IP, version));
        })?;
        let to_service = fragments(&datagram(end(CALLER, version, 1), HERE.at_cluster_ip(version)).build(), ID, LEN);
        let to_node = fragments(&datagram(end(OUTSIDE, version, 1), HERE.at_node(version)).build(), ID, LEN);
        let reply = fragments(&datagram(HERE.backend(version), end(OUTSIDE, version, 1)).build(), ID, LEN);
        for number in [1, 2] {
            for door in Door::IN {
                take(
                    rig,
                    [
                        Step::dropped("to a ClusterIP", (door, POD), to_service[number].clone(), "orphan-fragment=1"),
                        Step::untouched("to the node", (door, UPLINK), to_node[number].clone(), "orphan-fragment=1"),
                    ],
                )?;
            }
            take(rig, [Step::untouched("reply", (Door::Egress, UPLINK), reply[number].clone(), "")])?;
        }
        Ok(())
    })
}

#[test]
fn a_fragment_whose_flow_has_gone_is_dropped() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let frames = fragments(&datagram(client, frontend).build(), ID, LEN);
        send(rig, (Door::Xdp, UPLINK), frames[0].clone())?;
        rig.evict(Tuple { src: client, dst: frontend, protocol: protocol::UDP })?;
        take(rig, Door::IN.map(|door| Step::dropped("orphan", (door, UPLINK), frames[1].clone(), "orphan-fragment=1")))
    })
}

#[test]
fn later_fragments_are_awaited_for_thirty_ticks() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let frames = fragments(&datagram(client, frontend).build(), ID, LEN);
        send(rig, (Door::Xdp, UPLINK), frames[0].clone())?;
        rig.wait(FRAGMENT_TICKS)?;
        take(rig, [Step::untouched("late", (Door::Xdp, UPLINK), frames[1].clone(), "orphan-fragment=1")])
    })
}

#[test]
fn a_trace_of_a_first_fragment_leaves_nothing() -> Result<()> {
    for_both(|rig, version| {
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let frames = fragments(&datagram(client, frontend).build(), ID, LEN);
        let frame = frames[0].clone();
        rig.send(&Arrival { door: Door::Ingress, ifindex: UPLINK, arrived_by: 0, frame, is_trace: true })?;
        rig.compare_flows()?;
        take(rig, [Step::untouched("later", (Door::Ingress, UPLINK), frames[1].clone(), "orphan-fragment=1")])
    })
}

#[test]
fn a_first_fragment_without_its_layer_4_header_is_malformed() -> Result<()> {
    for_both(|rig, version| {
        let packet = Segment::tcp(end(OUTSIDE, version, 40_001), HERE.at_node(version), 2).payload(&[1; 40]);
        let frames = fragments(&packet.build(), ID, 16);
        take(rig, Door::IN.map(|door| Step::untouched("tiny", (door, UPLINK), frames[0].clone(), "malformed=1")))
    })
}

#[test]
fn an_ipv6_fragment_that_is_all_of_its_datagram_is_a_whole_packet() -> Result<()> {
    with_rig(node::setup, |rig| {
        let version = Version::V6;
        let (client, frontend) = (end(OUTSIDE, version, 40_001), HERE.at_node(version));
        let frame = fragments(&datagram(client, frontend).build(), ID, 1024).remove(0);
        let output = fragments(&datagram(client, HERE.backend(version)).build(), ID, 1024).remove(0);
        let moved = begun(HERE.index(version), frame.len());
        take(rig, [Step { what: "whole", at: (Door::Xdp, UPLINK), frame, verdict: Verdict::Pass, output, moved }])
    })
}
