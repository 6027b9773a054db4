// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a backend sees its clients come from, with real clients (rules 46, 47, 49, 52); and that no two of them are taken for
//! one.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        Protocol, Talk,
        talk::{self, Answer, Outcome},
    },
    world::{Family, Namespace, Options, World, echo_port, for_each_kind, objects, wait_for, wait_to_meet},
};

const NAME: &str = "shop";
const HOST: u8 = 79;
const NODE_PORT: u16 = 30_079;
const LIMIT: Duration = Duration::from_secs(5);
/// Of each kind.
const FLOWS: usize = 5;

fn service(name: &str, number: u8, external: &str) -> Value {
    let spec = json!({
        "type": "NodePort",
        "ports": objects::ports(Some(NODE_PORT + u16::from(number))),
        "externalTrafficPolicy": external,
    });
    objects::service(name, HOST + number, &json!({ "spec": spec }))
}

fn inside(family: Family) -> SocketAddr {
    objects::cluster_ip(HOST, family)
}

fn at_node(world: &World, node: &str, family: Family) -> SocketAddr {
    SocketAddr::new(world.node(node).address(family), NODE_PORT)
}

/// What some new flows are answered.
fn answers(from: &Namespace, protocol: Protocol, to: SocketAddr) -> Result<Vec<Answer>> {
    from.enter(|| (0..FLOWS).map(|_| Ok(talk::ask(protocol, to, LIMIT)?)).collect())?
}

