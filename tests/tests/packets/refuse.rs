// SPDX-License-Identifier: MIT OR Apache-2.0
//! Refusals: ICMP errors, drops, and their counters.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        ETHERNET, Error, POD, UPLINK, behind_headers, fragments, icmp_error,
        node::{self, CALLER, CLUSTER_IP, EMPTY, HERE, LOCAL_ONLY, NODE, OUTSIDE, THERE, UNRESOLVED, UNROUTED, pick},
        port_unreachable, with_options, with_rig,
    },
    reference::{Arrival, Door, Policy, Verdict, Version},
};

use crate::step::{ALL_PROTOCOLS, PROTOCOLS, Step, end, first, next, send, take};

#[test]
fn without_endpoints_the_sender_gets_an_icmp_error() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let from_pod = (POD, end(CALLER, version, 40_000), EMPTY.at_cluster_ip(version));
                let from_outside = (UPLINK, end(OUTSIDE, version, 40_000), EMPTY.at_node(version));
                for (device, client, frontend) in [from_pod, from_outside] {
                    let frame = first(protocol, client, frontend).payload(b"quoted but for the last byte").build();
                    let index = EMPTY.index(version);
                    let error = Step {
                        what: "reject",
                        at: (Door::Ingress, device),
                        frame: frame.clone(),
                        verdict: Verdict::Redirect,
                        output: port_unreachable(&frame, pick(NODE, version), client.ip()),
                        moved: format!("no-endpoints=1 service{index}.rejected=1"),
                    };
                    take(rig, [error, Step::untouched("XDP", (Door::Xdp, device), frame, "left-to-tc=1")])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_node_without_an_address_answers_as_the_service() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.node.clear())?;
        for version in Version::BOTH {
            let (client, frontend) = (end(CALLER, version, 40_000), EMPTY.at_cluster_ip(version));
            let frame = first(protocol::UDP, client, frontend).build();
            let output = port_unreachable(&frame, frontend.ip(), client.ip());
            let moved = format!("no-endpoints=1 service{}.rejected=1", EMPTY.index(version));
            let (what, at, verdict) = ("reject", (Door::Ingress, POD), Verdict::Redirect);
            take(rig, [Step { what, at, frame, verdict, output, moved }])?;
        }
        Ok(())
    })
}

#[test]
fn errors_beyond_the_budget_are_drops() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.rejects_per_tick = 2)?;
        let version = Version::V4;
        let (client, index) = (end(CALLER, version, 40_000), EMPTY.index(version));
        let frame = first(protocol::TCP, client, EMPTY.at_cluster_ip(version)).build();
        let error = port_unreachable(&frame, pick(NODE, version), client.ip());
        let at = (Door::Ingress, POD);
        let moved = format!("no-endpoints=1 service{index}.rejected=1");
        let sent = || Step {
            what: "sent",
            at,
            frame: frame.clone(),
            verdict: Verdict::Redirect,
            output: error.clone(),
            moved: moved.clone(),
        };
        let spent = format!("no-endpoints=1 reject-limit=1 service{index}.rejected=1");
        loop {
            rig.kernel().settle()?;
            let tick = rig.kernel().tick()?;
            let taken = take(rig, [sent(), sent(), Step::dropped("spent", at, frame.clone(), &spent)]);
            // Where it ended meanwhile, there was another budget.
            if taken.is_ok() || rig.kernel().tick()? == tick {
                return taken;
            }
        }
    })
}

#[test]
fn a_local_policy_without_local_endpoints_drops() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let index = LOCAL_ONLY.index(version);
                let moved = format!("no-local-endpoints=1 service{index}.dropped=1");
                let inside = first(protocol, end(CALLER, version, 40_000), LOCAL_ONLY.at_cluster_ip(version)).build();
                let outside = first(protocol, end(OUTSIDE, version, 40_000), LOCAL_ONLY.at_node(version)).build();
                take(
                    rig,
                    [
                        Step::dropped("inside", (Door::Ingress, POD), inside, &moved),
                        Step::dropped("outside", (Door::Ingress, UPLINK), outside.clone(), &moved),
                        Step::dropped("outside, XDP", (Door::Xdp, UPLINK), outside, &moved),
                    ],
                )?;
            }
        }
        Ok(())
    })
}

/// `externalFailoverPolicy: Passthrough`: for clients outside there is no such frontend while no backend may serve them.
#[test]
fn rule_86_what_finds_no_backend_goes_on_untouched_and_uncounted_where_the_service_wants_that() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| {
            for frontend in setup.frontends.values_mut() {
                frontend.policies[1] = Policy::Pass;
            }
        })?;
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let (pod, client) = (end(CALLER, version, 40_000), end(OUTSIDE, version, 40_000));
                let outside = || first(protocol, client, LOCAL_ONLY.at_node(version)).build();
                let inside = first(protocol, pod, LOCAL_ONLY.at_cluster_ip(version)).build();
                let moved = format!("no-local-endpoints=1 service{}.dropped=1", LOCAL_ONLY.index(version));
                take(
                    rig,
                    [
                        Step::untouched("outside", (Door::Ingress, UPLINK), outside(), ""),
                        Step::untouched("outside, XDP", (Door::Xdp, UPLINK), outside(), ""),
                        Step::dropped("inside", (Door::Ingress, POD), inside, &moved),
                    ],
                )?;
            }
        }
        Ok(())
    })
}

