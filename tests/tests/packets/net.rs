// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net: what no door has translated leaves by its device, and is decided there. Refusals and errors are in `net_errors`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::{
    flow::{
        flow_flags, protocol,
        tcp_flags::{ACK, SYN},
    },
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::Reason,
};
use shunt_tests::{
    packets::{
        BARE, LOOPBACK, NET, POD, Rig, Room, SECOND, Segment, UPLINK, fragments,
        node::{
            self, CALLER, CLUSTER_IP, ELSEWHERE, GATEWAY, HAIRPIN, HERE, NAMELESS, NET_SOURCE, NODE, OUTSIDE, Service,
            THERE, UNRESOLVED, UNROUTED, pick,
        },
        with_rig, with_rig_for,
    },
    reference::{Arrival, Door, Policy, Verdict, Version},
};

use crate::step::{ALL_PROTOCOLS, Step, answer, begun, continued, end, first, next, replied, send, source_port, take};

/// Where what leaves by the net's device is.
pub const AT_NET: (Door, u32) = (Door::Net, NET);
const LEFT_TO_TC: &str = "left-to-tc=1";
const LOCALHOST: node::Both = ["127.0.0.1", "::1"];

/// Runs a test for both versions and all protocols on one node.
pub fn for_all(test: impl Fn(&mut Rig, Version, u8) -> Result<()> + Sync) -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in ALL_PROTOCOLS {
                test(rig, version, protocol)?;
            }
        }
        Ok(())
    })
}

/// Both Ethernet addresses of what arrives by the net's device.
pub fn nets(rig: &Rig) -> [u8; 12] {
    let own = rig.network.devices[&NET];
    [own, own].concat().try_into().expect("twice six bytes")
}

/// A client's way to a Service by the net: first packet, second, and the reply.
struct Way {
    at: (Door, u32),
    client: SocketAddr,
    frontend: SocketAddr,
    service: Service,
}

fn redirected(what: &'static str, at: (Door, u32), frame: Vec<u8>, output: Vec<u8>, moved: String) -> Step {
    Step { what, at, frame, verdict: Verdict::Redirect, output, moved }
}

impl Way {
    fn of(client: node::Both, service: Service, version: Version) -> Self {
        Self { at: AT_NET, client: end(client, version, 40_000), frontend: service.at_cluster_ip(version), service }
    }

    /// By the net's source: there, and back at the net.
    fn is_by_nets_source(&self, rig: &mut Rig, version: Version, protocol: u8) -> Result<()> {
        let (index, backend) = (self.service.index(version), self.service.backend(version));
        let (own, nets) = (SocketAddr::new(pick(NET_SOURCE, version), self.client.port()), nets(rig));
        let packet = first(protocol, self.client, self.frontend);
        let there = packet.clone().between(own, backend).ethernet(nets).build();
        let reply = answer(protocol, backend, own);
        let back = reply.clone().between(self.frontend, self.client).ethernet(nets).build();
        let len = packet.build().len();
        let moved = replied(index, reply.build().len());
        take(
            rig,
            [
                redirected("first", self.at, packet.build(), there.clone(), begun(index, len)),
                redirected("second", self.at, packet.build(), there.clone(), continued(index, len)),
                Step::untouched("to the pod", (Door::Egress, POD), there, ""),
                Step::untouched("reply, at the pod's door", (Door::Ingress, POD), reply.build(), ""),
                redirected("reply", AT_NET, reply.build(), back, moved),
            ],
        )
    }

    /// With the client's own source, or with another one: forwarded to a neighbour, and back at an uplink's door.
    fn is_forwarded(&self, rig: &mut Rig, protocol: u8, source: IpAddr, out: (u32, IpAddr)) -> Result<()> {
        let version = Version::of(source);
        let (index, backend) = (self.service.index(version), self.service.backend(version));
        let (own, nets) = (SocketAddr::new(source, self.client.port()), nets(rig));
        let packet = first(protocol, self.client, self.frontend);
        let ethernet = rig.network.ethernet(out.0, out.1);
        let there = packet.clone().between(own, backend).ttl(63).ethernet(ethernet).build();
        let reply = answer(protocol, backend, own);
        let back = reply.clone().between(self.frontend, self.client).ethernet(nets).build();
        let len = packet.build().len();
        let moved = replied(index, reply.build().len());
        take(
            rig,
            [
                redirected("first", self.at, packet.build(), there.clone(), begun(index, len)),
                redirected("second", self.at, packet.build(), there, continued(index, len)),
                Step::untouched("reply at XDP", (Door::Xdp, out.0), reply.build(), LEFT_TO_TC),
                redirected("reply", (Door::Ingress, out.0), reply.build(), back, moved),
            ],
        )
    }
}

