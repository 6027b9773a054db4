// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net refuses, resets, and brings ICMP errors to whom they are for: all as packets that arrive by its device, from addresses that are
//! routed to it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::flow::tcp_flags::{ACK, SYN};
use shunt_tests::{
    packets::{
        ETHERNET, Error, LOOPBACK, Rig, Segment, UPLINK, icmp_error,
        node::{self, CALLER, CLUSTER_IP, EMPTY, HERE, LOCAL_ONLY, NET_SOURCE, NODE, Service, THERE, pick},
        port_unreachable, reset, with_rig,
    },
    reference::{Backend, Door, Verdict, Version},
};

use crate::{
    net::{AT_NET, for_all, nets},
    step::{PROTOCOLS, Step, end, first, next, send, take},
};

/// A router somewhere on the way.
const ROUTER: node::Both = ["198.18.7.7", "2001:db8:77::7"];

/// A frame as one that arrives by the net's device.
fn by_net(ethernet: [u8; 12], frame: &[u8]) -> Vec<u8> {
    [&ethernet[..], &frame[12..]].concat()
}

#[test]
fn rule_40_without_endpoints_the_service_answers_with_an_icmp_error() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (client, index) = (end(NODE, version, 40_000), EMPTY.index(version));
        for (device, frontend) in [(AT_NET.1, EMPTY.at_cluster_ip(version)), (LOOPBACK, EMPTY.at_node(version))] {
            let frame = first(protocol, client, frontend).payload(b"quoted but for the last byte").build();
            let output = by_net(nets(rig), &port_unreachable(&frame, frontend.ip(), client.ip()));
            let moved = format!("no-endpoints=1 service{index}.rejected=1");
            let (at, verdict) = ((Door::Net, device), Verdict::Redirect);
            take(rig, [Step { what: "reject", at, frame, verdict, output, moved }])?;
        }
        Ok(())
    })
}

#[test]
fn rule_41_without_local_endpoints_packets_are_dropped() -> Result<()> {
    for_all(|rig, version, protocol| {
        let frame = first(protocol, end(NODE, version, 40_000), LOCAL_ONLY.at_cluster_ip(version)).build();
        let moved = format!("no-local-endpoints=1 service{}.dropped=1", LOCAL_ONLY.index(version));
        take(rig, [Step::dropped("drop", AT_NET, frame, &moved)])
    })
}

#[test]
fn rule_44_an_undefined_port_of_a_cluster_ip_and_an_echo_are_rejected() -> Result<()> {
    for_all(|rig, version, protocol| {
        let frontend = pick(CLUSTER_IP, version);
        rig.change(|setup| setup.guarded.extend([frontend]))?;
        let client = end(NODE, version, 40_000);
        let kind = if version == Version::V4 { (8, 0) } else { (128, 0) };
        let (source, destination, ttl) = (client.ip(), frontend, 64);
        let echo =
            Error { source, destination, kind, word: [0; 4], ttl, ethernet: ETHERNET }.build(b"is anybody there");
        for frame in [first(protocol, client, SocketAddr::new(frontend, 9)).build(), echo] {
            let output = by_net(nets(rig), &port_unreachable(&frame, frontend, client.ip()));
            let (at, verdict, moved) = (AT_NET, Verdict::Redirect, "undefined-port=1".to_owned());
            take(rig, [Step { what: "reject", at, frame, verdict, output, moved }])?;
        }
        Ok(())
    })
}

#[test]
fn a_family_without_a_source_of_the_net_is_dropped() -> Result<()> {
    for_all(|rig, version, protocol| {
        rig.change(|setup| setup.net.as_mut().expect("a net").sources.retain(|&of, _| of != version))?;
        let client = end(NODE, version, 40_000);
        let frame = first(protocol, client, HERE.at_cluster_ip(version)).build();
        take(rig, [Step::dropped("drop", AT_NET, frame, "no-source-address=1")])?;
        // None is not all zeroes: a damaged packet to there is nobody's.
        let mut frame = first(protocol, client, end(["0.0.0.0", "::"], version, 80)).build();
        frame.pop();
        take(rig, [Step::untouched("damaged", AT_NET, frame, "")])
    })
}

#[test]
fn a_packet_at_the_end_of_its_ttl_is_answered_by_the_service_where_it_would_be_forwarded() -> Result<()> {
    for_all(|rig, version, protocol| {
        let (client, frontend) = (end(NODE, version, 40_000), THERE.at_cluster_ip(version));
        let frame = first(protocol, client, frontend).ttl(1).build();
        let kind = if version == Version::V4 { (11, 0) } else { (3, 0) };
        let expected = by_net(nets(rig), &icmp_error(&frame, frontend.ip(), client.ip(), kind, 0));
        let outcome = send(rig, AT_NET, frame)?;
        ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == expected, "{outcome}");
        // The stack sees to those that it has.
        let packet = first(protocol, client, HERE.at_cluster_ip(version)).ttl(1);
        let outcome = send(rig, AT_NET, packet.build())?;
        let own = SocketAddr::new(pick(NET_SOURCE, version), client.port());
        let expected = packet.between(own, HERE.backend(version)).ethernet(nets(rig)).build();
        ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == expected, "{outcome}");
        Ok(())
    })
}

