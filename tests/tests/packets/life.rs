// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a decision holds: backends that go, connections that end, entries that are lost, tuples that collide.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_common::flow::{
    FlowState, protocol,
    tcp_flags::{ACK, FIN, RST, SYN},
};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK,
        node::{self, BACKEND_PORT, CALLER, HERE, NODE, OUTSIDE, Service, THERE, pick},
        with_rig,
    },
    reference::{Backend, Door, Entry, Outcome, Tuple, Verdict, Version},
};

use crate::step::{ALL_PROTOCOLS, Step, answer, continued, end, first, next, send, source_port, take};

/// Where the backend goes when it is replaced, in the tests here.
const SUCCESSOR: node::Both = ["10.1.0.99", "fd00:1::99"];
/// Its index.
const SUCCESSOR_INDEX: u32 = 40;

/// Puts another backend in the place of a Service's own, whose index is freed.
fn replace_backend(rig: &mut Rig, service: Service, version: Version) -> Result<()> {
    rig.change(|setup| {
        let gone = service.index(version);
        let freed = setup.backends[gone as usize].generation + 1;
        setup.backends[gone as usize] = Backend::free(freed);
        node::add_backend(setup, SUCCESSOR_INDEX, (pick(SUCCESSOR, version), BACKEND_PORT), true);
        for frontend in setup.frontends.values_mut().filter(|frontend| frontend.service == gone) {
            frontend.tables.iter_mut().flatten().for_each(|slot| *slot = SUCCESSOR_INDEX);
        }
    })
}

fn successor(version: Version) -> SocketAddr {
    end(SUCCESSOR, version, BACKEND_PORT)
}

/// Sends at the uplink, by XDP.
fn arrive(rig: &mut Rig, packet: &Segment) -> Result<Outcome> {
    send(rig, (Door::Xdp, UPLINK), packet.build())
}

/// The entry of a client's packet.
fn entry(rig: &Rig, src: SocketAddr, dst: SocketAddr, protocol: u8) -> Result<Entry> {
    rig.compare_flows()?;
    let tuple = Tuple { src, dst, protocol };
    rig.model().flows.0.get(&tuple).copied().with_context(|| format!("no flow {tuple:?}"))
}

#[test]
fn udp_leaves_a_backend_that_has_gone_at_its_next_packet() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            let packet = Segment::udp(client, frontend);
            arrive(rig, &packet)?;
            replace_backend(rig, HERE, version)?;
            let moved = arrive(rig, &packet)?;
            ensure!(moved.frame == packet.clone().between(client, successor(version)).build(), "{moved:?}");
            let index = HERE.index(version);
            let len = packet.build().len();
            let counted = format!(
                "service{index}.flows=1 backend{SUCCESSOR_INDEX}.original=1x{len}B backend{SUCCESSOR_INDEX}.flows=1"
            );
            ensure!(moved.moved.to_string() == counted, "moved {}", moved.moved);
            rig.compare_flows()?;
        }
        Ok(())
    })
}

#[test]
fn udp_is_refused_when_the_last_backend_has_gone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            let packet = Segment::udp(client, frontend);
            arrive(rig, &packet)?;
            rig.change(|setup| {
                let gone = HERE.index(version);
                setup.backends[gone as usize] = Backend::free(1);
                let frontends = setup.frontends.values_mut().filter(|frontend| frontend.service == gone);
                frontends.flat_map(|frontend| &mut frontend.tables).for_each(Vec::clear);
            })?;
            let refused = send(rig, (Door::Ingress, UPLINK), packet.build())?;
            ensure!(refused.verdict == Verdict::Redirect, "{refused:?}");
            let counted = format!("no-endpoints=1 service{}.rejected=1", HERE.index(version));
            ensure!(refused.moved.to_string() == counted, "moved {}", refused.moved);
        }
        Ok(())
    })
}

