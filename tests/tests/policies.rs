// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of a Service's endpoints a client may have, with real clients: traffic policies, what terminates, topology hints
//! (rules 5, 20 to 24, 37 to 42, 48).

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::talk::{self, Outcome},
    world::{Family, Namespace, Options, World, for_each_kind, objects, wait_for, wait_to_meet},
};

const NAME: &str = "shop";
const HOST: u8 = 73;
const NODE_PORT: u16 = 30_073;
const LIMIT: Duration = Duration::from_secs(5);
/// On node-a, as are all clients in pods.
const HERE: &str = "web-1";
/// On node-b.
const THERE: [&str; 2] = ["web-2", "web-3"];
const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];

/// The Service, with these policies for what comes from inside and from outside.
fn service(internal: &str, external: &str) -> Value {
    objects::service(
        NAME,
        HOST,
        &json!({
            "spec": {
                "type": "NodePort",
                "ports": objects::ports(Some(NODE_PORT)),
                "internalTrafficPolicy": internal,
                "externalTrafficPolicy": external,
            },
        }),
    )
}

fn inside(family: Family) -> SocketAddr {
    objects::cluster_ip(HOST, family)
}

fn at_node(world: &World, node: &str, family: Family) -> SocketAddr {
    SocketAddr::new(world.node(node).address(family), NODE_PORT)
}

fn client(world: &World) -> &Namespace {
    world.pod("client").namespace()
}

/// Rules 37 and 41: the internal policy keeps the ClusterIP's traffic on its node, and drops it where there is nothing; the
/// NodePort does not heed it.
#[test]
fn rules_37_41_internal_policy_local_stays_on_the_node_or_drops() -> Result<()> {
    let world = World::with_echoes(Options::TC, &[])?;
    world.put([service("Local", "Cluster")].into_iter().chain(world.slices(NAME, &ALL)))?;
    for_each_kind(|protocol, family| {
        for pod in ["client", "caller"] {
            wait_to_meet(world.pod(pod).namespace(), protocol, inside(family), &[HERE])?;
        }
        wait_to_meet(world.pod("web-3").namespace(), protocol, inside(family), &THERE)?;
        wait_to_meet(client(&world), protocol, at_node(&world, "node-a", family), &ALL)?;
        wait_to_meet(world.outside(), protocol, at_node(&world, "node-a", family), &ALL)
    })?;
    world.put(world.slices(NAME, &THERE))?;
    for_each_kind(|protocol, family| {
        wait_for(client(&world), protocol, inside(family), &Outcome::Silence)?;
        wait_to_meet(world.pod("web-3").namespace(), protocol, inside(family), &THERE)?;
        wait_to_meet(world.outside(), protocol, at_node(&world, "node-a", family), &THERE)
    })?;
    // Rule 40: none anywhere is another matter.
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| wait_for(client(&world), protocol, inside(family), &Outcome::Refused))?;
    world.put([service("Cluster", "Cluster")].into_iter().chain(world.slices(NAME, &THERE)))?;
    for_each_kind(|protocol, family| wait_to_meet(client(&world), protocol, inside(family), &THERE))
}

/// Rules 38, 39, 42 and 48: the external policy keeps outside clients on the node that they ask, with their own address, and
/// drops them where there is nothing; the node's pods are served by all endpoints all the same.
fn external_policy(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    world.put([service("Cluster", "Local")].into_iter().chain(world.slices(NAME, &ALL)))?;
    for_each_kind(|protocol, family| {
        wait_to_meet(world.outside(), protocol, at_node(&world, "node-a", family), &[HERE])?;
        wait_to_meet(world.outside(), protocol, at_node(&world, "node-b", family), &THERE)?;
        for node in ["node-a", "node-b"] {
            let to = at_node(&world, node, family);
            for _ in 0..4 {
                let answer = world.outside().enter(|| talk::ask(protocol, to, LIMIT))??;
                ensure!(answer.client == answer.local, "{node}: {answer:?}");
            }
        }
        for pod in ["client", "caller"] {
            wait_to_meet(world.pod(pod).namespace(), protocol, at_node(&world, "node-a", family), &ALL)?;
        }
        wait_to_meet(client(&world), protocol, inside(family), &ALL)
    })?;
    world.put(world.slices(NAME, &THERE))?;
    for_each_kind(|protocol, family| {
        wait_for(world.outside(), protocol, at_node(&world, "node-a", family), &Outcome::Silence)?;
        wait_to_meet(world.outside(), protocol, at_node(&world, "node-b", family), &THERE)?;
        wait_to_meet(client(&world), protocol, at_node(&world, "node-a", family), &THERE)
    })?;
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| {
        wait_for(world.outside(), protocol, at_node(&world, "node-a", family), &Outcome::Refused)
    })?;
    world.put([service("Cluster", "Cluster")].into_iter().chain(world.slices(NAME, &THERE)))?;
    for_each_kind(|protocol, family| wait_to_meet(world.outside(), protocol, at_node(&world, "node-a", family), &THERE))
}

