// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who is let in, and as whose client: source ranges, undefined ports, pods of other nodes.

use anyhow::{Result, ensure};
use lb_common::flow::{protocol, tcp_flags::SYN};
use shunt_tests::{
    packets::{
        ETHERNET, POD, Rig, SECOND, Segment, UPLINK,
        node::{self, Both, CALLER, CLUSTER_IP, EMPTY, HERE, NODE, OUTSIDE, THERE, pick},
        port_unreachable, with_rig,
    },
    reference::{Arrival, Door, Prefix, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, begun, end, first, send, source_port, take};

/// A neighbour of [`OUTSIDE`], in the same half of its network.
const NEIGHBOUR: Both = ["203.0.113.5", "2001:db8:c::5"];
/// Not in that half.
const STRANGER: Both = ["203.0.113.8", "2001:db8:c::8"];

/// The eight addresses that [`OUTSIDE`] is one of.
fn range(version: Version) -> Prefix {
    let network = pick(["203.0.113.0", "2001:db8:c::"], version);
    Prefix { network, len: if version == Version::V4 { 29 } else { 125 } }
}

/// Lets only these in at a Service.
fn restrict(rig: &mut Rig, service: node::Service, ranges: impl Fn(Version) -> Vec<Prefix>) -> Result<()> {
    rig.change(|setup| {
        for version in Version::BOTH {
            let index = service.index(version);
            node::change_frontends(setup, index, |frontend| frontend.is_restricted = true);
            setup.source_ranges.insert(index, ranges(version).into_iter().collect());
        }
    })
}

#[test]
fn rule_35_a_source_outside_the_ranges_is_dropped() -> Result<()> {
    with_rig(node::setup, |rig| {
        restrict(rig, HERE, |version| vec![range(version)])?;
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for (door, port) in [(Door::Xdp, 40_000), (Door::Ingress, 40_001)] {
                    let packet = |client| first(protocol, end(client, version, port), HERE.at_node(version)).build();
                    for client in [OUTSIDE, NEIGHBOUR] {
                        let sent = send(rig, (door, UPLINK), packet(client))?;
                        let counted = begun(HERE.index(version), sent.frame.len());
                        ensure!(sent.moved.to_string() == counted, "{client:?}: {sent:?}");
                    }
                    let moved = format!("source-range=1 service{}.dropped=1", HERE.index(version));
                    take(rig, [Step::dropped("stranger", (door, UPLINK), packet(STRANGER), &moved)])?;
                }
                // Pods are strangers too.
                let frame = first(protocol, end(CALLER, version, 40_000), HERE.at_cluster_ip(version)).build();
                let moved = format!("source-range=1 service{}.dropped=1", HERE.index(version));
                take(rig, [Step::dropped("pod", (Door::Ingress, POD), frame, &moved)])?;
            }
        }
        Ok(())
    })
}

#[test]
fn rule_36_ranges_come_before_the_question_whether_anything_serves() -> Result<()> {
    with_rig(node::setup, |rig| {
        restrict(rig, EMPTY, |version| vec![range(version)])?;
        for version in Version::BOTH {
            let frame = first(protocol::TCP, end(STRANGER, version, 40_000), EMPTY.at_node(version)).build();
            let moved = format!("source-range=1 service{}.dropped=1", EMPTY.index(version));
            take(rig, Door::IN.map(|door| Step::dropped("stranger", (door, UPLINK), frame.clone(), &moved)))?;
        }
        Ok(())
    })
}