#[test]
fn a_backend_here_is_reached_by_the_nets_source() -> Result<()> {
    for_all(|rig, version, protocol| Way::of(NODE, HERE, version).is_by_nets_source(rig, version, protocol))
}

#[test]
fn a_pod_that_is_its_own_backend_is_reached_by_the_nets_source() -> Result<()> {
    for_all(|rig, version, protocol| {
        for is_local in [true, false] {
            let index = HAIRPIN.index(version);
            rig.change(|setup| setup.backends[index as usize].is_local = is_local)?;
            let client = end(CALLER, version, 40_000 + u16::from(is_local));
            Way { client, ..Way::of(CALLER, HAIRPIN, version) }.is_by_nets_source(rig, version, protocol)?;
        }
        Ok(())
    })
}

#[test]
fn a_backend_elsewhere_sees_the_client_and_its_reply_goes_to_the_net() -> Result<()> {
    for_all(|rig, version, protocol| {
        let gateway = (UPLINK, pick(GATEWAY, version));
        Way::of(NODE, THERE, version).is_forwarded(rig, protocol, pick(NODE, version), gateway)?;
        // No address of this node's: of the reply the filter has not known.
        Way::of(CALLER, THERE, version).is_forwarded(rig, protocol, pick(CALLER, version), gateway)?;
        let neighbour = (BARE, NAMELESS.backend(version).ip());
        Way::of(CALLER, NAMELESS, version).is_forwarded(rig, protocol, pick(CALLER, version), neighbour)
    })
}

#[test]
fn a_device_for_replies_leads_to_a_door() -> Result<()> {
    for_all(|rig, version, protocol| {
        rig.change(|setup| setup.interfaces.get_mut(&UPLINK).expect("the uplink").only_returns = true)?;
        let gateway = (UPLINK, pick(GATEWAY, version));
        Way::of(CALLER, THERE, version).is_forwarded(rig, protocol, pick(CALLER, version), gateway)
    })
}

#[test]
fn where_no_door_sees_the_reply_the_net_does() -> Result<()> {
    for_all(|rig, version, protocol| {
        // No way at all, and one that leads to this node's pods.
        Way::of(NODE, UNROUTED, version).is_by_nets_source(rig, version, protocol)?;
        rig.change(|setup| setup.backends[HERE.index(version) as usize].is_local = false)?;
        Way::of(NODE, HERE, version).is_by_nets_source(rig, version, protocol)?;
        // A device without programs.
        rig.change(|setup| drop(setup.interfaces.remove(&SECOND)))?;
        Way::of(NODE, ELSEWHERE, version).is_by_nets_source(rig, version, protocol)
    })
}

#[test]
fn a_neighbour_that_must_be_asked_is_left_to_the_kernel() -> Result<()> {
    for_all(|rig, version, protocol| {
        let client = end(NODE, version, 40_000);
        let packet = first(protocol, client, UNRESOLVED.at_cluster_ip(version));
        let (index, len) = (UNRESOLVED.index(version), packet.build().len());
        let output = packet.clone().between(client, UNRESOLVED.backend(version)).ttl(63).build();
        let (frame, verdict, moved) = (packet.build(), Verdict::Redirect, begun(index, len));
        take(rig, [Step { what: "first", at: AT_NET, frame, verdict, output, moved }])
    })
}

