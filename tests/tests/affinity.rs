// SPDX-License-Identifier: MIT OR Apache-2.0
//! Session affinity, with real clients: TCP and UDP, IPv4 and IPv6 (rules 54 to 57).

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        Protocol,
        talk::{self, Outcome},
    },
    world::{
        Family, Namespace, Node, Options, World, for_each_kind, kinds, objects, sample::WEB_BACKENDS, wait_to_meet,
        wait_until,
    },
};

const NAME: &str = "sticky";
const HOST: u8 = 71;
const NODE_PORT: u16 = 30_071;
const TIMEOUT: Duration = Duration::from_secs(4);
/// The programs count time in ticks of 1.07 s: this much later an entry has expired for certain.
const EXPIRED: Duration = Duration::from_millis(6500);
const FLOWS: usize = 10;
const LIMIT: Duration = Duration::from_secs(5);
/// Two nodes that know one seed choose alike.
const FLAGS: [&str; 2] = ["--hash-seed", "000102030405060708090a0b0c0d0e0f"];

/// The Service, with that affinity.
fn object(affinity: &str) -> Value {
    let spec = json!({
        "type": "NodePort",
        "ports": objects::ports(Some(NODE_PORT)),
        "sessionAffinity": affinity,
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": TIMEOUT.as_secs() } },
    });
    objects::service(NAME, HOST, &json!({ "spec": spec }))
}

fn service(family: Family) -> SocketAddr {
    objects::cluster_ip(HOST, family)
}

/// Makes all web pods the Service's endpoints, and waits until they are.
fn serve(world: &World) -> Result<()> {
    world.put([object("ClientIP")].into_iter().chain(world.slices(NAME, &WEB_BACKENDS)))?;
    for_each_kind(|protocol, family| {
        for pod in ["client", "web-3"] {
            let from = world.pod(pod).namespace();
            wait_until("the Service being there", LIMIT, || {
                Ok(matches!(talk::attempt(from, protocol, service(family)), Ok(Outcome::Answered(_))))
            })?;
        }
        Ok(())
    })
}

/// The one server that many flows meet.
fn only_server(from: &Namespace, protocol: Protocol, to: SocketAddr) -> Result<String> {
    let met = talk::meet(from, protocol, to, FLOWS)?;
    let mut servers = met.into_keys();
    let server = servers.next().context("no flow")?;
    let others: Vec<String> = servers.collect();
    ensure!(others.is_empty(), "{protocol:?} to {to}: {server} and {others:?}");
    Ok(server)
}

/// One backend per client and Service port, by whatever address, port and node it comes; also where the backend sees the
/// node instead of the client. Thread cilium 26709: every node chooses the same.
fn a_client_stays(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &FLAGS)?;
    serve(&world)?;
    let [node_a, node_b] = ["node-a", "node-b"].map(|name| world.node(name));
    let mut met = BTreeSet::new();
    for (protocol, family) in kinds() {
        let at = |node: &Node| SocketAddr::new(node.address(family), NODE_PORT);
        for pod in ["client", "caller", "dns-1", "web-1", "web-3"] {
            let from = world.pod(pod).namespace();
            let server = only_server(from, protocol, service(family))?;
            if world.pod(pod).node_name() == "node-a" {
                ensure!(only_server(from, protocol, at(node_a))? == server, "{pod} meets another at the node port");
            }
            met.insert(server);
        }
        let server = only_server(world.outside(), protocol, at(node_a))?;
        ensure!(only_server(world.outside(), protocol, at(node_b))? == server, "the nodes choose otherwise");
        met.insert(server);
    }
    ensure!(met.len() > 1, "all clients meet {met:?}");
    Ok(())
}

#[test]
fn rule_54_pitfall_15_a_client_stays_with_a_backend_by_tc() -> Result<()> {
    a_client_stays(Options::TC)
}

#[test]
fn rule_54_pitfall_15_a_client_stays_with_a_backend_with_xdp() -> Result<()> {
    a_client_stays(Options::XDP)
}