#[test]
fn ranges_are_those_of_the_service_and_of_the_frontend() -> Result<()> {
    with_rig(node::setup, |rig| {
        // The Service that is restricted has no range; the other one's are not its own.
        restrict(rig, HERE, |_| Vec::new())?;
        rig.change(|setup| {
            for version in Version::BOTH {
                setup.source_ranges.insert(THERE.index(version), [range(version)].into());
                // Where ranges are known but the frontend is not restricted, they don't count.
                node::change_frontends(setup, THERE.index(version), |frontend| frontend.is_restricted = false);
            }
        })?;
        for version in Version::BOTH {
            let client = end(STRANGER, version, 40_000);
            let moved = format!("source-range=1 service{}.dropped=1", HERE.index(version));
            let frame = first(protocol::UDP, end(OUTSIDE, version, 40_000), HERE.at_node(version)).build();
            take(rig, Door::IN.map(|door| Step::dropped("no range", (door, UPLINK), frame.clone(), &moved)))?;
            let sent = send(rig, (Door::Xdp, UPLINK), first(protocol::UDP, client, THERE.at_node(version)).build())?;
            ensure!(sent.moved.services.len() == 1 && sent.moved.reasons.is_empty(), "{sent:?}");
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_43_a_flow_that_was_let_in_stays() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let frame = first(protocol::UDP, end(STRANGER, version, 40_000), HERE.at_node(version)).build();
            send(rig, (Door::Xdp, UPLINK), frame.clone())?;
            restrict(rig, HERE, |version| vec![range(version)])?;
            let sent = send(rig, (Door::Xdp, UPLINK), frame)?;
            ensure!(sent.moved.reasons.is_empty(), "{sent:?}");
            rig.change(|setup| {
                node::change_frontends(setup, HERE.index(Version::V6), |frontend| frontend.is_restricted = false);
            })?;
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_44_an_undefined_port_of_a_cluster_ip_is_rejected() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.guarded.extend(Version::BOTH.map(|version| pick(CLUSTER_IP, version))))?;
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for port in [0, 9, 65_535] {
                    for (device, client) in [(POD, CALLER), (UPLINK, OUTSIDE)] {
                        let client = end(client, version, 40_000);
                        let frame = first(protocol, client, end(CLUSTER_IP, version, port)).build();
                        let error = Step {
                            what: "reject",
                            at: (Door::Ingress, device),
                            frame: frame.clone(),
                            verdict: Verdict::Redirect,
                            output: port_unreachable(&frame, pick(NODE, version), client.ip()),
                            moved: "undefined-port=1".to_owned(),
                        };
                        take(rig, [error, Step::untouched("XDP", (Door::Xdp, device), frame, "left-to-tc=1")])?;
                    }
                }
                // Of a defined one it is the endpoints that count; a node's ports are its own.
                let defined = first(protocol, end(CALLER, version, 40_001), HERE.at_cluster_ip(version)).build();
                let counted = begun(HERE.index(version), defined.len());
                ensure!(send(rig, (Door::Ingress, POD), defined)?.moved.to_string() == counted, "a defined port");
                let own = first(protocol, end(OUTSIDE, version, 40_000), end(NODE, version, 22)).build();
                take(rig, Door::IN.map(|door| Step::untouched("own", (door, UPLINK), own.clone(), "")))?;
            }
        }
        Ok(())
    })
}

#[test]
fn rule_52_a_pod_of_another_node_is_an_internal_client() -> Result<()> {
    with_rig(node::setup, |rig| {
        // Clients outside find no endpoint.
        rig.change(|setup| {
            for version in Version::BOTH {
                setup.cluster_cidrs.insert(version, range(version));
                for service in [HERE, THERE] {
                    node::change_frontends(setup, service.index(version), |frontend| frontend.tables[1].clear());
                }
            }
        })?;
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for (door, port) in [(Door::Xdp, 40_000), (Door::Ingress, 40_001)] {
                    let pod = end(OUTSIDE, version, port);
                    let here = send(rig, (door, UPLINK), first(protocol, pod, HERE.at_node(version)).build())?;
                    let kept = first(protocol, pod, HERE.backend(version)).build();
                    ensure!(here.frame == kept, "its address is kept where the backend is here: {here:?}");
                    // The reply would not come back by itself: it is translated like anybody's who came by an uplink.
                    let there = send(rig, (door, UPLINK), first(protocol, pod, THERE.at_node(version)).build())?;
                    let port = source_port(&there.frame, version);
                    ensure!(rig.model().setup.is_source_port(port), "{there:?}");
                }
                let stranger = first(protocol, end(STRANGER, version, 40_000), HERE.at_node(version)).build();
                let moved = send(rig, (Door::Ingress, UPLINK), stranger)?.moved.to_string();
                let counted = format!("no-endpoints=1 service{}.rejected=1", HERE.index(version));
                ensure!(moved == counted, "moved {moved}");
            }
        }
        rig.compare_flows()
    })
}