#[test]
fn tcp_keeps_a_backend_that_has_gone_until_its_next_syn() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            let (syn, data) =
                (Segment::tcp(client, frontend, SYN), Segment::tcp(client, frontend, ACK).payload(b"data"));
            arrive(rig, &syn)?;
            arrive(rig, &data)?;
            replace_backend(rig, HERE, version)?;
            let step = Step {
                what: "data",
                at: (Door::Xdp, UPLINK),
                frame: data.build(),
                verdict: Verdict::Pass,
                output: data.clone().between(client, HERE.backend(version)).build(),
                moved: continued(HERE.index(version), data.build().len()),
            };
            take(rig, [step])?;
            let begun = arrive(rig, &syn)?;
            ensure!(begun.frame == syn.clone().between(client, successor(version)).build(), "{begun:?}");
            rig.compare_flows()?;
        }
        Ok(())
    })
}

#[test]
fn a_connection_passes_through_its_states() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
            for (is_reply, flags, state) in [
                (false, SYN, FlowState::HALF_OPEN),
                (true, SYN | ACK, FlowState::HALF_OPEN),
                (false, ACK, FlowState::ESTABLISHED),
                (false, RST, FlowState::RESET),
                (false, ACK, FlowState::ESTABLISHED),
                (true, RST | ACK, FlowState::RESET),
                (true, ACK, FlowState::ESTABLISHED),
                (true, FIN | ACK, FlowState::FIN_REPLY),
                (false, ACK, FlowState::FIN_REPLY),
                (false, FIN | ACK, FlowState::CLOSING),
                (true, ACK, FlowState::CLOSING),
            ] {
                let (door, packet) = if is_reply {
                    (Door::Egress, Segment::tcp(HERE.backend(version), client, flags))
                } else {
                    (Door::Ingress, Segment::tcp(client, frontend, flags))
                };
                send(rig, (door, POD), packet.build())?;
                let entry = entry(rig, client, frontend, protocol::TCP)?;
                ensure!(entry.state == state, "{:?} after {flags:#x}", entry.state.as_str());
            }
        }
        Ok(())
    })
}

/// Both sides may begin at once (RFC 9293 section 3.5): one connection comes of it, and it lives as long as any other.
#[test]
fn a_simultaneous_open_is_one_connection() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for service in [HERE, THERE] {
                let (client, frontend) = (end(OUTSIDE, version, 40_000), service.at_node(version));
                let sent = arrive(rig, &Segment::tcp(client, frontend, SYN))?;
                let (back, own) = if service.port == HERE.port {
                    (Door::Egress, client)
                } else {
                    (Door::Xdp, SocketAddr::new(pick(NODE, version), source_port(&sent.frame, version)))
                };
                for (is_reply, flags, state) in [
                    (true, SYN, FlowState::HALF_OPEN),
                    (false, SYN | ACK, FlowState::HALF_OPEN),
                    (true, SYN | ACK, FlowState::HALF_OPEN),
                    (false, ACK, FlowState::ESTABLISHED),
                    (true, ACK, FlowState::ESTABLISHED),
                ] {
                    let (door, from, to) = if is_reply {
                        (back, [service.backend(version), own], [frontend, client])
                    } else {
                        (Door::Xdp, [client, frontend], [own, service.backend(version)])
                    };
                    let sent = send(rig, (door, UPLINK), Segment::tcp(from[0], from[1], flags).build())?;
                    ensure!(sent.moved.services.is_empty(), "decided anew: {sent}");
                    let ports = to.map(|end| end.port().to_be_bytes()).concat();
                    let l4 = if version == Version::V4 { 34 } else { 54 };
                    ensure!(sent.frame[l4..l4 + 4] == ports, "{flags:#x}: {sent}");
                    let entry = entry(rig, client, frontend, protocol::TCP)?;
                    ensure!(entry.state == state, "{:?} after {flags:#x}", entry.state.as_str());
                }
                ensure!(
                    rig.flows_in(&[FlowState::ESTABLISHED])?.iter().any(|tuple| tuple.src == client),
                    "established"
                );
                rig.evict(Tuple { src: client, dst: frontend, protocol: protocol::TCP })?;
                rig.wait(1)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_syn_on_a_closing_entry_decides_anew_kubernetes_81775() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            let syn = Segment::tcp(client, frontend, SYN);
            arrive(rig, &syn)?;
            send(rig, (Door::Egress, UPLINK), Segment::tcp(HERE.backend(version), client, SYN | ACK).build())?;
            arrive(rig, &Segment::tcp(client, frontend, RST))?;
            // The old backend lives; new connections go elsewhere.
            rig.change(|setup| {
                node::add_backend(setup, SUCCESSOR_INDEX, (pick(SUCCESSOR, version), BACKEND_PORT), true);
                let frontends = setup.frontends.values_mut();
                for frontend in frontends.filter(|frontend| frontend.service == HERE.index(version)) {
                    frontend.tables.iter_mut().flatten().for_each(|slot| *slot = SUCCESSOR_INDEX);
                }
            })?;
            let late = arrive(rig, &Segment::tcp(client, frontend, ACK))?;
            let kept = Segment::tcp(client, HERE.backend(version), ACK).build();
            ensure!(late.frame == kept, "a late segment still goes to the old backend: {late:?}");
            // Which has reset that connection.
            send(rig, (Door::Egress, UPLINK), Segment::tcp(HERE.backend(version), client, RST).build())?;
            let begun = arrive(rig, &syn)?;
            ensure!(begun.frame == syn.between(client, successor(version)).build(), "{begun:?}");
            let entry = entry(rig, client, frontend, protocol::TCP)?;
            ensure!(entry.state == FlowState::HALF_OPEN, "{:?}", entry.state.as_str());
        }
        Ok(())
    })
}