/// Thread cilium 27096: an endpoint that drains gets no new flow, not even of a client who is used to it.
fn draining_is_honoured(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &FLAGS)?;
    serve(&world)?;
    let draining = json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
    let ways = |family| {
        let at = |node: &str| SocketAddr::new(world.node(node).address(family), NODE_PORT);
        let inside = (world.pod("client").namespace(), service(family));
        [inside, (world.outside(), at("node-a")), (world.outside(), at("node-b"))]
    };
    for drained in WEB_BACKENDS {
        let conditions = |pod| if pod == drained { draining.clone() } else { json!({}) };
        world.put(world.patched_slices(NAME, &WEB_BACKENDS.map(|pod| (pod, conditions(pod)))))?;
        for_each_kind(|protocol, family| {
            for (from, to) in ways(family) {
                wait_until(&format!("{drained} being left by {to}"), LIMIT, || {
                    Ok(only_server(from, protocol, to).is_ok_and(|server| server != drained))
                })?;
                ensure!(only_server(from, protocol, to)? != drained, "{drained} is met again by {to}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rule_56_pitfall_15_an_endpoint_that_drains_is_left_by_tc() -> Result<()> {
    draining_is_honoured(Options::TC)
}

#[test]
fn rule_56_pitfall_15_an_endpoint_that_drains_is_left_with_xdp() -> Result<()> {
    draining_is_honoured(Options::XDP)
}

/// That the client meets these servers, by IPv4 and by IPv6.
fn meets(world: &World, servers: [&str; 2]) -> Result<()> {
    for (protocol, family) in kinds() {
        let server = only_server(world.pod("client").namespace(), protocol, service(family))?;
        let wanted = servers[family as usize];
        ensure!(server == wanted, "{protocol:?} {family:?} meets {server} instead of {wanted}");
    }
    Ok(())
}

/// Waits until it meets just these.
fn waits_to_meet(world: &World, servers: [&[&str]; 2]) -> Result<()> {
    for_each_kind(|protocol, family| {
        wait_to_meet(world.pod("client").namespace(), protocol, service(family), servers[family as usize])
    })
}

/// Makes these pods the Service's endpoints, those of IPv4 and those of IPv6.
fn set_endpoints(world: &World, pods: [&[&str]; 2]) -> Result<()> {
    let [v4, _] = world.slices(NAME, pods[0]);
    let [_, v6] = world.slices(NAME, pods[1]);
    world.put([v4, v6])
}

/// What a client is used to lasts as long as it keeps coming, whatever becomes of other endpoints and of the agent; it ends
/// with the timeout, with its endpoint, and with the affinity itself.
#[test]
fn rules_55_to_57_affinity_lasts_until_its_timeout_or_its_endpoint_or_itself_ends() -> Result<()> {
    const ALL: [&[&str]; 2] = [&WEB_BACKENDS, &WEB_BACKENDS];
    let mut world = World::with_echoes(Options::TC, &FLAGS)?;
    serve(&world)?;
    let (mut usual, mut other) = ([""; 2], [""; 2]);
    for family in Family::BOTH {
        let server = only_server(world.pod("client").namespace(), Protocol::Tcp, service(family))?;
        let is_usual = |pod: &&str| *pod == server;
        usual[family as usize] = WEB_BACKENDS.into_iter().find(is_usual).context("an unknown server")?;
        other[family as usize] = WEB_BACKENDS.into_iter().find(|pod| !is_usual(pod)).context("one server only")?;
    }
    set_endpoints(&world, [&[other[0]], &[other[1]]])?;
    waits_to_meet(&world, [&[other[0]], &[other[1]]])?;

    // Refreshed by each new flow, through changes of other endpoints and of the agent.
    set_endpoints(&world, ALL)?;
    let start = Instant::now();
    while start.elapsed() < 2 * TIMEOUT {
        meets(&world, other)?;
        sleep(TIMEOUT / 8);
    }
    world.nodes_mut().try_for_each(|node| node.agent_mut().kill())?;
    world.start_agents()?;
    meets(&world, other)?;
    sleep(EXPIRED);
    meets(&world, usual)?;

    // Their endpoint goes, and comes back too late.
    set_endpoints(&world, [&[other[0]], &[other[1]]])?;
    waits_to_meet(&world, [&[other[0]], &[other[1]]])?;
    set_endpoints(&world, ALL)?;
    sleep(TIMEOUT / 8);
    meets(&world, other)?;

    world.put([object("None")])?;
    waits_to_meet(&world, ALL)?;
    sleep(EXPIRED);
    world.put([object("ClientIP")])?;
    waits_to_meet(&world, [&[usual[0]], &[usual[1]]])
}