#[test]
fn policies_and_tables_are_those_of_the_clients_side() -> Result<()> {
    with_rig(node::setup, |rig| {
        // Clients inside find no endpoint, clients outside do, and the other way round at the second Service.
        rig.change(|setup| {
            for frontend in setup.frontends.values_mut() {
                if frontend.service == HERE.index(Version::V4) {
                    frontend.tables[0].clear();
                } else if frontend.service == THERE.index(Version::V4) {
                    frontend.tables[1].clear();
                    frontend.policies = [node::EMPTY.policy, LOCAL_ONLY.policy];
                }
            }
        })?;
        let version = Version::V4;
        let (pod, outside) = (end(CALLER, version, 40_000), end(OUTSIDE, version, 40_000));
        let here = first(protocol::TCP, outside, HERE.at_node(version));
        let there = first(protocol::TCP, pod, THERE.at_cluster_ip(version));
        let pass = |what, at, packet: shunt_tests::packets::Segment, (client, service): (_, node::Service)| Step {
            what,
            at,
            frame: packet.build(),
            verdict: Verdict::Pass,
            output: packet.between(client, service.backend(version)).build(),
            moved: crate::step::begun(service.index(version), 54),
        };
        let dropped = format!("no-local-endpoints=1 service{}.dropped=1", THERE.index(version));
        let refused = first(protocol::TCP, outside, THERE.at_node(version)).build();
        take(
            rig,
            [
                pass("outside", (Door::Ingress, UPLINK), here, (outside, HERE)),
                pass("inside", (Door::Ingress, POD), there, (pod, THERE)),
                Step::dropped("outside, refused", (Door::Ingress, UPLINK), refused, &dropped),
            ],
        )
    })
}

#[test]
fn without_a_route_the_packet_is_dropped_by_tc() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let frame = first(protocol, end(OUTSIDE, version, 40_000), UNROUTED.at_node(version)).build();
                take(
                    rig,
                    [
                        Step::untouched("XDP", (Door::Xdp, UPLINK), frame.clone(), "left-to-tc=1"),
                        Step::dropped("TC", (Door::Ingress, UPLINK), frame, "no-route=1"),
                    ],
                )?;
            }
        }
        Ok(())
    })
}

#[test]
fn without_a_source_address_the_packet_is_dropped() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| {
            setup.node.clear();
            setup.interfaces.values_mut().for_each(|interface| interface.addresses.clear());
        })?;
        for version in Version::BOTH {
            let frame = first(protocol::TCP, end(OUTSIDE, version, 40_000), THERE.at_node(version)).build();
            let steps =
                Door::IN.map(|door| Step::dropped("no source", (door, UPLINK), frame.clone(), "no-source-address=1"));
            take(rig, steps)?;
        }
        Ok(())
    })
}

