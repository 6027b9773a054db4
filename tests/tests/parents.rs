// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uplinks that stand on another device, VLANs and bonds, and the way from an untagged device to a tagged one and back (pitfall
//! 12: cilium 35497, 24768, 30072).
//!
//! Not every kernel has such devices: the tests are ignored by default, and `cargo xtask` runs them where there are some.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, Talk, talk},
    world::{
        BOND, Echo, Family, Namespace, Options, VLAN, World, Xdp, for_each_kind, objects, wait_to_meet, wait_until,
    },
};

const NAME: &str = "shop";
const HOST: u8 = 89;
const NODE_PORT: u16 = 30_089;
const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];
const LIMIT: Duration = Duration::from_secs(5);
const BYTES: usize = 300_000;

/// A world with agents on the uplinks that `prepare` makes.
fn world(options: Options, xdp: Xdp, prepare: impl FnOnce(&mut World) -> Result<()>) -> Result<World> {
    let mut world = World::new(options)?;
    prepare(&mut world)?;
    for pod in ALL {
        let echo = Echo::start(world.pod(pod).namespace(), pod)?;
        world.pod_mut(pod).run(echo);
    }
    world.apply_sample()?;
    start_agents(&mut world, xdp)?;
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    let service = objects::service(NAME, HOST, &json!({ "spec": spec }));
    world.put([service].into_iter().chain(world.slices(NAME, &ALL)))?;
    Ok(world)
}

fn start_agents(world: &mut World, xdp: Xdp) -> Result<()> {
    world.nodes_mut().try_for_each(|node| node.start_agent(xdp))?;
    world.nodes().try_for_each(|node| node.agent().wait_ready())
}

/// ClusterIPs from pods, and NodePorts from outside, by both nodes, to backends on either; also with more than fits one packet.
fn serves(world: &World) -> Result<()> {
    for_each_kind(|protocol, family| {
        let inside = objects::cluster_ip(HOST, family);
        for pod in ["client", "caller", "web-3"] {
            wait_to_meet(world.pod(pod).namespace(), protocol, inside, &ALL).with_context(|| pod.to_owned())?;
        }
        for node in world.nodes() {
            let to = SocketAddr::new(node.address(family), NODE_PORT);
            wait_to_meet(world.outside(), protocol, to, &ALL).with_context(|| node.name().to_owned())?;
            if protocol == Protocol::Tcp {
                moves_data(world.outside(), to).with_context(|| format!("outside to {to}"))?;
            }
        }
        if protocol == Protocol::Tcp {
            moves_data(world.pod("client").namespace(), inside).with_context(|| format!("client to {inside}"))?;
        }
        Ok(())
    })
}

fn moves_data(from: &Namespace, to: SocketAddr) -> Result<()> {
    for _ in 0..6 {
        let begin = || from.enter(|| Talk::begin(Protocol::Tcp, to, LIMIT))?.map_err(anyhow::Error::from);
        begin()?.upload(BYTES).context("upload")?;
        begin()?.download(BYTES).context("download")?;
    }
    Ok(())
}

/// Waits until every agent has said all of this in one line of its log.
fn said(world: &World, words: &[&str]) -> Result<()> {
    for node in world.nodes() {
        let log = || node.agent().log();
        let outcome = wait_until(&format!("{words:?} in the log of {}", node.name()), LIMIT, || {
            Ok(log().lines().any(|line| words.iter().all(|word| line.contains(word))))
        });
        outcome.with_context(log)?;
    }
    Ok(())
}

#[test]
#[ignore = "wants VLAN devices"]
fn pitfall_12_an_uplink_that_is_a_vlan() -> Result<()> {
    let mut world = world(Options::TC, Xdp::Auto, World::tag_all)?;
    said(&world, &[VLAN, "no XDP (the driver does not have it)"])?;
    serves(&world)?;
    // Who insists on XDP in the driver is told of it, and served by TC all the same.
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
    }
    start_agents(&mut world, Xdp::Driver)?;
    said(&world, &[VLAN, "XDP in the driver", "the driver does not have it"])?;
    serves(&world)
}

#[test]
#[ignore = "wants VLAN devices"]
fn pitfall_12_nodes_that_meet_in_a_vlan() -> Result<()> {
    for options in [Options::TC, Options::TC_WITHOUT_OFFLOADS] {
        let world = world(options, Xdp::Off, World::tag_between_nodes)?;
        serves(&world)?;
        // The detour by the other node is really one by the VLAN.
        for family in Family::BOTH {
            let to = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
            let node = family.pick("172.21.0.11", "fd00:21::11");
            let ask = |_| Ok(world.outside().enter(|| talk::ask(Protocol::Tcp, to, LIMIT))??);
            let seen = (0..40).map(ask).collect::<Result<Vec<_>>>()?;
            let is_detour = |server: &str| world.pod(server).node_name() == "node-b";
            let detours: Vec<_> = seen.iter().filter(|answer| is_detour(&answer.server)).collect();
            ensure!(!detours.is_empty(), "{seen:?}");
            ensure!(detours.iter().all(|answer| answer.client.ip() == node), "{detours:?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "wants bonds"]
fn pitfall_12_an_uplink_that_is_a_bond() -> Result<()> {
    // What XDP sends out by a veth is received only by a peer that runs XDP as well, and it knows of no unfinished checksums.
    let world = world(Options::XDP, Xdp::Auto, World::bond_all)?;
    said(&world, &[BOND, "XDP"])?;
    serves(&world)
}
