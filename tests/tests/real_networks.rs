// SPDX-License-Identifier: MIT OR Apache-2.0
//! What real networks have that a world of one switch has not: addresses and rules beyond the first, frames that are meant for
//! others, rules for forwarded packets.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{Protocol, talk},
    world::{Family, Namespace, Options, World, objects, wait_to_meet, wait_until},
};

const NAME: &str = "shop";
const HOST: u8 = 93;
const NODE_PORT: u16 = 30_093;
const PATIENCE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(10);

/// An address that a load balancer may have.
fn vip(family: Family) -> IpAddr {
    family.pick("172.20.0.200", "fd00:20::200")
}

/// A world with a Service that these pods serve.
fn world(
    options: Options,
    flags: &[&str],
    pods: &[&str],
    prepare: impl FnOnce(&mut World) -> Result<()>,
) -> Result<World> {
    let world = World::with_echoes_on(options, flags, prepare)?;
    let spec = json!({ "type": "LoadBalancer", "ports": objects::ports(Some(NODE_PORT)) });
    let ingress = Family::BOTH.map(|family| json!({ "ip": vip(family) }));
    let service =
        objects::service(NAME, HOST, &json!({ "spec": spec, "status": { "loadBalancer": { "ingress": ingress } } }));
    world.put([service].into_iter().chain(world.slices(NAME, pods)))?;
    Ok(world)
}

fn at_node(world: &World, family: Family) -> SocketAddr {
    SocketAddr::new(world.node("node-a").address(family), NODE_PORT)
}

/// As which client the backend sees who comes from outside.
fn seen_as(world: &World, family: Family) -> Result<IpAddr> {
    let to = at_node(world, family);
    wait_to_meet(world.outside(), Protocol::Tcp, to, &["web-2"])?;
    Ok(world.outside().enter(|| talk::ask(Protocol::Tcp, to, PATIENCE))??.client.ip())
}

/// N1: a pod that may not reach another by the rules for forwarded packets does not by its Service either.
#[test]
fn n1_masquerade_all_takes_no_pods_packet_past_the_rules_for_forwarded_ones() -> Result<()> {
    let world = world(Options::TC, &["--masquerade-all"], &["web-2"], |_| Ok(()))?;
    let (caller, node) = (world.pod("caller"), world.node("node-a").namespace());
    node.run("nft", &["add table inet rules; add chain inet rules forward { type filter hook forward priority 0; }"])?;
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let to = objects::cluster_ip(HOST, family);
        wait_to_meet(caller.namespace(), Protocol::Tcp, to, &["web-2"])?;
        let [from, to_pod] = [caller, world.pod("web-2")].map(|pod| pod.address(family));
        node.run("nft", &[&format!("add rule inet rules forward {ip} saddr {from} {ip} daddr {to_pod} reject")])?;
        let outcome = talk::attempt(caller.namespace(), Protocol::Tcp, to)?;
        ensure!(!matches!(outcome, talk::Outcome::Answered(_)), "{family:?}: {outcome:?}");
    }
    Ok(())
}

/// N3: the address of the next hop's network, or the route's own, and not that which happens to stand first.
fn n3_sources(options: Options) -> Result<()> {
    let world = world(options, &[], &["web-2"], |world| {
        let [a, b] = ["node-a", "node-b"].map(|node| world.node(node).namespace());
        // Before the others: an address of VRRP.
        a.ip("addr flush dev eth0 scope global\n\
             addr add 172.20.0.210/32 dev eth0\naddr add fd00:20::210/128 dev eth0 nodad\n\
             addr add 172.20.0.11/24 dev eth0\naddr add fd00:20::11/64 dev eth0 nodad\n\
             addr add 172.25.0.11/24 dev eth0\naddr add fd00:25::11/64 dev eth0 nodad\n\
             addr add 172.20.0.111/24 dev eth0\naddr add fd00:20::111/64 dev eth0 nodad\n\
             route replace 10.244.2.0/24 via 172.20.0.12\nroute replace fd00:244:2::/64 via fd00:20::12")?;
        b.ip("addr add 172.25.0.12/24 dev eth0\naddr add fd00:25::12/64 dev eth0 nodad")
    })?;
    let node = world.node("node-a").namespace();
    let is_as_routed = |what: &str| -> Result<Vec<IpAddr>> {
        let source = |family| {
            let route = node.run("ip", &["route", "get", &world.pod("web-2").address(family).to_string()])?;
            let source: IpAddr =
                route.split_whitespace().skip_while(|word| *word != "src").nth(1).context("no src")?.parse()?;
            let seen = seen_as(&world, family)?;
            ensure!(seen == source, "{what}: {seen} in place of {source}");
            Ok(seen)
        };
        Family::BOTH.into_iter().map(source).collect()
    };
    let seen = is_as_routed("first network")?;
    ensure!(seen[0].to_string() == "172.20.0.11", "{seen:?}");
    node.ip("route replace 10.244.2.0/24 via 172.25.0.12\nroute replace fd00:244:2::/64 via fd00:25::12")?;
    let seen = is_as_routed("second network")?;
    ensure!(seen[0].to_string() == "172.25.0.11", "{seen:?}");
    node.ip("route replace 10.244.2.0/24 via 172.20.0.12 src 172.20.0.111\n\
         route replace fd00:244:2::/64 via fd00:20::12 src fd00:20::11")?;
    let seen = is_as_routed("the route's own")?;
    ensure!(seen == ["172.20.0.111".parse::<IpAddr>()?, "fd00:20::11".parse()?], "{seen:?}");
    Ok(())
}

