// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several doors on a packet's way into the node: it is translated at one of them, although the backend's address and port, those of a
//! process of the node, are another Service's.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::world::{Echo, Family, Options, World, echo_port, for_each_kind, objects, wait_to_meet};

use crate::doors::bridge_the_uplink;

const HOST: u8 = 91;
/// What the client knows of the node's process.
const VIP: [&str; 2] = ["203.0.113.91", "2001:db8:91::1"];

/// A Service at external addresses, of what runs on node-a.
fn of_node(world: &World) -> Result<()> {
    let name = "front";
    world.put([objects::service(name, HOST, &json!({ "spec": { "externalIPs": VIP } }))])?;
    let mut slices = world.slices(name, &["web-1"]);
    for (slice, family) in slices.iter_mut().zip(Family::BOTH) {
        slice["endpoints"][0]["addresses"] = json!([world.node("node-a").address(family)]);
    }
    world.put(slices)
}

/// One at the process's own address and port, of a pod elsewhere.
fn at_node(world: &World) -> Result<()> {
    let name = "back";
    let addresses = Family::BOTH.map(|family| world.node("node-a").address(family));
    let mut ports = objects::ports(None);
    ports.as_array_mut().into_iter().flatten().for_each(|port: &mut Value| port["port"] = echo_port().into());
    world.put([objects::service(name, HOST + 1, &json!({ "spec": { "externalIPs": addresses, "ports": ports } }))])?;
    world.put(world.slices(name, &["web-2"]))
}

fn serves_both(world: &World) -> Result<()> {
    let _echo = Echo::start(world.node("node-a").namespace(), "node-a")?;
    of_node(world)?;
    at_node(world)?;
    let [v4, v6] = Family::BOTH.map(|family| world.node("node-a").address(family));
    world.outside().ip(&format!("route add {} via {v4}\nroute add {} via {v6}", VIP[0], VIP[1]))?;
    for_each_kind(|protocol, family| {
        let port = echo_port();
        wait_to_meet(
            world.outside(),
            protocol,
            SocketAddr::new(world.node("node-a").address(family), port),
            &["web-2"],
        )?;
        let to = SocketAddr::new(family.pick(VIP[0], VIP[1]), objects::ECHO_PORT);
        // Each of many connections, and several times on each.
        (0..3).try_for_each(|_| wait_to_meet(world.outside(), protocol, to, &["node-a"]))
    })
}

#[test]
fn a3_a_packet_is_translated_once_with_xdp() -> Result<()> {
    serves_both(&World::with_echoes(Options::XDP, &[])?)
}

#[test]
fn a3_a_packet_is_translated_once_by_tc() -> Result<()> {
    serves_both(&World::with_echoes(Options::TC, &[])?)
}

/// A bridge and its port are both uplinks.
#[test]
fn a3_a_packet_is_translated_once_on_uplinks_that_stand_on_each_other() -> Result<()> {
    let prepare = |world: &mut World| {
        bridge_the_uplink(world.node("node-a"))?;
        world.node_mut("node-a").set_uplinks(&["port0", "eth0"]);
        Ok(())
    };
    serves_both(&World::with_echoes_on(Options::TC, &[], prepare)?)
}
