// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP between real stacks: errors find their way back through every translation (rule 64), and echo reaches hosts alone.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{
        Protocol,
        talk::{self, Outcome},
    },
    world::{
        Captures, Family, Far, Namespace, Options, World, for_each_kind, is_quick, objects, wait_for, wait_to_meet,
    },
};

const NAME: &str = "shop";
const HOST: u8 = 91;
const NODE_PORT: u16 = 30_091;
/// On node-b.
const BACKEND: &str = "web-2";
/// Where nobody listens.
const CLOSED_PORT: u16 = 7_999;
/// Well below the second after which TCP tries again.
const AT_ONCE: Duration = Duration::from_millis(700);
const MTU: u16 = 1500;

/// The Service and the far client. Errors are not limited, so that a test may ask quickly.
fn world(options: Options) -> Result<(Far, World)> {
    let world = World::with_echoes(options, &[])?;
    let far = Far::build(&world, MTU)?;
    for namespace in world.nodes().map(|node| node.namespace()).chain([far.router(), world.pod(BACKEND).namespace()]) {
        namespace.sysctl(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")])?;
    }
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    world.put([objects::service(NAME, HOST, &json!({ "spec": spec }))])?;
    Ok((far, world))
}

/// Captures on all links.
fn captures(far: &Far, world: &World) -> Result<Captures> {
    world.capture(&[(far.client(), "eth0"), (far.router(), "eth0")])
}

/// The ways to the backend that are translated differently: a pod's, and the far client's by both nodes.
fn ways<'a>(far: &'a Far, world: &'a World, family: Family) -> [(&'a Namespace, SocketAddr); 3] {
    let at = |node| SocketAddr::new(world.node(node).address(family), NODE_PORT);
    let inside = (world.pod("client").namespace(), objects::cluster_ip(HOST, family));
    [inside, (far.client(), at("node-a")), (far.client(), at("node-b"))]
}

/// A closed port of a backend is a closed port of its Service: who asks is told so at once.
fn closed_ports(options: Options) -> Result<()> {
    let (far, world) = world(options)?;
    let captures = captures(&far, &world)?;
    let mut slices = world.slices(NAME, &[BACKEND]);
    world.put(slices.clone())?;
    // A Service without endpoints refuses as well, but in its own way: see `talk::patience`.
    for_each_kind(|protocol, family| {
        ways(&far, &world, family).into_iter().try_for_each(|(from, to)| wait_to_meet(from, protocol, to, &[BACKEND]))
    })?;
    for port in slices.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = json!(CLOSED_PORT);
    }
    world.put(slices)?;
    for_each_kind(|protocol, family| {
        for (from, to) in ways(&far, &world, family) {
            wait_for(from, protocol, to, &Outcome::Refused)?;
            let refuses = || {
                for _ in 0..3 {
                    let outcome = talk::attempt(from, protocol, to)?;
                    ensure!(outcome == Outcome::Refused, "{outcome:?}");
                }
                Ok(())
            };
            is_quick(AT_ONCE, refuses).with_context(|| format!("{} to {to}", from.name()))?;
        }
        Ok(())
    })?;
    captures.finish().map(drop)
}

#[test]
fn rule_64_a_closed_port_of_a_backend_refuses_at_once_by_tc() -> Result<()> {
    closed_ports(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_a_closed_port_of_a_backend_refuses_at_once_with_xdp() -> Result<()> {
    closed_ports(Options::XDP)
}

/// The hops that traceroute finds.
fn hops(from: &Namespace, protocol: Protocol, to: SocketAddr) -> Result<Vec<String>> {
    let (port, address) = (to.port().to_string(), to.ip().to_string());
    let method = if protocol == Protocol::Tcp { "-T" } else { "-U" };
    let report = from.run("traceroute", &["-n", "-q", "1", "-w", "1", "-m", "6", method, "-p", &port, &address])?;
    let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    Ok(report.lines().skip(1).filter_map(hop).collect())
}

/// traceroute through a Service shows the hops as they are, and the Service at the end.
fn true_hops(options: Options) -> Result<()> {
    let (far, world) = world(options)?;
    let captures = captures(&far, &world)?;
    world.put(world.slices(NAME, &[BACKEND]))?;
    for_each_kind(|protocol, family| {
        let [node_a, node_b] = ["node-a", "node-b"].map(|node| world.node(node).address(family));
        let bridge = family.pick("10.244.1.1", "fd00:244:1::1");
        let router = far.router_address(family);
        let service = objects::cluster_ip(HOST, family).ip();
        // A pod to another node's backend; by a node that is no more than a hop; by the node of the backend.
        let expected: [&[IpAddr]; 3] =
            [&[bridge, node_b, service], &[router, node_a, node_b, node_a], &[router, node_b, node_b]];
        for ((from, to), expected) in ways(&far, &world, family).into_iter().zip(expected) {
            wait_to_meet(from, protocol, to, &[BACKEND])?;
            let expected: Vec<String> = expected.iter().map(IpAddr::to_string).collect();
            // It asks each hop once, and waits for a second.
            let mut found = hops(from, protocol, to)?;
            if found != expected {
                found = hops(from, protocol, to)?;
            }
            ensure!(found == expected, "{} to {to}: {found:?} instead of {expected:?}", from.name());
        }
        Ok(())
    })?;
    captures.finish().map(drop)
}

#[test]
fn rule_64_traceroute_shows_the_true_hops_by_tc() -> Result<()> {
    true_hops(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_traceroute_shows_the_true_hops_with_xdp() -> Result<()> {
    true_hops(Options::XDP)
}

/// Echo is no Service's: hosts answer for themselves, and for a ClusterIP somebody says at once that there is nobody (rule 44).
fn pings(options: Options) -> Result<()> {
    let (far, world) = world(options)?;
    let captures = captures(&far, &world)?;
    world.put(world.slices(NAME, &[BACKEND]))?;
    let client = world.pod("client").namespace();
    for family in Family::BOTH {
        let service = objects::cluster_ip(HOST, family);
        wait_to_meet(client, Protocol::Tcp, service, &[BACKEND])?;
        let ping = |from: &Namespace, to: IpAddr| {
            let to = to.to_string();
            from.command("ping").args(["-c", "2", "-i", "0.1", "-W", "1", &to]).output().context("can't start ping")
        };
        let is_answered = |from, to| anyhow::Ok(ping(from, to)?.status.success());
        for to in [world.node("node-a").address(family), world.node("node-b").address(family)] {
            ensure!(is_answered(far.client(), to)?, "a node");
            ensure!(is_answered(client, to)?, "a node");
        }
        ensure!(is_answered(client, world.pod(BACKEND).address(family))?, "a pod");
        for from in [client, world.pod("caller").namespace()] {
            let refused = ping(from, service.ip())?;
            let report = String::from_utf8_lossy(&refused.stdout);
            let is_refused = !refused.status.success() && report.to_lowercase().contains("port unreachable");
            ensure!(is_refused, "{} to {service}: {report}", from.name());
        }
    }
    captures.finish().map(drop)
}

#[test]
fn rule_44_pings_to_a_cluster_ip_are_refused_at_once_by_tc() -> Result<()> {
    pings(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_44_pings_to_a_cluster_ip_are_refused_at_once_with_xdp() -> Result<()> {
    pings(Options::XDP)
}