#[test]
fn a_table_that_names_no_backend_is_counted_as_corrupt() -> Result<()> {
    with_rig(node::setup, |rig| {
        // A free index, and one beyond the array.
        for wrong in [60, 1_000_000] {
            rig.change(|setup| {
                let tables = setup.frontends.values_mut().flat_map(|frontend| &mut frontend.tables);
                tables.flatten().for_each(|slot| *slot = wrong);
            })?;
            for version in Version::BOTH {
                let frame = first(protocol::TCP, end(OUTSIDE, version, 40_000), HERE.at_node(version)).build();
                take(
                    rig,
                    Door::IN.map(|door| Step::dropped("corrupt", (door, UPLINK), frame.clone(), "table-corrupt=1")),
                )?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_packet_at_the_end_of_its_ttl_is_answered() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for ttl in [0, 1] {
                let client = end(OUTSIDE, version, 40_000 + u16::from(ttl));
                let packet = first(protocol::TCP, client, THERE.at_node(version)).ttl(ttl);
                let (index, frame) = (THERE.index(version), packet.build());
                let begun = format!("left-to-tc=1 service{index}.flows=1 backend{index}.flows=1");
                let time_exceeded = if version == Version::V4 { (11, 0) } else { (3, 0) };
                let answer = Step {
                    what: "TC",
                    at: (Door::Ingress, UPLINK),
                    frame: frame.clone(),
                    verdict: Verdict::Redirect,
                    output: icmp_error(&frame, pick(NODE, version), client.ip(), time_exceeded, 0),
                    moved: "ttl-expired=1".to_owned(),
                };
                take(rig, [Step::untouched("XDP", (Door::Xdp, UPLINK), frame, &begun), answer])?;
                // What the stack routes, the stack judges.
                let packet = first(protocol::TCP, client, HERE.at_node(version)).ttl(ttl);
                let output = packet.clone().between(client, HERE.backend(version)).build();
                let moved = crate::step::begun(HERE.index(version), output.len());
                let (at, frame) = ((Door::Xdp, UPLINK), packet.build());
                take(rig, [Step { what: "here", at, frame, verdict: Verdict::Pass, output, moved }])?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_packet_longer_than_the_ways_mtu_is_answered_cilium_32601() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                let client = end(OUTSIDE, version, 40_000);
                let long = |len: usize| {
                    let bare = first(protocol, client, THERE.at_node(version));
                    let headers_len = bare.clone().payload(b"").build().len() - 14;
                    bare.payload(&vec![0xa5; len - headers_len]).build()
                };
                let (index, frame) = (THERE.index(version), long(1501));
                let begun = format!("left-to-tc=1 service{index}.flows=1 backend{index}.flows=1");
                let too_big = if version == Version::V4 { (3, 4) } else { (2, 0) };
                let answer = Step {
                    what: "TC",
                    at: (Door::Ingress, UPLINK),
                    frame: frame.clone(),
                    verdict: Verdict::Redirect,
                    output: icmp_error(&frame, pick(NODE, version), client.ip(), too_big, 1500),
                    moved: "too-big=1".to_owned(),
                };
                take(rig, [Step::untouched("XDP", (Door::Xdp, UPLINK), frame, &begun), answer])?;
                let fits = send(rig, (Door::Xdp, UPLINK), long(1500))?;
                ensure!(fits.verdict == Verdict::Transmit, "{fits:?}");
            }
        }
        Ok(())
    })
}

/// Which neighbour it goes to does not matter to that.
#[test]
fn nor_does_a_packet_go_that_is_too_long_for_the_way_to_an_unknown_neighbour() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), UNRESOLVED.at_node(version));
            send(rig, (Door::Ingress, UPLINK), first(protocol::UDP, client, frontend).build())?;
            let long = first(protocol::UDP, client, frontend).payload(&[0xa5; 1473]).build();
            let too_big = if version == Version::V4 { (3, 4) } else { (2, 0) };
            let answer = Step {
                what: "TC",
                at: (Door::Ingress, UPLINK),
                frame: long.clone(),
                verdict: Verdict::Redirect,
                output: icmp_error(&long, pick(NODE, version), client.ip(), too_big, 1500),
                moved: "too-big=1".to_owned(),
            };
            take(rig, [Step::untouched("XDP", (Door::Xdp, UPLINK), long, "left-to-tc=1"), answer])?;
        }
        Ok(())
    })
}

/// What the kernel cuts into segments later is as long as these, whatever stands before their layer 4.
#[test]
fn a_packet_that_is_yet_to_be_cut_is_as_long_as_its_segments() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for (number, protocol) in (0..).zip(ALL_PROTOCOLS) {
                let (client, frontend) = (end(OUTSIDE, version, 40_000 + number), THERE.at_node(version));
                send(rig, (Door::Ingress, UPLINK), first(protocol, client, frontend).build())?;
                let plain = next(protocol, client, frontend).payload(&[0xa5; 2900]).build();
                let headers_len = plain.len() - 14 - 2900;
                let longer = if version == Version::V4 {
                    with_options(&plain, &[1; 8])
                } else {
                    behind_headers(&plain, 60, &[plain[14 + 6], 0, 1, 4, 0, 0, 0, 0])
                };
                for (frame, headers_len) in [(plain, headers_len), (longer, headers_len + 8)] {
                    let mut goes = |segment_len: usize| -> Result<bool> {
                        let (door, ifindex, frame) = (Door::Ingress, UPLINK, frame.clone());
                        let arrival = Arrival { door, ifindex, arrived_by: 0, frame, is_trace: false };
                        let sent = rig.send_uncut(&arrival, segment_len.try_into()?)?;
                        ensure!(sent.verdict == Verdict::Redirect, "{sent}");
                        Ok(sent.moved.reasons.is_empty())
                    };
                    if protocol == protocol::SCTP {
                        ensure!(goes(0xffff)?, "its segments are of many lengths");
                    } else {
                        ensure!(goes(1500 - headers_len)?, "{protocol}: {headers_len} bytes of headers");
                        ensure!(!goes(1501 - headers_len)?, "{protocol}: {headers_len} bytes of headers");
                    }
                    ensure!(!goes(0)?, "not cut at all");
                }
            }
        }
        Ok(())
    })
}

