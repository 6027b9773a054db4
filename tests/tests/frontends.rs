// SPDX-License-Identifier: MIT OR Apache-2.0
//! The addresses of a Service, with real clients outside and in pods: which are served, to whom, and from when to when
//! (rules 27 to 36, 45, 81).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        Protocol, Talk,
        talk::{self, Outcome},
    },
    world::{
        Echo, Family, Options, World, echo_port, for_each_kind, kinds, objects, wait_for, wait_to_meet, wait_until,
    },
};

const NAME: &str = "shop";
const HOST: u8 = 72;
const NODE_PORT: u16 = 30_072;
/// One on each node: `web-1` on node-a, `web-2` on node-b.
const BACKENDS: [&str; 2] = ["web-1", "web-2"];
const LIMIT: Duration = Duration::from_secs(10);

/// An address of a load balancer, which no host has.
fn balancer(family: Family) -> IpAddr {
    family.pick("198.51.100.7", "2001:db8:51::7")
}

/// An address from elsewhere that is routed to the nodes, which no host has.
fn external(family: Family) -> IpAddr {
    family.pick("203.0.113.7", "2001:db8:113::7")
}

/// A second address of the outside client's.
fn stranger(family: Family) -> IpAddr {
    family.pick("172.20.0.101", "fd00:20::101")
}

fn at(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, objects::ECHO_PORT)
}