/// Review A15: an element of the map of frontends that is used again for another key while a program reads it was taken for the key's.
#[test]
fn a15_an_element_that_is_used_again_is_not_taken_for_the_frontend() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.mistag_frontends()?;
        for version in Version::BOTH {
            for to in [HERE.at_cluster_ip(version), HERE.at_node(version)] {
                let frame = Segment::tcp(end(OUTSIDE, version, 40_000), to, SYN).build();
                for door in Door::IN {
                    let arrival =
                        Arrival { door, ifindex: UPLINK, arrived_by: 0, frame: frame.clone(), is_trace: false };
                    let (verdict, after) = rig.send_unobserved(&arrival)?;
                    ensure!(verdict == Verdict::Pass && after == frame, "{to} {door:?}: {verdict:?}");
                }
            }
        }
        ensure!(rig.kernel_flows()?.is_empty(), "a flow was decided by another frontend");
        Ok(())
    })
}

/// Frames for other machines, or for all, that an uplink sees as well (A12; a promiscuous device, a flood of the switch): `ip_rcv`
/// forwards none of them, so that only the machine answers that is meant.
#[test]
fn n5_frames_for_other_machines_are_left_alone() -> Result<()> {
    let others: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 0xdd], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]];
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for (door, port) in [(Door::Xdp, 40_000), (Door::Ingress, 40_001)] {
                    for (service, ethernet) in [HERE, THERE, EMPTY].into_iter().flat_map(|to| others.map(|at| (to, at)))
                    {
                        let packet = first(protocol, end(OUTSIDE, version, port), service.at_node(version));
                        let mut addresses = ETHERNET;
                        addresses[..6].copy_from_slice(&ethernet);
                        let frame = packet.ethernet(addresses).build();
                        let sent = send(rig, (door, UPLINK), frame.clone())?;
                        ensure!(sent.verdict == Verdict::Pass && sent.frame == frame, "{door:?}: {sent:?}");
                        ensure!(sent.moved.to_string().is_empty(), "{door:?}: {sent:?}");
                    }
                }
                // A pod's device may be the port of a bridge, whose frames are not for the device itself.
                let packet = first(protocol, end(CALLER, version, 40_002), HERE.at_cluster_ip(version));
                let sent = send(rig, (Door::Ingress, POD), packet.ethernet([0x22; 12]).build())?;
                ensure!(sent.moved.to_string().contains("flows=1"), "{sent:?}");
            }
        }
        rig.compare_flows()
    })
}

/// Pitfall 31: nobody has chosen the device for serving, but replies may cross it, in either direction.
#[test]
fn pitfall_31_by_a_device_for_replies_nothing_new_comes_in() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| {
            if let Some(second) = setup.interfaces.get_mut(&SECOND) {
                second.only_returns = true;
            }
        })?;
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let packet = first(protocol, end(OUTSIDE, version, 40_000), HERE.at_node(version));
                for door in [Door::Xdp, Door::Ingress] {
                    let sent = send(rig, (door, SECOND), packet.build())?;
                    ensure!(sent.verdict == Verdict::Pass && sent.frame == packet.build(), "{door:?}: {sent:?}");
                }
                send(rig, (Door::Ingress, UPLINK), packet.build())?;
                let (client, server) = (end(OUTSIDE, version, 40_000), HERE.backend(version));
                let reply = packet.clone().between(server, client);
                let sent = send(rig, (Door::Egress, SECOND), reply.build())?;
                ensure!(sent.frame == packet.between(HERE.at_node(version), client).build(), "{sent:?}");
            }
        }
        rig.compare_flows()
    })
}
