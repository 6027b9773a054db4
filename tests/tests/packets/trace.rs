// SPDX-License-Identifier: MIT OR Apache-2.0
//! Traces: the answer is written down, and nothing else.

use anyhow::{Result, ensure};
use lb_common::{
    flow::{
        flow_flags, protocol,
        tcp_flags::{ACK, RST},
    },
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::Reason,
};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK,
        node::{self, CALLER, CLUSTER_IP, EMPTY, HERE, LOCAL_ONLY, OUTSIDE, THERE, UNRESOLVED, UNROUTED},
        with_rig,
    },
    reference::{Arrival, Backend, Counters, Door, Outcome, Verdict, Version},
};

use crate::step::{end, first, send};

/// Asks, and sees to it that nothing else has happened.
fn ask(rig: &mut Rig, at: (Door, u32), frame: &[u8]) -> Result<Outcome> {
    let (flows, affinities) = (rig.model().flows.clone(), rig.model().affinities.clone());
    let outcome =
        rig.send(&Arrival { door: at.0, ifindex: at.1, arrived_by: 0, frame: frame.to_vec(), is_trace: true })?;
    ensure!(outcome.moved == Counters::default(), "counters moved: {}", outcome.moved);
    ensure!(rig.model().flows == flows, "flows changed");
    ensure!(rig.model().affinities == affinities, "affinities changed");
    rig.compare_flows()?;
    Ok(outcome)
}

#[test]
fn a_new_flow_is_decided_but_not_made() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for (door, port) in [(Door::Xdp, 40_000), (Door::Ingress, 40_001)] {
                let frame = first(protocol::TCP, end(OUTSIDE, version, port), THERE.at_node(version)).build();
                let traced = ask(rig, (door, UPLINK), &frame)?;
                let index = THERE.index(version);
                let expected = TraceRecord {
                    step: trace_step::DECIDED,
                    service: index,
                    backend: index,
                    flow_flags: u32::from(flow_flags::SNAT),
                    verdict: trace_verdict::FORWARDED,
                    ifindex: UPLINK,
                    ..TraceRecord::default()
                };
                ensure!(traced.record == expected, "{:?}", traced.record);
                // A trace tells the truth: the packet itself fares the same.
                let sent = send(rig, (door, UPLINK), frame)?;
                ensure!((sent.verdict, &sent.frame) == (traced.verdict, &traced.frame), "{sent:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_flow_that_exists_is_followed() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let client = end(CALLER, version, 40_000);
            let packet = first(protocol::UDP, client, HERE.at_cluster_ip(version));
            send(rig, (Door::Ingress, POD), packet.build())?;
            // A tick later: the packet itself would be noted in the flow; so would new routes.
            rig.wait(1)?;
            rig.change(|setup| setup.next_hop_generation += 1)?;
            let traced = ask(rig, (Door::Ingress, POD), &packet.build())?;
            let expected = TraceRecord {
                step: trace_step::FLOW,
                backend: HERE.index(version),
                verdict: trace_verdict::TRANSLATED,
                ..TraceRecord::default()
            };
            ensure!(traced.record == expected, "{:?}", traced.record);
            let reply = packet.between(HERE.backend(version), client);
            let traced = ask(rig, (Door::Egress, POD), &reply.build())?;
            let expected = TraceRecord { flow_flags: u32::from(flow_flags::REPLY), ..expected };
            ensure!(traced.record == expected, "{:?}", traced.record);
        }
        Ok(())
    })
}