/// A Service with all kinds of frontends, changed by a patch of its spec.
fn service(patch: &Value) -> Value {
    let [v4, v6] = Family::BOTH.map(balancer);
    let mut object = objects::service(
        NAME,
        HOST,
        &json!({
            "spec": {
                "type": "LoadBalancer",
                "ports": objects::ports(Some(NODE_PORT)),
                "externalIPs": Family::BOTH.map(external),
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": v4, "ipMode": "VIP" }, { "ip": v6 }] } },
        }),
    );
    objects::merge(&mut object, patch);
    object
}

/// A world in which the outside client sends to node-a what is for such addresses, and has another address itself.
fn world(options: Options, flags: &[&str]) -> Result<World> {
    let world = World::with_echoes(options, flags)?;
    for family in Family::BOTH {
        let (node, length) = (world.node("node-a").address(family), family.bits());
        let lines = [balancer(family), external(family)].map(|to| format!("route add {to}/{length} via {node}\n"));
        world.outside().ip(&lines.concat())?;
        let stranger = stranger(family);
        // Deprecated: not to be taken unasked.
        world.outside().ip(&format!("addr add {stranger}/{length} dev eth0 preferred_lft 0"))?;
    }
    Ok(world)
}

/// Rules 27, 28, 32 and 33: every way in leads to every backend, from outside and from pods.
fn every_way_in(options: Options) -> Result<()> {
    let world = world(options, &[])?;
    world.put([service(&json!({}))].into_iter().chain(world.slices(NAME, &BACKENDS)))?;
    for_each_kind(|protocol, family| {
        let from_outside = [at(balancer(family)), at(external(family))];
        let nodes = world.nodes().map(|node| SocketAddr::new(node.address(family), NODE_PORT));
        let ways: Vec<SocketAddr> = from_outside.into_iter().chain(nodes).collect();
        for to in &ways {
            wait_to_meet(world.outside(), protocol, *to, &BACKENDS)?;
        }
        for pod in ["client", "caller", "web-1", "web-3"] {
            for to in ways.iter().copied().chain([objects::cluster_ip(HOST, family)]) {
                wait_to_meet(world.pod(pod).namespace(), protocol, to, &BACKENDS)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn rules_27_to_33_every_way_in_leads_to_every_backend_by_tc() -> Result<()> {
    every_way_in(Options::TC)
}

#[test]
fn rules_27_to_33_every_way_in_leads_to_every_backend_with_xdp() -> Result<()> {
    every_way_in(Options::XDP)
}

/// Rule 40: without endpoints every way in is refused, from outside and from pods.
fn every_way_in_is_refused(options: Options) -> Result<()> {
    let world = world(options, &[])?;
    world.put([service(&json!({}))].into_iter().chain(world.slices(NAME, &[])))?;
    for_each_kind(|protocol, family| {
        let nodes = world.nodes().map(|node| SocketAddr::new(node.address(family), NODE_PORT));
        let ways: Vec<SocketAddr> = [at(balancer(family)), at(external(family))].into_iter().chain(nodes).collect();
        for to in &ways {
            wait_for(world.outside(), protocol, *to, &Outcome::Refused)?;
        }
        for pod in ["client", "caller"] {
            for to in ways.iter().copied().chain([objects::cluster_ip(HOST, family)]) {
                wait_for(world.pod(pod).namespace(), protocol, to, &Outcome::Refused)?;
            }
        }
        Ok(())
    })
}

#[test]
fn rule_40_every_way_in_is_refused_without_endpoints_by_tc() -> Result<()> {
    every_way_in_is_refused(Options::TC)
}

#[test]
fn rule_40_every_way_in_is_refused_without_endpoints_with_xdp() -> Result<()> {
    every_way_in_is_refused(Options::XDP)
}

/// Rule 33: addresses in proxy mode are the real load balancer's. Rule 34: no NodePort where none is allocated. Rule 19: both
/// come and go on a live Service.
#[test]
fn rules_33_34_what_is_not_given_is_not_served() -> Result<()> {
    let world = world(Options::TC, &[])?;
    world.put([service(&json!({}))].into_iter().chain(world.slices(NAME, &BACKENDS)))?;
    let node_port = |family| SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
    let all_serve = || {
        for_each_kind(|protocol, family| {
            let mut ways = [at(balancer(family)), at(external(family)), node_port(family)].into_iter();
            ways.try_for_each(|to| wait_to_meet(world.outside(), protocol, to, &BACKENDS))
        })
    };
    all_serve()?;
    let ingress = Family::BOTH.map(|family| json!({ "ip": balancer(family), "ipMode": "Proxy" }));
    world.put([service(&json!({
        "spec": { "ports": objects::ports(None), "externalIPs": null, "allocateLoadBalancerNodePorts": false },
        "status": { "loadBalancer": { "ingress": ingress } },
    }))])?;
    for_each_kind(|protocol, family| {
        wait_for(world.outside(), protocol, node_port(family), &Outcome::Refused)?;
        for to in [balancer(family), external(family)].map(at) {
            let outcome = talk::attempt(world.outside(), protocol, to)?;
            ensure!(!matches!(outcome, Outcome::Answered(_)), "{protocol:?} {to}: {outcome:?}");
        }
        wait_to_meet(world.pod("client").namespace(), protocol, objects::cluster_ip(HOST, family), &BACKENDS)?;
        Ok(())
    })?;
    world.put([service(&json!({}))])?;
    all_serve()
}

/// Rule 31: a Service's own address comes before the NodePorts at the same address. Rule 45: its other ports are the node's.
fn external_address_of_a_node(options: Options) -> Result<()> {
    let world = world(options, &[])?;
    let _echo = Echo::start(world.node("node-a").namespace(), "node-a")?;
    let nodes = Family::BOTH.map(|family| world.node("node-a").address(family));
    let by_port = objects::service(
        NAME,
        HOST,
        &json!({
            "spec": { "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) },
        }),
    );
    let mut by_address = objects::service("window", HOST + 1, &json!({ "spec": { "externalIPs": nodes } }));
    for port in by_address["spec"]["ports"].as_array_mut().context("ports")? {
        port["port"] = json!(NODE_PORT);
    }
    let slices = world.slices(NAME, &["web-1"]).into_iter().chain(world.slices("window", &["web-2"]));
    world.put([by_port, by_address].into_iter().chain(slices))?;
    for_each_kind(|protocol, family| {
        let [here, there] =
            ["node-a", "node-b"].map(|node| SocketAddr::new(world.node(node).address(family), NODE_PORT));
        wait_to_meet(world.outside(), protocol, here, &["web-2"])?;
        wait_to_meet(world.outside(), protocol, there, &["web-1"])?;
        let own = SocketAddr::new(here.ip(), echo_port());
        wait_to_meet(world.outside(), protocol, own, &["node-a"])?;
        Ok(())
    })?;
    Ok(())
}

#[test]
fn rules_31_45_an_external_address_takes_just_its_ports_from_the_node_by_tc() -> Result<()> {
    external_address_of_a_node(Options::TC)
}

#[test]
fn rules_31_45_an_external_address_takes_just_its_ports_from_the_node_with_xdp() -> Result<()> {
    external_address_of_a_node(Options::XDP)
}

/// Waits until this becomes of a flow of the outside client's from that address.
fn wait_for_stranger(
    world: &World,
    (protocol, family): (Protocol, Family),
    to: SocketAddr,
    is_wanted: impl Fn(&Outcome) -> bool,
) -> Result<()> {
    let mut seen = None;
    let outcome = wait_until(&format!("{protocol:?} from a stranger to {to}"), LIMIT, || {
        let port = if protocol == Protocol::Udp { talk::fresh_port() } else { 0 };
        let from = SocketAddr::new(stranger(family), port);
        let ask = || Talk::begin_at(protocol, from, to, talk::patience(protocol, to))?.ask();
        let outcome = talk::outcome(world.outside().enter(ask)?)?;
        let is_so = is_wanted(&outcome);
        seen = Some(outcome);
        Ok(is_so)
    });
    outcome.with_context(|| format!("{seen:?}"))
}

fn is_answered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered(_))
}

fn is_silence(outcome: &Outcome) -> bool {
    *outcome == Outcome::Silence
}

fn with_ranges(ranges: &[&str]) -> Value {
    service(&json!({ "spec": { "loadBalancerSourceRanges": ranges } }))
}

/// Rule 35: source ranges keep others from load-balancer addresses, pods too, and from nothing else; established connections
/// go on. Rule 36: they come before the question whether anything serves.
fn source_ranges(options: Options) -> Result<()> {
    const OUTSIDE: [&str; 2] = [" 172.20.0.100/32", "fd00:20::100/128 "];
    let world = world(options, &[])?;
    world.put([service(&json!({}))].into_iter().chain(world.slices(NAME, &BACKENDS)))?;
    let client = world.pod("client").namespace();
    let mut established = Vec::new();
    for (protocol, family) in kinds() {
        wait_to_meet(client, protocol, at(balancer(family)), &BACKENDS)?;
        wait_to_meet(world.outside(), protocol, at(balancer(family)), &BACKENDS)?;
        let mut talk = client.enter(|| Talk::begin(protocol, at(balancer(family)), LIMIT))??;
        talk.ask()?;
        established.push(talk);
    }
    world.put([with_ranges(&OUTSIDE)])?;
    for_each_kind(|protocol, family| {
        wait_for(client, protocol, at(balancer(family)), &Outcome::Silence)?;
        wait_for_stranger(&world, (protocol, family), at(balancer(family)), is_silence)?;
        wait_to_meet(world.outside(), protocol, at(balancer(family)), &BACKENDS)?;
        for to in [at(external(family)), SocketAddr::new(world.node("node-a").address(family), NODE_PORT)] {
            wait_for_stranger(&world, (protocol, family), to, is_answered)?;
        }
        Ok(())
    })?;
    for talk in &mut established {
        talk.ask().context("a connection from before")?;
    }
    world.put([with_ranges(&["0.0.0.0/0", "fd00:244:1::/64"])])?;
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            wait_to_meet(client, protocol, at(balancer(family)), &BACKENDS)?;
        }
        // All of IPv4, and of IPv6 one range.
        wait_for_stranger(&world, (protocol, Family::V4), at(balancer(Family::V4)), is_answered)?;
        wait_for_stranger(&world, (protocol, Family::V6), at(balancer(Family::V6)), is_silence)?;
    }
    world.put([with_ranges(&OUTSIDE)].into_iter().chain(world.slices(NAME, &[])))?;
    for_each_kind(|protocol, family| {
        wait_for(world.outside(), protocol, at(balancer(family)), &Outcome::Refused)?;
        wait_for_stranger(&world, (protocol, family), at(balancer(family)), is_silence)
    })?;
    Ok(())
}

#[test]
fn rules_35_36_source_ranges_by_tc() -> Result<()> {
    source_ranges(Options::TC)
}

#[test]
fn rules_35_36_source_ranges_with_xdp() -> Result<()> {
    source_ranges(Options::XDP)
}

/// Which addresses of node-a answer the NodePort: its first one, and one that comes later.
fn expect_node_ports(world: &World, first: bool, later: bool) -> Result<()> {
    for_each_kind(|protocol, family| {
        for (address, is_served) in [(world.node("node-a").address(family), first), (late(family), later)] {
            let to = SocketAddr::new(address, NODE_PORT);
            if is_served {
                wait_to_meet(world.outside(), protocol, to, &BACKENDS)?;
            } else {
                wait_for(world.outside(), protocol, to, &Outcome::Refused)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn late(family: Family) -> IpAddr {
    family.pick("172.20.0.51", "fd00:20::51")
}

/// Rules 28 and 29, thread cilium 24805: by choice the primary addresses, or those of ranges, or all; also one that comes
/// while the agent runs.
#[test]
fn rules_28_29_pitfall_13_node_ports_answer_at_the_addresses_that_were_chosen() -> Result<()> {
    let ranges = "172.20.0.48/28,fd00:20::50/124";
    for (choice, first, later) in [("primary", true, false), ("all", true, true), (ranges, false, true)] {
        let world = world(Options::TC, &["--nodeport-addresses", choice])?;
        world.put([service(&json!({}))].into_iter().chain(world.slices(NAME, &BACKENDS)))?;
        let lines = |verb| {
            format!("addr {verb} {}/24 dev eth0\naddr {verb} {}/64 dev eth0", late(Family::V4), late(Family::V6))
        };
        world.node("node-a").namespace().ip(&lines("add"))?;
        expect_node_ports(&world, first, later).with_context(|| choice.to_owned())?;
        if choice == "all" {
            world.node("node-a").namespace().ip(&lines("del"))?;
            for_each_kind(|protocol, family| {
                let to = SocketAddr::new(late(family), NODE_PORT);
                // The client's neighbour entry outlives the address: packets go on arriving.
                wait_until(&format!("no more answer by {protocol:?} at {to}"), LIMIT, || {
                    Ok(!matches!(talk::attempt(world.outside(), protocol, to)?, Outcome::Answered(_)))
                })
            })?;
        }
    }
    Ok(())
}

/// Rule 81: a Service of one family gets the other one, and loses the first.
#[test]
fn rule_81_families_come_and_go_on_a_live_service() -> Result<()> {
    let world = world(Options::TC, &[])?;
    let [v4, v6] = Family::BOTH.map(|family| objects::cluster_ip(HOST, family).ip());
    let families = |names: &[&str], ips: &[IpAddr]| {
        objects::service(
            NAME,
            HOST,
            &json!({
                "spec": {
                    "type": "NodePort",
                    "ports": objects::ports(Some(NODE_PORT)),
                    "ipFamilies": names, "clusterIP": ips[0], "clusterIPs": ips,
                },
            }),
        )
    };
    world.put(world.slices(NAME, &BACKENDS))?;
    for (object, served) in [
        (families(&["IPv4"], &[v4]), [true, false]),
        (families(&["IPv4", "IPv6"], &[v4, v6]), [true, true]),
        (families(&["IPv6", "IPv4"], &[v6, v4]), [true, true]),
        (families(&["IPv6"], &[v6]), [false, true]),
    ] {
        world.put([object])?;
        for_each_kind(|protocol, family| {
            let node_port = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
            if served[family as usize] {
                let client = world.pod("client").namespace();
                wait_to_meet(client, protocol, objects::cluster_ip(HOST, family), &BACKENDS)?;
                wait_to_meet(world.outside(), protocol, node_port, &BACKENDS)?;
            } else {
                wait_for(world.outside(), protocol, node_port, &Outcome::Refused)?;
                let outcome =
                    talk::attempt(world.pod("client").namespace(), protocol, objects::cluster_ip(HOST, family))?;
                ensure!(!matches!(outcome, Outcome::Answered(_)), "{protocol:?} {family:?}: {outcome:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A frontend that goes takes its UDP flows along, though its Service and the backend stay; TCP goes on.
#[test]
fn rule_85_udp_ends_with_its_frontend_by_tc() -> Result<()> {
    let world = World::with_echoes(Options::HOST_SOCKETS, &[])?;
    world.put([service(&json!({}))].into_iter().chain(world.slices(NAME, &["web-1"])))?;
    let node = world.node("node-a");
    let from = [world.pod("client").namespace(), node.namespace()];
    let places = |family| {
        let at_node = SocketAddr::new(node.address(family), NODE_PORT);
        [at(external(family)), at(balancer(family)), at_node]
    };
    let begin = |protocol| -> Result<Vec<(Talk, String)>> {
        let mut talks = Vec::new();
        for family in Family::BOTH {
            for (namespace, to) in from.iter().flat_map(|from| places(family).map(|to| (from, to))) {
                wait_for(namespace, protocol, to, &Outcome::Answered("web-1".to_owned()))?;
                let mut talk = namespace.enter(|| Talk::begin(protocol, to, Duration::from_millis(500)))??;
                talk.ask()?;
                talks.push((talk, format!("{protocol:?} from {} to {to}", namespace.name())));
            }
        }
        Ok(talks)
    };
    let (mut udp, mut tcp) = (begin(Protocol::Udp)?, begin(Protocol::Tcp)?);
    let kept = Family::BOTH.map(|family| from.map(|from| (from, objects::cluster_ip(HOST, family))));
    let kept = kept
        .into_iter()
        .flatten()
        .map(|(from, to)| -> Result<Talk> { Ok(from.enter(|| Talk::begin(Protocol::Udp, to, LIMIT))??) });
    let mut kept = kept.collect::<Result<Vec<_>>>()?;
    kept.iter_mut().try_for_each(|talk| talk.ask().map(drop))?;
    let ports = objects::ports(None);
    world.put([objects::service(NAME, HOST, &json!({ "spec": { "ports": ports } }))])?;
    for (talk, what) in &mut udp {
        wait_until(&format!("{what} ends"), LIMIT, || Ok(talk.ask().is_err()))?;
        ensure!(talk.ask().is_err(), "{what} goes on");
    }
    for (talk, what) in &mut tcp {
        talk.ask().with_context(|| format!("{what} has ended"))?;
    }
    // Others of the same Service and backend do not notice.
    Ok(kept.iter_mut().try_for_each(|talk| talk.ask().map(drop))?)
}