#[test]
fn an_idle_flow_is_decided_anew_after_its_time_out() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            let packet = Segment::udp(client, frontend);
            let begin = |rig: &mut Rig| Ok::<_, anyhow::Error>(arrive(rig, &packet)?.moved.services.len() == 1);
            let timeout = node::TIMEOUTS[FlowState::UNREPLIED.index()];
            ensure!(begin(rig)?, "the first packet begins a flow");
            // Two ticks to spare: one may end while we wait.
            rig.wait(timeout - 2)?;
            ensure!(!begin(rig)?, "not idle for long enough");
            // The other direction may have been seen later than this one, by an eighth of the time-out.
            rig.wait(timeout + timeout / 8 + 1)?;
            ensure!(begin(rig)?, "idle for too long");
        }
        Ok(())
    })
}

/// Each CPU looks at the clock for itself: the other one's tick may have begun a moment before this one's (u32::MAX ticks ago,
/// it once seemed).
#[test]
fn a_flow_that_another_cpu_used_in_the_next_tick_is_not_idle() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in ALL_PROTOCOLS {
                for service in [HERE, THERE] {
                    let (client, frontend) = (end(OUTSIDE, version, 40_000), service.at_node(version));
                    let backend = service.backend(version);
                    let begun = arrive(rig, &first(protocol, client, frontend))?;
                    let own = if service.port == HERE.port { client.ip() } else { pick(NODE, version) };
                    let own = SocketAddr::new(own, source_port(&begun.frame, version));
                    let back = if service.port == HERE.port { Door::Egress } else { Door::Xdp };
                    // Pending, and established.
                    for _ in 0..2 {
                        rig.overtake()?;
                        let there = arrive(rig, &next(protocol, client, frontend))?;
                        ensure!(there.moved.services.is_empty(), "decided anew: {there}");
                        rig.overtake()?;
                        let answer = answer(protocol, backend, own).build();
                        let answered = send(rig, (back, UPLINK), answer.clone())?;
                        ensure!(answered.frame != answer, "not translated: {answered}");
                        rig.overtake()?;
                        arrive(rig, &next(protocol, client, frontend))?;
                        rig.compare_flows()?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// The same for a port that another flow has.
#[test]
fn a_port_that_another_cpu_took_in_the_next_tick_is_not_free() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.source_ports = [Some(50_000..=50_001), None])?;
        for version in Version::BOTH {
            for (protocol, closes) in [(protocol::TCP, false), (protocol::TCP, true), (protocol::UDP, false)] {
                let client = |port| end(OUTSIDE, version, port);
                for port in 40_000..40_002 {
                    begin_established(rig, protocol, client(port))?;
                    if closes {
                        arrive(rig, &Segment::tcp(client(port), THERE.at_node(version), RST))?;
                    }
                }
                rig.overtake()?;
                let late = first(protocol, client(40_002), THERE.at_node(version)).build();
                take(
                    rig,
                    Door::IN.map(|door| Step::dropped("late", (door, UPLINK), late.clone(), "no-source-port=1")),
                )?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_lost_reply_entry_is_made_again_after_some_ticks() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for service in [HERE, THERE] {
                let (client, frontend) = (end(OUTSIDE, version, 40_000), service.at_node(version));
                let packet = Segment::tcp(client, frontend, SYN);
                arrive(rig, &packet)?;
                let forward = entry(rig, client, frontend, protocol::TCP)?;
                let reply = Tuple { src: forward.to.dst, dst: forward.to.src, protocol: protocol::TCP };
                rig.evict(reply)?;
                rig.wait(8)?;
                arrive(rig, &packet)?;
                let again = entry(rig, reply.src, reply.dst, protocol::TCP)?;
                ensure!((again.to.src, again.to.dst) == (frontend, client), "{again:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_lost_forward_entry_meets_the_same_backend_and_source_port() -> Result<()> {
    with_rig(node::setup, |rig| {
        // Many backends, so that meeting the same one is no accident.
        rig.change(|setup| {
            for version in Version::BOTH {
                for number in 0..10 {
                    let address =
                        format!("{}{number}", if version == Version::V4 { "10.2.0.10" } else { "fd00:2::10" });
                    let index = SUCCESSOR_INDEX + number + if version == Version::V4 { 0 } else { 10 };
                    node::add_backend(setup, index, (address.parse().expect("an address"), BACKEND_PORT), false);
                }
                let first = SUCCESSOR_INDEX + if version == Version::V4 { 0 } else { 10 };
                let frontends = setup.frontends.values_mut();
                for frontend in frontends.filter(|frontend| frontend.service == THERE.index(version)) {
                    let slots: Vec<u32> = (0..101).map(|slot| first + slot % 10).collect();
                    frontend.tables = [slots.clone(), slots];
                }
            }
        })?;
        for version in Version::BOTH {
            for port in 40_000..40_050 {
                let (client, frontend) = (end(OUTSIDE, version, port), THERE.at_node(version));
                arrive(rig, &Segment::tcp(client, frontend, SYN))?;
                let to = entry(rig, client, frontend, protocol::TCP)?.to;
                arrive(rig, &Segment::tcp(to.dst, to.src, SYN | ACK))?;
                let data = Segment::tcp(client, frontend, ACK);
                let before = arrive(rig, &data)?;
                rig.evict(Tuple { src: client, dst: frontend, protocol: protocol::TCP })?;
                let after = arrive(rig, &data)?;
                ensure!(after.frame == before.frame, "{before:?}\n{after:?}");
                let entry = entry(rig, client, frontend, protocol::TCP)?;
                ensure!(entry.state == FlowState::ESTABLISHED, "{:?}", entry.state.as_str());
            }
        }
        Ok(())
    })
}

#[test]
fn one_client_port_through_two_vips_to_one_backend_cilium_42632() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in [protocol::TCP, protocol::UDP] {
                let (client, backend) = (end(CALLER, version, 40_000), HERE.backend(version));
                let vips = [HERE.at_cluster_ip(version), HERE.at_node(version)];
                let mut ports = Vec::new();
                for vip in vips {
                    let sent = send(rig, (Door::Ingress, POD), first(protocol, client, vip).build())?;
                    ports.push(source_port(&sent.frame, version));
                    let own = SocketAddr::new(client.ip(), ports[ports.len() - 1]);
                    ensure!(sent.frame == first(protocol, own, backend).build(), "{sent:?}");
                }
                ensure!(ports[0] == 40_000 && rig.model().setup.is_source_port(ports[1]), "{ports:?}");
                for (vip, port) in vips.into_iter().zip(ports) {
                    let reply = first(protocol, backend, SocketAddr::new(client.ip(), port));
                    let back = send(rig, (Door::Egress, POD), reply.build())?;
                    ensure!(back.frame == first(protocol, vip, client).build(), "a reply by {vip}: {back:?}");
                }
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn two_clients_with_one_port_share_no_source_port() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let mut ports = std::collections::BTreeSet::new();
            for host in 1..=100 {
                let client = format!("{}{host}", if version == Version::V4 { "203.0.113." } else { "2001:db8:c::" });
                let client = SocketAddr::new(client.parse()?, 40_000);
                let sent = arrive(rig, &Segment::tcp(client, THERE.at_node(version), SYN))?;
                ensure!(ports.insert(source_port(&sent.frame, version)), "{client}: {sent:?}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn a_spent_source_port_range_drops_and_counts() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.source_ports = [Some(50_000..=50_003), None])?;
        for version in Version::BOTH {
            for port in 40_000..40_004 {
                begin_established(rig, protocol::TCP, end(OUTSIDE, version, port))?;
            }
            let late = Segment::tcp(end(OUTSIDE, version, 40_004), THERE.at_node(version), SYN);
            take(rig, Door::IN.map(|door| Step::dropped("late", (door, UPLINK), late.build(), "no-source-port=1")))?;
            // A port whose flow has been idle for too long can be had.
            rig.wait(node::TIMEOUTS[FlowState::ESTABLISHED.index()] + 9)?;
            let begun = arrive(rig, &late)?;
            ensure!(begun.verdict == Verdict::Transmit, "{begun:?}");
        }
        rig.compare_flows()
    })
}

/// A flow to the backend elsewhere whose client has spoken again after an answer, of UDP a while later.
fn begin_established(rig: &mut Rig, protocol: u8, client: SocketAddr) -> Result<()> {
    let version = Version::of(client.ip());
    let sent = arrive(rig, &first(protocol, client, THERE.at_node(version)))?;
    let node = SocketAddr::new(pick(NODE, version), source_port(&sent.frame, version));
    arrive(rig, &answer(protocol, THERE.backend(version), node))?;
    if protocol == protocol::UDP {
        rig.wait(3)?;
    }
    arrive(rig, &next(protocol, client, THERE.at_node(version))).map(drop)
}

/// First packets that nobody has answered keep nobody else from a port: of a flood there are more than ports.
#[test]
fn a_flood_of_first_packets_does_not_spend_the_source_ports() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.source_ports = [Some(50_000..=50_003), None])?;
        for version in Version::BOTH {
            for protocol in ALL_PROTOCOLS {
                let client = |port| end(OUTSIDE, version, port);
                begin_established(rig, protocol, client(40_000))?;
                for port in 40_001..40_040 {
                    let begun = arrive(rig, &first(protocol, client(port), THERE.at_node(version)))?;
                    ensure!(begun.verdict == Verdict::Transmit, "{begun:?}");
                }
                let next = arrive(rig, &next(protocol, client(40_000), THERE.at_node(version)))?;
                ensure!(next.moved.backends.values().all(|moved| moved.flows == 0), "the established one has gone");
            }
        }
        rig.compare_flows()
    })
}

/// A flow whose port was taken gets another at its next packet, also within the same tick: its answers would be the other's.
#[test]
fn a_flow_without_an_answer_that_lost_its_port_gets_another() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.source_ports = [Some(50_000..=50_000), None])?;
        for version in Version::BOTH {
            for protocol in ALL_PROTOCOLS {
                let [one, other] = [40_000, 40_001].map(|port| end(OUTSIDE, version, port));
                arrive(rig, &first(protocol, one, THERE.at_node(version)))?;
                begin_established(rig, protocol, other)?;
                let dropped = send(rig, (Door::Xdp, UPLINK), next(protocol, one, THERE.at_node(version)).build())?;
                ensure!(dropped.verdict == Verdict::Drop, "by the port of another: {dropped:?}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn a_next_hop_is_looked_up_again_after_routes_have_changed() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
            let sent = arrive(rig, &Segment::tcp(client, frontend, SYN))?;
            let node = SocketAddr::new(pick(NODE, version), source_port(&sent.frame, version));
            let reply = Segment::tcp(THERE.backend(version), node, SYN | ACK);
            let data = Segment::tcp(client, frontend, ACK);
            let there = Tuple { src: client, dst: frontend, protocol: protocol::TCP };
            let back = Tuple { src: THERE.backend(version), dst: node, protocol: protocol::TCP };
            ensure!(kernel_entry(rig, back)?.next_hop.is_none(), "looked up before a reply wanted it");
            for (tuple, packet) in [(there, &data), (back, &reply)] {
                for _ in 0..2 {
                    rig.change(|setup| setup.next_hop_generation += 1)?;
                    arrive(rig, packet)?;
                    is_sent_by_uplink(rig, tuple)?;
                }
            }
            rig.compare_flows()?;
        }
        Ok(())
    })
}