#[test]
fn an_address_of_this_machine_or_link_is_not_shown_to_others() -> Result<()> {
    for_all(|rig, version, protocol| {
        for client in [LOCALHOST, ["169.254.3.4", "fe80::3"]] {
            let at_lo = |service: Service| Way {
                at: (Door::Net, LOOPBACK),
                client: end(client, version, 40_000),
                frontend: service.at_node(version),
                service,
            };
            rig.restart(node::setup(&rig.network))?;
            at_lo(HERE).is_by_nets_source(rig, version, protocol)?;
            let gateway = (UPLINK, pick(GATEWAY, version));
            at_lo(THERE).is_forwarded(rig, protocol, pick(NODE, version), gateway)?;
        }
        Ok(())
    })
}

#[test]
fn a_node_port_of_this_node_is_served_where_packets_leave_by_the_loopback_device() -> Result<()> {
    for_all(|rig, version, protocol| {
        let at_lo = |service: Service| Way {
            at: (Door::Net, LOOPBACK),
            frontend: service.at_node(version),
            ..Way::of(NODE, service, version)
        };
        at_lo(HERE).is_by_nets_source(rig, version, protocol)?;
        at_lo(THERE).is_forwarded(rig, protocol, pick(NODE, version), (UPLINK, pick(GATEWAY, version)))
    })
}

#[test]
fn two_clients_of_one_port_get_different_ones() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (frontend, backend) = (HERE.at_cluster_ip(version), HERE.backend(version));
        let sent = [NODE, CALLER, OUTSIDE].map(|client| (end(client, version, 40_000), client));
        let mut ports = Vec::new();
        for (client, _) in sent {
            let outcome = send(rig, AT_NET, first(protocol, client, frontend).build())?;
            ports.push(source_port(&outcome.frame, version));
        }
        ensure!(ports[0] == 40_000, "{ports:?}");
        ensure!(ports[1..].iter().all(|&port| rig.model().setup.is_source_port(port)), "{ports:?}");
        for (port, (client, _)) in ports.into_iter().zip(sent) {
            let reply = answer(protocol, backend, SocketAddr::new(pick(NET_SOURCE, version), port));
            let outcome = send(rig, AT_NET, reply.build())?;
            let expected = reply.between(frontend, client).ethernet(nets(rig)).build();
            ensure!(outcome.frame == expected, "{port}: {outcome}");
        }
        rig.compare_flows()
    })
}

#[test]
fn fragments_follow_the_first_one_there_and_back() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, own) = (end(NODE, version, 40_000), end(NET_SOURCE, version, 40_000));
            let (frontend, backend) = (HERE.at_cluster_ip(version), HERE.backend(version));
            let datagram = |src, dst| Segment::udp(src, dst).payload(&[0xa5; 121]);
            let out = datagram(own, backend).ethernet(nets(rig));
            let back = datagram(frontend, client).ethernet(nets(rig));
            for (sent, got) in [(datagram(client, frontend), out), (datagram(backend, own), back)] {
                let (sent, got) = (fragments(&sent.build(), 7, 64), fragments(&got.build(), 7, 64));
                for (fragment, expected) in sent.iter().zip(&got) {
                    let outcome = send(rig, AT_NET, fragment.clone())?;
                    let is_right = outcome.verdict == Verdict::Redirect && outcome.frame == *expected;
                    ensure!(is_right, "{outcome}\nnot {expected:02x?}");
                }
            }
            rig.compare_flows()?;
        }
        Ok(())
    })
}

#[test]
fn doors_leave_a_flow_of_the_net_alone() -> Result<()> {
    for_all(|rig, version, protocol| {
        for service in [HERE, THERE] {
            let (client, frontend) = (end(CALLER, version, 40_000), service.at_cluster_ip(version));
            send(rig, AT_NET, first(protocol, client, frontend).build())?;
            for packet in [first(protocol, client, frontend), next(protocol, client, frontend)] {
                take(rig, Door::IN.map(|door| Step::untouched("left", (door, UPLINK), packet.build(), "")))?;
                take(rig, [Step::untouched("left", (Door::Ingress, POD), packet.build(), "")])?;
            }
        }
        Ok(())
    })
}