#[test]
fn rules_38_42_external_policy_local_by_tc() -> Result<()> {
    external_policy(Options::TC)
}

#[test]
fn rules_38_42_external_policy_local_with_xdp() -> Result<()> {
    external_policy(Options::XDP)
}

/// Rules 20 to 22: ready endpoints; where there are none, those that terminate but still serve; never unready ones. Thread
/// kubernetes 85643: with a local policy, too.
fn terminating_endpoints(options: Options) -> Result<()> {
    let terminating = json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
    let unready = json!({ "conditions": { "ready": false, "serving": true, "terminating": false } });
    let world = World::with_echoes(options, &[])?;
    let steps = [
        (
            vec![("web-1", terminating.clone()), ("web-2", json!({})), ("web-3", unready.clone())],
            &["web-2"],
            Some("web-1"),
        ),
        (
            vec![("web-1", terminating), ("web-2", unready.clone()), ("web-3", unready.clone())],
            &["web-1"],
            Some("web-1"),
        ),
        (vec![("web-1", unready.clone()), ("web-2", json!({})), ("web-3", unready)], &["web-2"], None),
    ];
    world.put([service("Cluster", "Local")])?;
    for (endpoints, cluster, local) in steps {
        world.put(world.patched_slices(NAME, &endpoints))?;
        for_each_kind(|protocol, family| {
            wait_to_meet(client(&world), protocol, inside(family), cluster)?;
            let to = at_node(&world, "node-a", family);
            match local {
                Some(pod) => wait_to_meet(world.outside(), protocol, to, &[pod]),
                None => wait_for(world.outside(), protocol, to, &Outcome::Silence),
            }
        })?;
    }
    Ok(())
}

#[test]
fn rules_20_to_22_terminating_endpoints_serve_where_nothing_else_does_by_tc() -> Result<()> {
    terminating_endpoints(Options::TC)
}

#[test]
fn rules_20_to_22_terminating_endpoints_serve_where_nothing_else_does_with_xdp() -> Result<()> {
    terminating_endpoints(Options::XDP)
}

/// node-a, in that zone.
fn node(zone: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node-a", "labels": { "topology.kubernetes.io/zone": zone } },
        "status": { "addresses": Family::BOTH.map(|family| json!({ "type": "InternalIP", "address": family.pick("172.20.0.11", "fd00:20::11") })) },
    })
}

/// Rules 5 and 24: hints by zone and by node are followed, as the node changes its zone; where they are of no use, everything
/// serves.
#[test]
fn rules_5_24_hints_are_followed_as_the_node_moves_from_zone_to_zone() -> Result<()> {
    let for_zone = |zone: &str| json!({ "hints": { "forZones": [{ "name": zone }] } });
    let zones = [("web-1", for_zone("zone-1")), ("web-2", for_zone("zone-2")), ("web-3", for_zone("zone-3"))];
    let world = World::with_echoes(Options::TC, &[])?;
    world.put([service("Cluster", "Cluster")].into_iter().chain(world.patched_slices(NAME, &zones)))?;
    let meets = |pods: &[&str]| {
        for_each_kind(|protocol, family| {
            wait_to_meet(client(&world), protocol, inside(family), pods)?;
            wait_to_meet(world.outside(), protocol, at_node(&world, "node-a", family), pods)
        })
    };
    meets(&["web-1"])?;
    for (zone, pods) in [("zone-2", &["web-2"][..]), ("zone-3", &["web-3"]), ("zone-4", &ALL), ("zone-1", &["web-1"])] {
        let nodes = node(zone);
        world.apply("nodes.yaml", &nodes.to_string())?;
        meets(pods)?;
    }
    // Hints by node come first.
    let by_node = [
        ("web-1", json!({ "hints": { "forNodes": [{ "name": "node-b" }] } })),
        ("web-2", json!({ "hints": { "forNodes": [{ "name": "node-a" }] } })),
    ];
    world.put(world.patched_slices(NAME, &by_node))?;
    meets(&["web-2"])?;
    // One endpoint without a hint makes them all void.
    let [with, _] = by_node;
    world.put(world.patched_slices(NAME, &[with, ("web-3", json!({}))]))?;
    meets(&["web-1", "web-3"])
}