/// Review A9, A10: next hops stood in the flows, and were written one field after the other. They stand in a table of their own: after
/// a change of routes one flow asks for all that go to a destination.
#[test]
fn a9_a10_flows_to_one_destination_share_their_next_hop() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let frontend = THERE.at_node(version);
            let flows = [40_000, 40_001].map(|port| Segment::tcp(end(OUTSIDE, version, port), frontend, SYN));
            for flow in &flows {
                arrive(rig, flow)?;
            }
            rig.change(|setup| setup.next_hop_generation += 1)?;
            arrive(rig, &flows[0])?;
            for port in [40_000, 40_001] {
                let tuple = Tuple { src: end(OUTSIDE, version, port), dst: frontend, protocol: protocol::TCP };
                is_sent_by_uplink(rig, tuple)?;
            }
            rig.compare_flows()?;
        }
        Ok(())
    })
}

/// Whether an entry's next hop is of the present routes.
fn is_sent_by_uplink(rig: &Rig, tuple: Tuple) -> Result<()> {
    let next_hop = kernel_entry(rig, tuple)?.next_hop.with_context(|| format!("{tuple:?} has no next hop"))?;
    let wanted = (UPLINK, rig.model().setup.next_hop_generation);
    ensure!((next_hop.ifindex, next_hop.generation) == wanted, "{tuple:?}: {next_hop:?}");
    Ok(())
}

