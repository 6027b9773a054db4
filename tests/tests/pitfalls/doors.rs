// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices that take no XDP program.

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::world::{Family, Node, Options, World, Xdp, wait_until};

use crate::service::{ALL, LIMIT, NAME, service, wait_to_meet_by_all_ways};

/// Makes the uplink a bridge of the same name and addresses, whose driver has no XDP, as those of bonds and VLANs on some
/// kernels.
pub fn bridge_the_uplink(node: &Node) -> Result<()> {
    let other = 3 - node.number();
    let [v4, v6] = Family::BOTH.map(|family| node.address(family));
    node.namespace().ip(&format!(
        "link set eth0 down\n\
         link set eth0 name port0\n\
         addr flush dev port0\n\
         link add eth0 type bridge forward_delay 0 mcast_snooping 0\n\
         link set port0 master eth0 up\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add 10.244.{other}.0/24 via 172.20.0.1{other}\n\
         route add fd00:244:{other}::/64 via fd00:20::1{other}"
    ))
}

fn wait_for_words(node: &Node, words: &str) -> Result<()> {
    wait_until(&format!("{} saying \"{words}\"", node.name()), LIMIT, || Ok(node.agent().log().contains(words)))
}

/// Threads cilium 35497, 24768 and 30072: where a device takes no XDP program TC does everything, the log says which device and
/// why, and the agent lives on; what was in the way may go.
#[test]
fn pitfall_12_devices_without_xdp_are_served_by_tc() -> Result<()> {
    let mut world = World::with_echoes(Options::XDP, &[])?;
    world.put([service(NAME, 0, &json!({}))].into_iter().chain(world.slices(NAME, &ALL)))?;
    wait_to_meet_by_all_ways(&world, 0, &ALL)?;
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
        node.lb_agent("cleanup")?;
    }
    bridge_the_uplink(world.node("node-a"))?;
    // Somebody else's program is on the other uplink.
    let pass = world.site().xdp_pass().display().to_string();
    let others = world.node("node-b").namespace();
    others.run("ip", &["link", "set", "dev", "eth0", "xdpdrv", "pinned", &pass])?;
    for node in world.nodes_mut() {
        node.start_agent(Xdp::Driver)?;
        node.agent().wait_ready()?;
    }
    wait_for_words(world.node("node-a"), "XDP in the driver on eth0: the driver does not have it")?;
    wait_for_words(world.node("node-b"), "XDP in the driver on eth0: another program is attached there")?;
    wait_to_meet_by_all_ways(&world, 0, &ALL)?;
    world.node("node-b").namespace().run("ip", &["link", "set", "dev", "eth0", "xdpdrv", "off"])?;
    wait_until("XDP being attached where there is room now", LIMIT, || {
        Ok(world.node("node-b").namespace().run("ip", &["link", "show", "eth0"])?.contains("prog/xdp"))
    })?;
    wait_to_meet_by_all_ways(&world, 0, &ALL)?;

    // Where XDP is no must, its lack is no problem.
    let node = world.node_mut("node-a");
    node.agent_mut().terminate()?;
    let said_before = node.agent().log().len();
    node.start_agent(Xdp::Auto)?;
    node.agent().wait_ready()?;
    let said = node.agent().log().split_off(said_before);
    ensure!(!said.contains("WARN") && said.contains("eth0"), "{said}");
    wait_to_meet_by_all_ways(&world, 0, &ALL)
}