/// The pod's program has gone, and its device is not yet seen to: what the backend here answers goes to the door no longer, and what the
/// one elsewhere answers, whose packets bear the same addresses as before, to the net instead.
#[test]
fn a_flow_of_a_door_that_comes_to_the_net_is_decided_anew_and_its_replies_come_to_the_net() -> Result<()> {
    for_all(|rig, version, protocol| {
        for (service, at) in [(HERE, AT_NET), (THERE, (Door::Ingress, UPLINK))] {
            let (client, frontend, backend) =
                (end(CALLER, version, 40_000), service.at_cluster_ip(version), service.backend(version));
            send(rig, (Door::Ingress, POD), first(protocol, client, frontend).build())?;
            send(rig, (Door::Egress, POD), answer(protocol, backend, client).build())?;
            let outcome = send(rig, AT_NET, next(protocol, client, frontend).build())?;
            ensure!(outcome.verdict == Verdict::Redirect, "{outcome}");
            let own = if at == AT_NET { pick(NET_SOURCE, version) } else { client.ip() };
            let reply = next(protocol, backend, SocketAddr::new(own, client.port()));
            let outcome = send(rig, at, reply.build())?;
            let expected = reply.between(frontend, client).ethernet(nets(rig)).build();
            ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == expected, "{outcome}");
            rig.compare_flows()?;
        }
        Ok(())
    })
}

/// With the net off, pods' doors decide its flows anew. What comes from a backend elsewhere meanwhile the stack brings to its client.
#[test]
fn a_flow_of_a_net_that_is_no_more_is_a_doors() -> Result<()> {
    for_all(|rig, version, protocol| {
        rig.change(|setup| setup.net = Some(node::net()))?;
        for service in [THERE, HERE] {
            let (client, frontend, backend) =
                (end(CALLER, version, 40_000), service.at_cluster_ip(version), service.backend(version));
            rig.change(|setup| setup.net = Some(node::net()))?;
            send(rig, AT_NET, first(protocol, client, frontend).build())?;
            rig.change(|setup| setup.net = None)?;
            let reply = answer(protocol, backend, client);
            let back = reply.clone().between(frontend, client).build();
            if service.port == THERE.port {
                let outcome = send(rig, (Door::Ingress, UPLINK), reply.build())?;
                ensure!(outcome.verdict == Verdict::Pass && outcome.frame == back, "{outcome}");
            }
            let there = next(protocol, client, frontend);
            let outcome = send(rig, (Door::Ingress, POD), there.build())?;
            let expected = there.between(client, backend).build();
            ensure!(outcome.verdict == Verdict::Pass && outcome.frame == expected, "{outcome}");
            let outcome = send(rig, (Door::Egress, POD), reply.build())?;
            ensure!(outcome.verdict == Verdict::Pass && outcome.frame == back, "{outcome}");
            rig.compare_flows()?;
        }
        Ok(())
    })
}