/// Review A14: the reply's entry of an earlier decision stayed, and kept its tuple from everybody else.
#[test]
fn a14_no_reply_entry_of_an_earlier_decision_is_left() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in [protocol::TCP, protocol::UDP] {
                let (client, frontend) = (end(OUTSIDE, version, 40_000), THERE.at_node(version));
                arrive(rig, &first(protocol, client, frontend))?;
                let before = entry(rig, client, frontend, protocol)?.to.reversed();
                replace_backend(rig, THERE, version)?;
                arrive(rig, &first(protocol, client, frontend))?;
                let after = entry(rig, client, frontend, protocol)?.to.reversed();
                ensure!(before != after, "it is to be decided anew");
                let flows = rig.kernel_flows()?;
                ensure!(!flows.contains_key(&before) && flows.contains_key(&after), "{before:?} is left");
                // Back to where it was, for the next protocol.
                rig.change(|setup| {
                    let index = THERE.index(version);
                    node::add_backend(setup, index, (THERE.backend(version).ip(), BACKEND_PORT), false);
                    for frontend in setup.frontends.values_mut().filter(|frontend| frontend.service == index) {
                        frontend.tables.iter_mut().flatten().for_each(|slot| *slot = index);
                    }
                })?;
            }
        }
        Ok(())
    })
}

/// An entry as the kernel has it.
fn kernel_entry(rig: &Rig, tuple: Tuple) -> Result<Entry> {
    rig.kernel_flow(tuple)?.with_context(|| format!("no flow {tuple:?}"))
}

#[test]
fn a_direct_connection_by_the_ports_of_one_that_is_over_is_let_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend, backend) =
                (end(CALLER, version, 40_000), HERE.at_cluster_ip(version), HERE.backend(version));
            let there = |flags| ((Door::Ingress, POD), Segment::tcp(client, frontend, flags).build());
            let back = |flags| ((Door::Egress, POD), Segment::tcp(backend, client, flags).build());
            let whole = [there(SYN), back(SYN | ACK), there(ACK), there(FIN | ACK), back(FIN | ACK), there(ACK)];
            for (at, frame) in whole {
                send(rig, at, frame)?;
            }
            let (at, frame) = back(ACK);
            ensure!(send(rig, at, frame.clone())?.frame != frame, "the last of the old connection");
            let (at, frame) = back(SYN | ACK);
            take(rig, [Step::untouched("the first of a direct one", at, frame, "")])?;
            let (at, frame) = back(ACK);
            take(rig, [Step::untouched("a later one", at, frame, "")])?;
        }
        Ok(())
    })
}
