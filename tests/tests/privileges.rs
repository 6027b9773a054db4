// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent with no more of root's privileges than the DaemonSet gives it: all doors work, and so does coming back.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use lb_common::maps::LAYOUT_VERSION;
use serde_json::{Value, json};
use shunt_tests::{
    load::talk::{self, Outcome},
    world::{
        Family, LinkKind, Node, Options, Sockets, World, for_each_kind, objects, wait_for, wait_to_meet, wait_until,
    },
};

const NAME: &str = "shop";
const HOST: u8 = 60;
const NODE_PORT: u16 = 30_060;
const LIMIT: Duration = Duration::from_secs(10);

/// What the DaemonSet adds to nothing, as `setpriv` writes it.
fn capabilities() -> Result<Vec<String>> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository")?.join("manifests/daemonset.yaml");
    let daemon_set: Value = serde_saphyr::from_str(&fs::read_to_string(path)?)?;
    let context = &daemon_set["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "{context}");
    let added = context["capabilities"]["add"].as_array().context("nothing added")?;
    Ok(added.iter().filter_map(Value::as_str).map(str::to_lowercase).collect())
}

/// Effective and bounding capabilities of a node's agent: `CAP_NET_ADMIN`, `CAP_PERFMON` and `CAP_BPF`.
fn has_just_those(node: &Node) -> Result<()> {
    const JUST_THOSE: &str = "000000c000001000";
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent().pid()))?;
    for set in ["CapEff:\t", "CapBnd:\t"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set));
        ensure!(line == Some(JUST_THOSE), "{}: {set}{line:?}", node.name());
    }
    Ok(())
}

/// That HTTP and both protocols get by all ways to just these pods: from a pod, from outside by both nodes, and from a process
/// of a node.
fn serves(world: &World, pods: &[&str]) -> Result<()> {
    world.serves()?;
    for_each_kind(|protocol, family| {
        let inside = objects::cluster_ip(HOST, family);
        for from in [world.pod("client").namespace(), world.pod("caller").namespace(), world.node("node-a").namespace()]
        {
            wait_to_meet(from, protocol, inside, pods)?;
        }
        for node in world.nodes() {
            wait_to_meet(world.outside(), protocol, (node.address(family), NODE_PORT).into(), pods)?;
        }
        Ok(())
    })
}

/// The least privileges are enough for everything; also for being the second one, beside others' programs.
fn least_privileges(options: Options) -> Result<()> {
    let names = capabilities()?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    ensure!(names == ["bpf", "net_admin", "perfmon"], "{names:?}");
    let mut world = World::with_echoes_on(options, &[], |world| {
        world.nodes_mut().for_each(|node| node.limit_capabilities(&names));
        Ok(())
    })?;
    world.nodes().try_for_each(has_just_those)?;
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    world.put([objects::service(NAME, HOST, &json!({ "spec": spec }))])?;
    world.put(world.slices(NAME, &["web-1", "web-2", "web-3"]))?;
    serves(&world, &["web-1", "web-2", "web-3"])?;

    // Somebody else's program on the loopback device is no lack of the kernel's.
    let pin = world.node("node-a").bpffs().join(format!("v{LAYOUT_VERSION}/programs/shunt_tc_ingress"));
    let mut others = SchedClassifier::from_pin(&pin).with_context(|| pin.display().to_string())?;
    world.node("node-a").namespace().enter(|| {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        others.attach_with_options("lo", TcAttachType::Ingress, order).map(drop)
    })??;

    for (is_killed, pods) in [(true, &["web-2", "web-3"][..]), (false, &["web-1", "web-2"])] {
        for node in world.nodes_mut() {
            if is_killed {
                node.agent_mut().kill()?;
            } else {
                node.agent_mut().terminate()?;
            }
        }
        world.put(world.slices(NAME, pods))?;
        world.start_agents()?;
        world.nodes().try_for_each(has_just_those)?;
        serves(&world, pods)?;
    }
    // A pod that comes is served.
    world.add_pod("late", "node-a", 95, LinkKind::Bridged)?;
    for_each_kind(|protocol, family| {
        let inside = objects::cluster_ip(HOST, family);
        wait_to_meet(world.pod("late").namespace(), protocol, inside, &["web-1", "web-2"])
    })?;
    // Its tools work, too, and a Service without endpoints is refused.
    let node = world.node("node-a");
    for words in ["get services", "get backends", "get flows", "get maps", "get sockets"] {
        ensure!(!node.lb_agent(words)?.is_empty(), "{words} says nothing");
    }
    let to = objects::cluster_ip(HOST, Family::V4);
    let trace = node.lb_agent(&format!(
        "trace --from {}:4000 --to {to} --in-interface veth-client",
        world.pod("client").address(Family::V4)
    ))?;
    ensure!(trace.contains("web-1") || trace.contains("10.244."), "{trace}");
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| {
        wait_for(world.pod("client").namespace(), protocol, objects::cluster_ip(HOST, family), &Outcome::Refused)
    })?;
    for node in world.nodes() {
        let log = node.agent().log();
        ensure!(!log.contains("no TC links") && !log.contains("not permitted"), "{log}");
    }
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
        node.lb_agent("cleanup")?;
    }
    wait_until("nothing being served", LIMIT, || {
        let outcome = talk::attempt(world.pod("client").namespace(), shunt_tests::load::Protocol::Tcp, to)?;
        Ok(!matches!(outcome, Outcome::Answered(_)))
    })
}

#[test]
fn the_daemon_sets_privileges_are_enough_by_tc() -> Result<()> {
    least_privileges(Options { sockets: Sockets::Host, ..Options::TC })
}

#[test]
fn the_daemon_sets_privileges_are_enough_with_xdp() -> Result<()> {
    least_privileges(Options { sockets: Sockets::Host, ..Options::XDP })
}