#[test]
fn refusals_are_told_with_their_reason() -> Result<()> {
    with_rig(node::setup, |rig| {
        let version = Version::V4;
        let to_node = |service: node::Service| service.at_node(version);
        let cases = [
            (Door::Xdp, to_node(EMPTY), trace_verdict::REJECTED, Reason::NoEndpoints, Verdict::Pass),
            (Door::Ingress, to_node(EMPTY), trace_verdict::REJECTED, Reason::NoEndpoints, Verdict::Pass),
            (Door::Xdp, to_node(LOCAL_ONLY), trace_verdict::DROPPED, Reason::NoLocalEndpoints, Verdict::Drop),
            (Door::Ingress, to_node(UNROUTED), trace_verdict::DROPPED, Reason::NoRoute, Verdict::Drop),
            (Door::Xdp, to_node(UNROUTED), trace_verdict::LEFT_TO_TC, Reason::LeftToTc, Verdict::Pass),
            (Door::Xdp, to_node(UNRESOLVED), trace_verdict::LEFT_TO_TC, Reason::LeftToTc, Verdict::Pass),
        ];
        for (door, frontend, verdict, reason, action) in cases {
            let frame = first(protocol::TCP, end(OUTSIDE, version, 40_000), frontend).build();
            let traced = ask(rig, (door, UPLINK), &frame)?;
            let record = traced.record;
            ensure!((record.verdict, record.reason) == (verdict, reason as u32), "{door:?} {frontend}: {record:?}");
            ensure!(traced.verdict == action && traced.frame == frame, "{door:?} {frontend}: {traced:?}");
        }
        let stranger = first(protocol::TCP, end(OUTSIDE, version, 40_000), end(CLUSTER_IP, version, 9)).build();
        let traced = ask(rig, (Door::Ingress, UPLINK), &stranger)?;
        ensure!(traced.record == TraceRecord::default(), "{:?}", traced.record);
        Ok(())
    })
}

#[test]
fn a_trace_leaves_affinity_as_it_is() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| {
            for version in Version::BOTH {
                node::change_frontends(setup, HERE.index(version), |frontend| frontend.affinity = Some(100));
            }
        })?;
        for version in Version::BOTH {
            for (door, port) in [(Door::Xdp, 40_000), (Door::Ingress, 40_001)] {
                let frame = |port| first(protocol::TCP, end(OUTSIDE, version, port), HERE.at_node(version)).build();
                // Neither is one made, nor, a tick later, is it refreshed.
                ask(rig, (door, UPLINK), &frame(port))?;
                send(rig, (door, UPLINK), frame(port))?;
                rig.wait(1)?;
                ask(rig, (door, UPLINK), &frame(port + 10))?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_reset_is_told_with_its_backend() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, index) = (end(OUTSIDE, version, 40_000), HERE.index(version));
            rig.change(|setup| node::change_frontends(setup, index, |frontend| frontend.resets = true))?;
            send(rig, (Door::Xdp, UPLINK), first(protocol::TCP, client, HERE.at_node(version)).build())?;
            rig.change(|setup| setup.backends[index as usize] = Backend::free(1))?;
            for (flags, verdict, action) in
                [(ACK, trace_verdict::RESET, Verdict::Pass), (RST, trace_verdict::DROPPED, Verdict::Drop)]
            {
                let frame = Segment::tcp(client, HERE.at_node(version), flags).build();
                let expected = TraceRecord {
                    step: trace_step::FLOW,
                    backend: index,
                    verdict,
                    reason: Reason::BackendGone as u32,
                    ..TraceRecord::default()
                };
                for door in Door::IN {
                    let traced = ask(rig, (door, UPLINK), &frame)?;
                    ensure!(traced.record == expected && traced.verdict == action, "{door:?}: {traced:?}");
                    ensure!(traced.frame == frame, "{door:?}: {traced:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_wrong_cookie_is_no_trace() -> Result<()> {
    with_rig(node::setup, |rig| {
        let version = Version::V4;
        for (door, port) in [(Door::Xdp, 40_000), (Door::Ingress, 40_001)] {
            let frame = first(protocol::TCP, end(OUTSIDE, version, port), HERE.at_node(version)).build();
            let arrival = Arrival { door, ifindex: UPLINK, arrived_by: 0, frame, is_trace: true };
            ensure!(rig.send_with_wrong_cookie(&arrival)?.moved != Counters::default(), "{door:?}: not counted");
        }
        Ok(())
    })
}