#[test]
fn who_has_come_by_an_uplink_is_a_client_outside() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let index = HERE.index(version);
            rig.change(|setup| {
                node::change_frontends(setup, index, |frontend| {
                    frontend.tables[1].clear();
                    frontend.policies[1] = Policy::Drop;
                });
            })?;
            let frame = first(protocol::UDP, end(OUTSIDE, version, 40_000), HERE.at_cluster_ip(version)).build();
            for (arrived_by, verdict) in
                [(UPLINK, Verdict::Drop), (0, Verdict::Redirect), (POD, Verdict::Redirect), (77, Verdict::Redirect)]
            {
                let arrival =
                    Arrival { door: Door::Net, ifindex: NET, arrived_by, frame: frame.clone(), is_trace: false };
                let outcome = rig.send(&arrival)?;
                ensure!(outcome.verdict == verdict, "by device {arrived_by}: {outcome}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_stranger_at_the_net_is_let_alone() -> Result<()> {
    for_all(|rig, version, protocol| {
        let client = end(NODE, version, 40_000);
        let packets = [
            next(protocol, HERE.backend(version), end(NET_SOURCE, version, 40_000)),
            first(protocol, client, end(CLUSTER_IP, version, 9)),
            first(protocol, client, end(NODE, version, 22)),
            first(protocol, client, end(OUTSIDE, version, 80)),
        ];
        for device in [NET, LOOPBACK] {
            let steps =
                packets.each_ref().map(|packet| Step::untouched("stranger", (Door::Net, device), packet.build(), ""));
            take(rig, steps)?;
        }
        Ok(())
    })
}

#[test]
fn what_arrives_by_the_nets_device_for_this_node_goes_on_by_the_loopback_device() -> Result<()> {
    for_all(|rig, version, protocol| {
        let at = (Door::NetArrival, NET);
        let own = [NODE, ["198.51.100.1", "2001:db8:2::1"], ["10.1.0.1", "fd00:1::1"]];
        let others = [CALLER, OUTSIDE, NET_SOURCE, GATEWAY];
        // From a process of this node to a backend here, and back to one that has asked at a NodePort; and a reply, which may be for a pod
        // whose source netfilter has translated.
        for (from, goes_on) in [(NET_SOURCE, true), (NODE, true), (CLUSTER_IP, false)] {
            let pairs = own.map(|to| (to, goes_on)).into_iter().chain(others.map(|to| (to, false)));
            for (to, goes_on) in pairs.chain([(LOCALHOST, true)]) {
                let frame = answer(protocol, end(from, version, 80), end(to, version, 40_000)).build();
                let verdict = if goes_on { Verdict::Redirect } else { Verdict::Pass };
                take(rig, [Step { verdict, ..Step::untouched("arrival", at, frame, "") }])?;
            }
        }
        Ok(())
    })
}

/// Its reply would find nobody.
#[test]
fn without_room_for_its_entries_no_flow_of_the_net_begins() -> Result<()> {
    const TWO_SETS: u32 = 8;
    with_rig_for(Room::of(TWO_SETS), node::setup, |rig| {
        for version in Version::BOTH {
            let (frontend, backend) = (HERE.at_cluster_ip(version), HERE.backend(version));
            let at = |frame, (door, ifindex)| Arrival { door, ifindex, arrived_by: 0, frame, is_trace: false };
            for port in 10_000..10_000 + (TWO_SETS / 2) as u16 {
                let (client, own) = (end(NODE, version, port), end(NET_SOURCE, version, port));
                rig.send_unobserved(&at(Segment::tcp(client, frontend, SYN).build(), AT_NET))?;
                rig.send_unobserved(&at(Segment::tcp(backend, own, SYN | ACK).build(), AT_NET))?;
                rig.send_unobserved(&at(Segment::tcp(client, frontend, ACK).build(), AT_NET))?;
            }
            let refused = |rig: &Rig| {
                rig.counters().map(|counters| counters.reasons.get(Reason::FlowInsertFailed.as_str()).copied())
            };
            let before = refused(rig)?.unwrap_or_default();
            for service in [HERE, THERE] {
                let late = Segment::tcp(end(NODE, version, 20_000), service.at_cluster_ip(version), SYN).build();
                let (verdict, frame) = rig.send_unobserved(&at(late.clone(), AT_NET))?;
                ensure!(verdict == Verdict::Drop && frame == late, "{verdict:?}: {frame:02x?}");
            }
            ensure!(refused(rig)? == Some(before + 2));
        }
        Ok(())
    })
}

#[test]
fn a_trace_is_told_what_the_net_does() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for (service, verdict, ifindex, flags) in
                [(HERE, trace_verdict::TRANSLATED, 0, 0), (THERE, trace_verdict::FORWARDED, UPLINK, flow_flags::SNAT)]
            {
                let frame = first(protocol::TCP, end(NODE, version, 40_000), service.at_cluster_ip(version)).build();
                let arrival =
                    |is_trace| Arrival { door: Door::Net, ifindex: NET, arrived_by: 0, frame: frame.clone(), is_trace };
                let index = service.index(version);
                let told = TraceRecord {
                    step: trace_step::DECIDED,
                    service: index,
                    backend: index,
                    internal: 1,
                    flow_flags: u32::from(flags),
                    verdict,
                    ifindex,
                    ..TraceRecord::default()
                };
                let traced = rig.send(&arrival(true))?;
                ensure!(traced.record == told && traced.moved.to_string().is_empty(), "{traced}");
                let sent = rig.send(&arrival(false))?;
                ensure!((sent.verdict, &sent.frame) == (traced.verdict, &traced.frame), "{sent}");
                let told = TraceRecord { step: trace_step::FLOW, service: 0, internal: 0, ..told };
                let traced = rig.send(&arrival(true))?;
                ensure!(traced.record == told, "{traced}");
            }
        }
        rig.compare_flows()
    })
}