#[test]
fn n3_the_source_is_what_routing_would_choose_by_tc() -> Result<()> {
    n3_sources(Options::TC)
}

#[test]
fn n3_the_source_is_what_routing_would_choose_with_xdp() -> Result<()> {
    n3_sources(Options::XDP)
}

/// N4: routes for a source hold for what is translated to it.
fn n4_rules(options: Options) -> Result<()> {
    let world = world(options, &[], &["web-2"], |world| {
        world.outside().ip(
            "addr add 198.18.0.1/32 dev lo\naddr add fd00:18::1/128 dev lo nodad\n\
             route add 172.20.0.11/32 dev eth0 src 198.18.0.1\nroute add fd00:20::11/128 dev eth0 src fd00:18::1 metric 1",
        )?;
        world.node("node-a").namespace().ip("route add unreachable 198.18.0.0/24\nroute add unreachable fd00:18::/64\n\
             route add 198.18.0.0/24 via 172.20.0.100 table 100\nroute add fd00:18::/64 via fd00:20::100 table 100")
    })?;
    let node = world.node("node-a");
    for (family, ip) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let to = at_node(&world, family);
        let from = family.pick("198.18.0.1", "fd00:18::1");
        wait_until("a Service", LIMIT, || {
            Ok(node.lb_agent(&format!("trace --from {from} --to {to} --in-interface eth0"))?.contains("shop"))
        })?;
        ensure!(!matches!(talk::attempt(world.outside(), Protocol::Tcp, to)?, talk::Outcome::Answered(_)));
        node.namespace().run("ip", &[ip, "rule", "add", "from", &to.ip().to_string(), "lookup", "100"])?;
        wait_to_meet(world.outside(), Protocol::Tcp, to, &["web-2"]).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

#[test]
fn n4_rules_for_a_source_hold_by_tc() -> Result<()> {
    n4_rules(Options::TC)
}

#[test]
fn n4_rules_for_a_source_hold_with_xdp() -> Result<()> {
    n4_rules(Options::XDP)
}

/// N9: what comes by a bridge's port is routed as what comes by the bridge.
#[test]
fn n9_the_bridge_routes_for_its_ports() -> Result<()> {
    let world = world(Options::TC, &[], &["web-1"], |world| {
        let node = world.node("node-a").namespace();
        for (family, [pods, default]) in [("-4", ["10.244.1.0/25", "0.0.0.0/0"]), ("-6", ["fd00:244:1::/120", "::/0"])]
        {
            node.run("ip", &[family, "rule", "add", "pref", "100", "iif", "cni0", "lookup", "100"])?;
            node.run("ip", &[family, "rule", "add", "pref", "101", "iif", "veth-web-1", "lookup", "101"])?;
            node.run("ip", &[family, "route", "add", pods, "dev", "cni0", "table", "100"])?;
            node.run("ip", &[family, "route", "add", "unreachable", default, "table", "101"])?;
        }
        Ok(())
    })?;
    for family in Family::BOTH {
        let to = objects::cluster_ip(HOST, family);
        wait_to_meet(world.pod("web-1").namespace(), Protocol::Tcp, to, &["web-1"])?;
    }
    Ok(())
}

/// Counts the packets to the load balancer's addresses that the node's stack sees arrive, by netfilter at its device.
fn count_arriving(node: &Namespace) -> Result<()> {
    let rules = Family::BOTH.map(|family| {
        let header = if family == Family::V4 { "ip" } else { "ip6" };
        format!("add rule netdev seen arriving {header} daddr {} counter;", vip(family))
    });
    let chain = "add table netdev seen; \
                 add chain netdev seen arriving { type filter hook ingress device \"eth0\" priority 0; };";
    node.run("nft", &[&format!("{chain} {}", rules.concat())]).map(drop)
}

/// How many have been counted for a family.
fn arrived(node: &Namespace, family: Family) -> Result<u64> {
    let chain: Value = serde_json::from_str(&node.run("nft", &["-j", "list", "chain", "netdev", "seen", "arriving"])?)?;
    let rules =
        chain["nftables"].as_array().context("no list")?.iter().filter_map(|item| item["rule"]["expr"].as_array());
    let vip = vip(family).to_string();
    let mut rules = rules.filter(|rule| rule[0]["match"]["right"] == vip.as_str());
    rules.next().and_then(|rule| rule[1]["counter"]["packets"].as_u64()).context("no count of packets")
}

/// N5: a switch that floods, and a node that listens to all of it.
fn n5_floods(options: Options) -> Result<()> {
    const QUESTIONS: u64 = 40;
    let world = world(options, &[], &["web-1", "web-2"], |world| {
        world.switch().ip("link set br0 type bridge ageing_time 0")?;
        let node = world.node("node-a").namespace();
        node.ip("link set eth0 promisc on")?;
        count_arriving(node)?;
        world.outside().ip("route add 172.20.0.200/32 via 172.20.0.12\nroute add fd00:20::200/128 via fd00:20::12")
    })?;
    let node = world.node("node-a");
    for family in Family::BOTH {
        let to = SocketAddr::new(vip(family), objects::cluster_ip(HOST, family).port());
        wait_to_meet(world.outside(), Protocol::Tcp, to, &["web-1", "web-2"])?;
        let before = arrived(node.namespace(), family)?;
        for _ in 0..QUESTIONS {
            world.outside().enter(|| talk::ask(Protocol::Tcp, to, PATIENCE))?.with_context(|| format!("{family:?}"))?;
        }
        let arrived = arrived(node.namespace(), family)? - before;
        ensure!(arrived >= QUESTIONS, "{family:?}: {arrived} frames for the other node in {QUESTIONS} connections");
        let flows = node.lb_agent("get flows")?;
        ensure!(!flows.contains(&vip(family).to_string()), "{flows}");
    }
    Ok(())
}

#[test]
fn n5_frames_for_another_node_are_not_answered_by_tc() -> Result<()> {
    n5_floods(Options::TC)
}

#[test]
fn n5_frames_for_another_node_are_not_answered_with_xdp() -> Result<()> {
    n5_floods(Options::XDP)
}

/// VRRP's virtual routers have Ethernet addresses of their own (keepalived, `use_vmac`).
fn n5_virtual_routers(options: Options) -> Result<()> {
    let world = world(options, &[], &["web-1", "web-2"], |world| {
        let node = world.node("node-a").namespace();
        node.ip("link add vrrp.51 link eth0 address 00:00:5e:00:01:33 type macvlan mode private\n\
             link set vrrp.51 up\naddr add 172.20.0.200/32 dev vrrp.51\naddr add fd00:20::200/128 dev vrrp.51 nodad")?;
        world.outside().ip("neigh replace 172.20.0.200 lladdr 00:00:5e:00:01:33 nud permanent dev eth0\n\
             neigh replace fd00:20::200 lladdr 00:00:5e:00:01:33 nud permanent dev eth0")
    })?;
    for family in Family::BOTH {
        let to = SocketAddr::new(vip(family), objects::cluster_ip(HOST, family).port());
        wait_to_meet(world.outside(), Protocol::Tcp, to, &["web-1", "web-2"])?;
        wait_to_meet(world.outside(), Protocol::Udp, to, &["web-1", "web-2"])?;
    }
    Ok(())
}

#[test]
fn n5_virtual_routers_serve_by_tc() -> Result<()> {
    n5_virtual_routers(Options::TC)
}

#[test]
fn n5_virtual_routers_serve_with_xdp() -> Result<()> {
    n5_virtual_routers(Options::XDP)
}

/// A13: what the kernel's routes say is told apart.
#[test]
fn a13_a_route_that_refuses_is_no_missing_route() -> Result<()> {
    let world = world(Options::TC, &[], &["web-2"], |world| {
        let node = world.node("node-a").namespace();
        node.ip("route replace prohibit 10.244.2.0/24\nroute del fd00:244:2::/64\nroute add blackhole fd00:244:2::/64")
    })?;
    let node = world.node("node-a");
    for family in Family::BOTH {
        let to = at_node(&world, family);
        let from = world.outside_address(family);
        wait_until("the reason", LIMIT, || {
            Ok(node.lb_agent(&format!("trace --from {from} --to {to} --in-interface eth0"))?.contains("route-refuses"))
        })?;
    }
    Ok(())
}

/// N8: where a firewall forwards nothing by itself, a pod of the node that is asked is out of reach; those of others are not. The
/// rules that `docs/switching.md` gives let it in.
#[test]
fn n8_a_firewall_that_forwards_nothing_must_let_pods_in() -> Result<()> {
    let world = world(Options::TC, &[], &["web-1"], |_| Ok(()))?;
    let node = world.node("node-a").namespace();
    let to = Family::BOTH.map(|family| at_node(&world, family));
    for to in to {
        wait_to_meet(world.outside(), Protocol::Tcp, to, &["web-1"])?;
    }
    node.run(
        "nft",
        &["add table inet rules; add chain inet rules forward { type filter hook forward priority 0; policy drop; }"],
    )?;
    for to in to {
        ensure!(talk::attempt(world.outside(), Protocol::Tcp, to)? == talk::Outcome::Silence, "{to}");
    }
    for (ip, range) in [("ip", "10.244.1.0/24"), ("ip6", "fd00:244:1::/64")] {
        for end in ["saddr", "daddr"] {
            node.run("nft", &[&format!("add rule inet rules forward {ip} {end} {range} accept")])?;
        }
    }
    for to in to {
        wait_to_meet(world.outside(), Protocol::Tcp, to, &["web-1"])?;
    }
    Ok(())
}