/// Rules 46 and 47 by choice: every client from outside appears as the node by which it comes, with the address of the device
/// that leads to the backend. Pods keep theirs, as their packets must pass the rules for forwarded ones.
fn masquerade_all(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &["--masquerade-all"])?;
    world.put([service(NAME, 0, "Cluster")])?;
    for backend in ["web-1", "web-2", "web-3"] {
        world.put(world.slices(NAME, &[backend]))?;
        let is_here = world.pod(backend).node_name() == "node-a";
        for_each_kind(|protocol, family| {
            let bridge = family.pick("10.244.1.1", "fd00:244:1::1");
            let node = if is_here { bridge } else { world.node("node-a").address(family) };
            let [client, caller] = ["client", "caller"].map(|pod| world.pod(pod).namespace());
            let at_node = at_node(&world, "node-a", family);
            let own = |pod: &str| world.pod(pod).address(family);
            for (from, to, seen) in [
                (client, inside(family), own("client")),
                (caller, inside(family), own("caller")),
                (client, at_node, own("client")),
                (world.outside(), at_node, node),
            ] {
                wait_to_meet(from, protocol, to, &[backend])?;
                for answer in answers(from, protocol, to)? {
                    ensure!(answer.client.ip() == seen, "{to}: {answer:?}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rules_46_47_masquerade_all_hides_clients_behind_the_node_by_tc() -> Result<()> {
    masquerade_all(Options::TC)
}

#[test]
fn rules_46_47_masquerade_all_hides_clients_behind_the_node_with_xdp() -> Result<()> {
    masquerade_all(Options::XDP)
}

/// Rules 46 and 48: without that a pod's address and port are kept, to a backend on its node and to one on another, by the
/// ClusterIP and by the NodePort, whatever the external policy.
#[test]
fn rules_46_48_pods_keep_their_address_and_port() -> Result<()> {
    let world = World::with_echoes(Options::TC, &[])?;
    for external in ["Cluster", "Local"] {
        world.put([service(NAME, 0, external)])?;
        for backends in [&["web-1"][..], &["web-2", "web-3"]] {
            world.put(world.slices(NAME, backends))?;
            for_each_kind(|protocol, family| {
                for from in ["client", "caller"].map(|pod| world.pod(pod).namespace()) {
                    for to in [inside(family), at_node(&world, "node-a", family)] {
                        wait_to_meet(from, protocol, to, backends)?;
                        for _ in 0..FLOWS {
                            // One that no flow has had: else it would be another's at the backend for a while.
                            let port = talk::fresh_port();
                            let mut talk = from.enter(|| Talk::begin_from(protocol, port, to, LIMIT))??;
                            let answer = talk.ask()?;
                            ensure!(answer.client == answer.local, "policy {external}, {to}: {answer:?}");
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Rule 52: with the cluster's ranges given, a pod of another node that comes by the uplink is a client inside.
#[test]
fn rule_52_cluster_cidrs_tell_pods_of_other_nodes_from_outsiders() -> Result<()> {
    for (flags, is_inside) in [(&[][..], false), (&["--cluster-cidr", "10.244.0.0/16,fd00:244::/32"][..], true)] {
        let world = World::with_echoes(Options::TC, flags)?;
        // Nothing on node-a, to which the client, on node-b, goes: outsiders are dropped there.
        world.put([service(NAME, 0, "Local")].into_iter().chain(world.slices(NAME, &["web-2"])))?;
        for_each_kind(|protocol, family| {
            let to = at_node(&world, "node-a", family);
            let pod = world.pod("web-3").namespace();
            wait_to_meet(pod, protocol, inside(family), &["web-2"])?;
            wait_for(world.outside(), protocol, to, &Outcome::Silence)?;
            match is_inside {
                true => wait_to_meet(pod, protocol, to, &["web-2"]),
                false => wait_for(pod, protocol, to, &Outcome::Silence),
            }
        })?;
    }
    Ok(())
}

/// Rule 49, threads cilium 26100 and 26733: a pod that reaches itself sees the node, by whatever address it goes.
fn hairpin(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    world.put([service(NAME, 0, "Cluster")])?;
    // A bridged and a routed pod.
    for (pod, node) in [("web-1", "node-a"), ("web-3", "node-b")] {
        world.put(world.slices(NAME, &[pod]))?;
        for_each_kind(|protocol, family| {
            let from = world.pod(pod).namespace();
            for to in [inside(family), at_node(&world, node, family)] {
                wait_to_meet(from, protocol, to, &[pod])?;
                for answer in answers(from, protocol, to)? {
                    ensure!(answer.client.ip() != world.pod(pod).address(family), "{pod} to {to}: {answer:?}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rule_49_pitfall_14_hairpin_of_every_kind_by_tc() -> Result<()> {
    hairpin(Options::TC)
}

#[test]
fn rule_49_pitfall_14_hairpin_of_every_kind_with_xdp() -> Result<()> {
    hairpin(Options::XDP)
}

/// Threads cilium 42632, felix 2983: one client port through two Services to one backend. Both flows work, each with the
/// address that it was begun with, and the backend can tell them apart.
fn one_port_two_services(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    let names = [NAME, "store"];
    world.put([service(names[0], 0, "Cluster"), service(names[1], 1, "Cluster")])?;
    for (backend, port) in [("web-1", 5_001), ("web-2", 5_002), ("web-3", 5_003)] {
        names.iter().try_for_each(|name| world.put(world.slices(name, &[backend])))?;
        for_each_kind(|protocol, family| {
            let both = [0, 1].map(|number| objects::cluster_ip(HOST + number, family));
            let outside =
                |node: &str| [0, 1].map(|number| SocketAddr::new(world.node(node).address(family), NODE_PORT + number));
            let [client, caller] = ["client", "caller"].map(|pod| world.pod(pod).namespace());
            let ways = [
                (client, both),
                (caller, both),
                (world.outside(), outside("node-a")),
                (world.outside(), outside("node-b")),
            ];
            for ((from, to), port) in ways.into_iter().zip((port..).step_by(10)) {
                for to in to {
                    wait_to_meet(from, protocol, to, &[backend])?;
                }
                let begin =
                    |to| from.enter(|| Talk::begin_from(protocol, port, to, LIMIT))?.map_err(anyhow::Error::from);
                let mut talks = [begin(to[0])?, begin(to[1]).context("the second")?];
                for _ in 0..3 {
                    let [first, second] = &mut talks;
                    let [first, second] = [first.ask()?, second.ask().context("the second")?];
                    ensure!(first.server == backend && second.server == backend, "{first:?} {second:?}");
                    ensure!(first.client != second.client, "{to:?}: one flow to the backend: {first:?}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn pitfall_7_one_client_port_through_two_services_to_one_backend_by_tc() -> Result<()> {
    one_port_two_services(Options::TC)
}

#[test]
fn pitfall_7_one_client_port_through_two_services_to_one_backend_with_xdp() -> Result<()> {
    one_port_two_services(Options::XDP)
}

/// Threads openshift/sdn 269, cilium 47396 and 8739: a pod that talks to a Service reaches the backend itself from the same port, also
/// where it talked to that first (UDP: what TCP has begun before is not known).
fn one_port_a_service_and_its_backend(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    world.put([service(NAME, 0, "Cluster")])?;
    for (backend, port) in [("web-1", 5_001), ("web-2", 5_002), ("web-3", 5_003)] {
        world.put(world.slices(NAME, &[backend]))?;
        for_each_kind(|protocol, family| {
            let direct = SocketAddr::new(world.pod(backend).address(family), echo_port());
            let [client, caller] = ["client", "caller"].map(|pod| world.pod(pod).namespace());
            let orders = [[inside(family), direct], [direct, inside(family)]];
            let orders = if protocol == Protocol::Tcp { &orders[..1] } else { &orders };
            for (from, port) in [client, caller].into_iter().zip((port..).step_by(20)) {
                wait_to_meet(from, protocol, inside(family), &[backend])?;
                for (order, port) in orders.iter().zip((port..).step_by(10)) {
                    let begin =
                        |to| from.enter(|| Talk::begin_from(protocol, port, to, LIMIT))?.map_err(anyhow::Error::from);
                    let mut first = begin(order[0])?;
                    first.ask().context("the first")?;
                    let mut second = begin(order[1]).context("the second")?;
                    second.ask().context("the second")?;
                    for _ in 0..3 {
                        let first = first.ask().context("the first once more")?;
                        let second = second.ask().context("the second once more")?;
                        ensure!(first.server == backend && second.server == backend, "{first:?} {second:?}");
                        ensure!(first.client != second.client, "{order:?}: one flow to the backend: {first:?}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn pitfall_30_a_service_and_its_backend_by_one_port_by_tc() -> Result<()> {
    one_port_a_service_and_its_backend(Options::TC)
}

#[test]
fn pitfall_30_a_service_and_its_backend_by_one_port_with_xdp() -> Result<()> {
    one_port_a_service_and_its_backend(Options::XDP)
}
