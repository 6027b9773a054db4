// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections whose backend has gone, of a Service that wants them reset.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::flow::tcp_flags::{ACK, FIN, RST, SYN};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK,
        node::{self, CALLER, HERE, OUTSIDE, Service, THERE},
        reset, with_rig,
    },
    reference::{Backend, Door, Verdict, Version},
};

use crate::step::{Step, continued, end, replied, send, take};

/// What the client has received, and so acknowledges.
const RECEIVED: u32 = 0xfedc_ba98;

/// Begins a connection, and lets its backend go.
fn orphan(
    rig: &mut Rig,
    at: (Door, u32),
    version: Version,
    service: Service,
    ends: (SocketAddr, SocketAddr),
) -> Result<()> {
    let index = service.index(version);
    rig.change(|setup| {
        node::add_backend(setup, index, (service.backend(version).ip(), node::BACKEND_PORT), service.port == HERE.port);
        node::change_frontends(setup, index, |frontend| frontend.resets = true);
    })?;
    let at = (if at.1 == POD { Door::Ingress } else { at.0 }, at.1);
    send(rig, at, Segment::tcp(ends.0, ends.1, SYN).build())?;
    send(rig, at, Segment::tcp(ends.0, ends.1, ACK).build())?;
    rig.change(|setup| {
        let generation = setup.backends[index as usize].generation + 1;
        setup.backends[index as usize] = Backend::free(generation);
    })
}

#[test]
fn a_segment_is_answered_with_a_reset_by_tc() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let mut port = 40_000;
            for (device, client, service) in [(UPLINK, OUTSIDE, HERE), (UPLINK, OUTSIDE, THERE), (POD, CALLER, HERE)] {
                for (flags, payload) in
                    [(ACK, &b""[..]), (ACK, b"data"), (FIN | ACK, b""), (SYN | ACK, b""), (ACK, &[7; 1399])]
                {
                    port += 1;
                    let client = end(client, version, port);
                    let frontend =
                        if device == POD { service.at_cluster_ip(version) } else { service.at_node(version) };
                    orphan(rig, (Door::Xdp, device), version, service, (client, frontend))?;
                    let frame = Segment::tcp(client, frontend, flags).acknowledging(RECEIVED).payload(payload).build();
                    let answer = || Step {
                        what: "reset",
                        at: (Door::Ingress, device),
                        frame: frame.clone(),
                        verdict: Verdict::Redirect,
                        output: reset(&frame, frontend, client, RECEIVED),
                        moved: "backend-gone=1".to_owned(),
                    };
                    let left = Step::untouched("XDP", (Door::Xdp, device), frame.clone(), "left-to-tc=1");
                    // And again, for who has not heard.
                    take(rig, [left, answer(), answer()])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_reset_is_never_answered() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let ends = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            orphan(rig, (Door::Xdp, UPLINK), version, HERE, ends)?;
            for flags in [RST, RST | ACK] {
                let frame = Segment::tcp(ends.0, ends.1, flags).build();
                take(rig, Door::IN.map(|door| Step::dropped("RST", (door, UPLINK), frame.clone(), "backend-gone=1")))?;
            }
        }
        Ok(())
    })
}

#[test]
fn replies_of_a_backend_that_has_gone_still_reach_the_client() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            orphan(rig, (Door::Xdp, UPLINK), version, HERE, (client, frontend))?;
            let reply = Segment::tcp(HERE.backend(version), client, FIN | ACK);
            let frame = reply.build();
            let moved = replied(HERE.index(version), frame.len());
            let output = reply.between(frontend, client).build();
            let (at, verdict) = ((Door::Egress, UPLINK), Verdict::Pass);
            take(rig, [Step { what: "reply", at, frame, verdict, output, moved }])?;
        }
        Ok(())
    })
}

#[test]
fn a_syn_begins_another_connection() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            orphan(rig, (Door::Xdp, UPLINK), version, HERE, (client, frontend))?;
            rig.change(|setup| {
                node::add_backend(setup, HERE.index(version), (HERE.backend(version).ip(), node::BACKEND_PORT), true);
            })?;
            let syn = Segment::tcp(client, frontend, SYN);
            let begun = send(rig, (Door::Xdp, UPLINK), syn.build())?;
            ensure!(begun.frame == syn.between(client, HERE.backend(version)).build(), "{begun:?}");
            ensure!(begun.moved.services.len() == 1, "{begun:?}");
            let data = Segment::tcp(client, frontend, ACK);
            let sent = send(rig, (Door::Ingress, UPLINK), data.build())?;
            ensure!(sent.moved.to_string() == continued(HERE.index(version), data.build().len()), "{sent:?}");
        }
        rig.compare_flows()
    })
}

#[test]
fn a_connection_from_before_the_annotation_is_not_reset() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend, index) = (end(OUTSIDE, version, 40_000), HERE.at_node(version), HERE.index(version));
            send(rig, (Door::Xdp, UPLINK), Segment::tcp(client, frontend, SYN).build())?;
            rig.change(|setup| {
                node::change_frontends(setup, index, |frontend| frontend.resets = true);
                setup.backends[index as usize] = Backend::free(1);
            })?;
            let data = Segment::tcp(client, frontend, ACK);
            for door in Door::IN {
                let sent = send(rig, (door, UPLINK), data.build())?;
                ensure!(sent.frame == data.clone().between(client, HERE.backend(version)).build(), "{sent:?}");
            }
        }
        rig.compare_flows()
    })
}
