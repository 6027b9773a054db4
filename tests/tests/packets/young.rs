// SPDX-License-Identifier: MIT OR Apache-2.0
//! Young flows: a flow stands in a small table until its client speaks again after an answer, so that a flood of first packets
//! takes no room from those that live (cilium 24177, 20068).

use anyhow::{Result, ensure};
use lb_common::flow::{
    protocol,
    tcp_flags::{ACK, RST, SYN},
};
use shunt_tests::{
    packets::{
        POD, Rig, Room, Segment, UPLINK,
        node::{self, CALLER, HERE, OUTSIDE, THERE},
        with_rig, with_rig_for,
    },
    reference::{Arrival, Door, Version},
};

use crate::step::{ALL_PROTOCOLS, answer, end, first, next, send, source_port};

/// Numbers of entries, grown and young.
fn ages(rig: &Rig) -> Result<[usize; 2]> {
    rig.compare_flows()?;
    Ok(rig.ages()?.map(|flows| flows.len()))
}

#[test]
fn a_flow_grows_up_when_the_client_speaks_again_after_an_answer() -> Result<()> {
    for protocol in ALL_PROTOCOLS {
        for version in Version::BOTH {
            with_rig(node::setup, |rig| {
                let (client, frontend) = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
                let (there, back) = ((Door::Ingress, POD), (Door::Egress, POD));
                let answer = answer(protocol, HERE.backend(version), client);
                send(rig, there, first(protocol, client, frontend).build())?;
                send(rig, there, first(protocol, client, frontend).build())?;
                ensure!(ages(rig)? == [0, 2], "not without an answer");
                send(rig, back, answer.build())?;
                ensure!(ages(rig)? == [0, 2], "nor with one that nobody takes up");
                if protocol != protocol::UDP {
                    send(rig, there, first(protocol, client, frontend).build())?;
                    ensure!(ages(rig)? == [0, 2], "nor by sending the first one again");
                }
                send(rig, there, next(protocol, client, frontend).build())?;
                ensure!(ages(rig)? == [2, 0], "{:?}", rig.ages()?);
                send(rig, back, answer.build())?;
                ensure!(ages(rig)? == [2, 0], "and stays so");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_refused_connection_never_grows_up() -> Result<()> {
    with_rig(node::setup, |rig| {
        let version = Version::V4;
        let (client, frontend) = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
        send(rig, (Door::Ingress, POD), first(protocol::TCP, client, frontend).build())?;
        let reset = Segment::tcp(HERE.backend(version), client, RST | ACK);
        send(rig, (Door::Egress, POD), reset.build())?;
        send(rig, (Door::Ingress, POD), next(protocol::TCP, client, frontend).build())?;
        ensure!(ages(rig)? == [0, 2], "{:?}", rig.ages()?);
        Ok(())
    })
}

#[test]
fn either_half_of_a_young_flow_may_be_lost() -> Result<()> {
    with_rig(node::setup, |rig| {
        for (number, version) in Version::BOTH.into_iter().enumerate() {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
            let begun = send(rig, (Door::Xdp, UPLINK), first(protocol::TCP, client, frontend).build())?;
            let port = source_port(&begun.frame, version);
            let halves = rig.ages()?[1].clone();
            for half in halves {
                if half.src.is_ipv4() == client.is_ipv4() {
                    rig.evict(half)?;
                    rig.wait(1)?;
                    let again = send(rig, (Door::Xdp, UPLINK), first(protocol::TCP, client, frontend).build())?;
                    ensure!(source_port(&again.frame, version) == port, "another source port");
                    ensure!(ages(rig)? == [0, 2 * (number + 1)], "{:?}", rig.ages()?);
                }
            }
        }
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
            send(rig, (Door::Ingress, POD), first(protocol::TCP, client(port), frontend).build())?;
            let answer = Segment::tcp(HERE.backend(version), client(port), SYN | ACK);
            send(rig, (Door::Egress, POD), answer.build())?;
            send(rig, (Door::Ingress, POD), next(protocol::TCP, client(port), frontend).build())?;
        }
        let living = rig.ages()?[0].clone();
        ensure!(living.len() == 2 * usize::from(LIVING), "{}", living.len());
        // The model forgets nothing, so it is not asked here.
        for port in 10_000..20_000 {
            let frame = first(protocol::TCP, client(port), frontend).build();
            rig.send_unobserved(&Arrival { door: Door::Ingress, ifindex: POD, frame, is_trace: false })?;
        }
        ensure!(rig.ages()?[0] == living, "some are lost");
        Ok(())
    })
}