/// At a ClusterIP nobody is but its ports: who asks whether somebody is hears that there is not, by either door.
#[test]
fn rule_44_an_echo_request_to_a_cluster_ip_is_refused() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, service) = (pick(CALLER, version), pick(CLUSTER_IP, version));
            let kind = if version == Version::V4 { (8, 0) } else { (128, 0) };
            let (word, ethernet) = ([0x12, 0x34, 0, 1], ETHERNET);
            let echo = Error { source: client, destination: service, kind, word, ttl: 64, ethernet };
            let frame = echo.build(&[0x5a; 56]);
            let longer = if version == Version::V4 {
                with_options(&frame, &[1; 8])
            } else {
                behind_headers(&frame, 60, &[frame[14 + 6], 0, 1, 4, 0, 0, 0, 0])
            };
            let long = fragments(&echo.build(&[0x5a; 2000]), 7, 1024).swap_remove(0);
            for door in Door::ALL {
                take(rig, [Step::untouched("nobody's address", (door, POD), frame.clone(), "")])?;
            }
            rig.change(|setup| setup.guarded.extend([service]))?;
            for frame in [frame, longer, long] {
                let refused = Step {
                    what: "TC",
                    at: (Door::Ingress, POD),
                    output: port_unreachable(&frame, pick(NODE, version), client),
                    frame: frame.clone(),
                    verdict: Verdict::Redirect,
                    moved: "undefined-port=1".to_owned(),
                };
                take(rig, [Step::untouched("XDP", (Door::Xdp, POD), frame, "left-to-tc=1"), refused])?;
            }
            let answer = Error { kind: if version == Version::V4 { (0, 0) } else { (129, 0) }, ..echo };
            take(rig, Door::IN.map(|door| Step::untouched("an answer", (door, POD), answer.build(&[0; 8]), "")))?;
            let to_node = Error { destination: pick(NODE, version), ..echo }.build(&[0; 8]);
            take(rig, Door::IN.map(|door| Step::untouched("to the node", (door, POD), to_node.clone(), "")))?;
        }
        Ok(())
    })
}

#[test]
fn an_error_quotes_no_more_than_508_bytes() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for len in [0, 1, 3, 440, 1000, 1400] {
                let (client, frontend) = (end(CALLER, version, 40_000), EMPTY.at_cluster_ip(version));
                let frame = first(protocol::UDP, client, frontend).payload(&vec![0xa5; len]).build();
                let output = port_unreachable(&frame, pick(NODE, version), client.ip());
                let moved = format!("no-endpoints=1 service{}.rejected=1", EMPTY.index(version));
                let (what, at, verdict) = ("reject", (Door::Ingress, POD), Verdict::Redirect);
                take(rig, [Step { what, at, frame, verdict, output, moved }])?;
            }
        }
        Ok(())
    })
}

#[test]
fn nobody_answers_what_came_from_or_to_many() -> Result<()> {
    const SOURCES: [&str; 8] =
        ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "ff0e::7"];
    with_rig(node::setup, |rig| {
        for source in SOURCES {
            let client = SocketAddr::new(source.parse()?, 40_000);
            let version = Version::of(client.ip());
            let frame = first(protocol::UDP, client, EMPTY.at_cluster_ip(version)).build();
            let moved = format!("answer-forbidden=1 no-endpoints=1 service{}.rejected=1", EMPTY.index(version));
            take(rig, [Step::dropped(source, (Door::Ingress, POD), frame, &moved)])?;
        }
        for (what, group) in [("broadcast", [0xff; 6]), ("multicast", [0x01, 0, 0x5e, 0, 0, 1])] {
            let version = Version::V4;
            let mut frame = first(protocol::UDP, end(CALLER, version, 1), EMPTY.at_cluster_ip(version)).build();
            frame[..6].copy_from_slice(&group);
            let moved = format!("answer-forbidden=1 no-endpoints=1 service{}.rejected=1", EMPTY.index(version));
            take(rig, [Step::dropped(what, (Door::Ingress, POD), frame, &moved)])?;
        }
        Ok(())
    })
}

#[test]
fn a_client_in_the_reserved_range_is_answered() -> Result<()> {
    with_rig(node::setup, |rig| {
        for source in ["240.0.0.9", "255.255.255.254", "1.0.0.1", "128.0.0.1"] {
            let client = SocketAddr::new(source.parse()?, 40_000);
            let frame = first(protocol::UDP, client, EMPTY.at_cluster_ip(Version::V4)).build();
            let output = port_unreachable(&frame, pick(NODE, Version::V4), client.ip());
            let moved = format!("no-endpoints=1 service{}.rejected=1", EMPTY.index(Version::V4));
            let (what, at, verdict) = (source, (Door::Ingress, POD), Verdict::Redirect);
            take(rig, [Step { what, at, frame, verdict, output, moved }])?;
        }
        Ok(())
    })
}