#[test]
fn a_segment_whose_backend_has_gone_is_answered_with_a_reset() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for service in [HERE, THERE] {
                let (client, frontend) = (end(CALLER, version, 40_000), service.at_cluster_ip(version));
                let index = service.index(version);
                rig.change(|setup| node::change_frontends(setup, index, |frontend| frontend.resets = true))?;
                send(rig, AT_NET, Segment::tcp(client, frontend, SYN).build())?;
                rig.change(|setup| setup.backends[index as usize] = Backend::free(1))?;
                let frame = Segment::tcp(client, frontend, ACK).acknowledging(0xfedc_ba98).payload(b"data").build();
                let output = by_net(nets(rig), &reset(&frame, frontend, client, 0xfedc_ba98));
                let (at, verdict, moved) = (AT_NET, Verdict::Redirect, "backend-gone=1".to_owned());
                take(rig, [Step { what: "reset", at, frame, verdict, output, moved }])?;
            }
        }
        Ok(())
    })
}

/// A flow of the net's, with the packet as its backend gets it.
fn begin(rig: &mut Rig, ends: (SocketAddr, Service, u8)) -> Result<(Segment, Segment)> {
    let (client, service, protocol) = ends;
    let version = Version::of(client.ip());
    let sent = first(protocol, client, service.at_cluster_ip(version)).payload(b"an even number of bytes.");
    send(rig, AT_NET, sent.build())?;
    let own = if service.port == HERE.port { pick(NET_SOURCE, version) } else { client.ip() };
    let got = sent.clone().between(SocketAddr::new(own, client.port()), service.backend(version));
    Ok((sent, got))
}

fn error(source: IpAddr, destination: IpAddr, ethernet: [u8; 12]) -> Error {
    let kind = if source.is_ipv4() { (3, 4) } else { (2, 0) };
    Error { source, destination, kind, word: [0, 0, 5, 120], ttl: 64, ethernet }
}

/// SCTP's checksum is over bytes that are not all quoted.
fn for_all_quoted(test: impl Fn(&mut Rig, Version, u8) -> Result<()> + Sync) -> Result<()> {
    for_all(|rig, version, protocol| if PROTOCOLS.contains(&protocol) { test(rig, version, protocol) } else { Ok(()) })
}

/// Whoever sends it, the client hears it from the Service: from nobody else does the net's device take a packet where sources are
/// checked (`rp_filter` 1).
#[test]
fn rule_64_an_error_reaches_the_client_from_the_service() -> Result<()> {
    for_all_quoted(|rig, version, protocol| {
        for (service, at) in [(HERE, AT_NET), (THERE, (Door::Ingress, UPLINK))] {
            let client = end(CALLER, version, 40_000);
            let (sent, got) = begin(rig, (client, service, protocol))?;
            let own = if at == AT_NET { pick(NET_SOURCE, version) } else { client.ip() };
            for source in [service.backend(version).ip(), pick(ROUTER, version)] {
                let frame = error(source, own, ETHERNET).build(&got.build()[14..]);
                let outcome = send(rig, at, frame)?;
                let frontend = service.at_cluster_ip(version).ip();
                let expected = error(frontend, client.ip(), nets(rig)).build(&sent.build()[14..]);
                ensure!(outcome.verdict == Verdict::Redirect, "{outcome}");
                ensure!(outcome.frame == expected, "from {source}: {outcome}\nnot {expected:02x?}");
            }
            rig.compare_flows()?;
        }
        Ok(())
    })
}

#[test]
fn rule_64_an_error_of_the_client_reaches_the_backend() -> Result<()> {
    for_all_quoted(|rig, version, protocol| {
        let client = end(NODE, version, 40_000);
        begin(rig, (client, HERE, protocol))?;
        let (frontend, backend) = (HERE.at_cluster_ip(version), HERE.backend(version));
        let own = SocketAddr::new(pick(NET_SOURCE, version), client.port());
        let reply = next(protocol, backend, own).payload(b"an even number of bytes.");
        let seen = reply.clone().between(frontend, client).build();
        let frame = error(client.ip(), frontend.ip(), ETHERNET).build(&seen[14..]);
        let outcome = send(rig, AT_NET, frame)?;
        let expected = error(own.ip(), backend.ip(), nets(rig)).build(&reply.build()[14..]);
        ensure!(outcome.verdict == Verdict::Redirect && outcome.frame == expected, "{outcome}\nnot {expected:02x?}");
        rig.compare_flows()
    })
}
