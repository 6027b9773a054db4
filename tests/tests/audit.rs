// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others take out of the kernel comes back by itself, within half a minute; where that is possible, no packet is lost.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::maps::{FRONTENDS, LAYOUT_VERSION, PINNED};
use nix::mount::{MntFlags, umount2};
use shunt_tests::{
    load::http,
    packets::detach_link,
    world::{Family, Node, Options, World, sample, wait_until},
};

/// What was promised.
const LIMIT: Duration = Duration::from_secs(30);
/// Longer than the agents take to hear of what is removed.
const PAUSE: Duration = Duration::from_secs(2);

fn pins(node: &Node, kind: &str) -> PathBuf {
    node.bpffs().join(format!("v{LAYOUT_VERSION}")).join(kind)
}

fn has_pins(node: &Node) -> bool {
    let links = fs::read_dir(pins(node, "links")).into_iter().flatten().count();
    links > 0 && PINNED.iter().all(|name| pins(node, "maps").join(name).exists())
}

/// What the agent has counted of a part.
fn repairs(node: &Node, part: &str) -> Result<u64> {
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 10249));
    let body = node.namespace().enter(|| http::get(metrics, "/metrics", LIMIT))??.body;
    let text = String::from_utf8(body)?;
    let name = format!("shunt_repairs_total{{part=\"{part}\"}} ");
    let count = text.lines().find_map(|line| line.strip_prefix(&name)).context("no such metric")?;
    Ok(count.parse()?)
}

/// Takes pins away under load. Nothing is lost, also not when the agents die after that: only then pins matter.
fn pins_come_back(mut world: World, take: impl Fn(&Node) -> Result<()>) -> Result<World> {
    let load = world.load_web()?;
    for node in world.nodes() {
        take(node)?;
        ensure!(!has_pins(node), "nothing was taken");
    }
    for node in world.nodes() {
        wait_until(&format!("the return of the pins of {}", node.name()), LIMIT, || Ok(has_pins(node)))?;
        wait_until("the count of pins", PAUSE, || Ok(repairs(node, "pin")? > PINNED.len() as u64))?;
        let log = node.agent().log();
        ensure!(log.contains("somebody had removed or changed: "), "{}", node.agent().log_tail());
    }
    for node in world.nodes_mut() {
        node.agent_mut().kill()?;
    }
    sleep(PAUSE);
    world.start_agents()?;
    let [tally] = <[_; 1]>::try_from(load.finish()).expect("one phase");
    ensure!(tally.failed() == 0 && tally.requests() > 100, "{} requests, {:?}", tally.requests(), tally.errors);
    Ok(world)
}

#[test]
fn pins_that_somebody_removes_come_back_and_no_request_is_lost() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    pins_come_back(world, |node| Ok(fs::remove_dir_all(node.bpffs())?)).map(drop)
}

#[test]
fn a_bpffs_that_somebody_unmounts_comes_back_and_no_request_is_lost() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut world = World::new(Options::TC)?;
    world.apply_sample()?;
    for node in world.nodes_mut() {
        let path = directory.path().join(node.name());
        node.set_bpffs(&path);
    }
    world.start_agents()?;
    let unmount = |node: &Node| Ok(umount2(node.bpffs(), MntFlags::MNT_DETACH)?);
    let world = pins_come_back(world, unmount);
    // The agents' mounts, whatever came of it: this test has made the directories.
    for entry in fs::read_dir(directory.path())?.flatten() {
        while umount2(&entry.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
    world.map(drop)
}

const SERVICE_CIDR: &str = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "all"},
    "spec": {"cidrs": ["10.96.0.0/16"]}}"#;

fn routes(node: &Node) -> Result<String> {
    node.namespace().run("ip", &["route", "show", "protocol", "83"])
}

/// `bpftool link detach`, `tc qdisc del`, a route and a frontend removed: each is put back.
#[test]
fn programs_routes_and_frontends_that_somebody_removes_come_back_within_half_a_minute() -> Result<()> {
    let mut world = World::new(Options::HOST_SOCKETS)?;
    world.apply_sample()?;
    world.apply("cidr.json", SERVICE_CIDR)?;
    world.start_agents()?;
    world.serves()?;
    let node = world.node("node-a");
    wait_until("the route", LIMIT, || Ok(routes(node)?.contains("10.96.0.0/16")))?;

    let mut detached = 0;
    for pin in fs::read_dir(pins(node, "links"))?.flatten().map(|entry| entry.path()) {
        if pin.is_file() {
            detach_link(&pin).with_context(|| format!("can't detach {}", pin.display()))?;
            detached += 1;
        }
    }
    for interface in ["eth0", "veth-client", "veth-caller"] {
        // Where links serve, there is no qdisc.
        drop(node.namespace().command("tc").args(["qdisc", "del", "dev", interface, "clsact"]).output());
    }
    ensure!(world.serves().is_err(), "{detached} links were detached");
    node.namespace().ip("route del blackhole 10.96.0.0/16 proto 83")?;
    let map = MapData::from_pin(pins(node, "maps").join(FRONTENDS))?;
    let mut frontends: HashMap<_, [u8; 20], [u8; 28]> = HashMap::try_from(Map::HashMap(map))?;
    let keys: Vec<_> = frontends.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| frontends.remove(key))?;

    wait_until("service for pods again", LIMIT, || Ok(world.serves().is_ok()))?;
    wait_until("service for the node again", LIMIT, || {
        let answer = node.namespace().enter(|| http::get(sample::web(Family::V4), "/", Duration::from_secs(1)))?;
        Ok(answer.is_ok())
    })?;
    wait_until("the route again", LIMIT, || Ok(routes(node)?.contains("10.96.0.0/16")))?;
    wait_until("all frontends again", LIMIT, || Ok(frontends.keys().count() == keys.len()))?;
    ensure!(repairs(node, "map")? >= keys.len() as u64);
    ensure!(repairs(node, "socket-link")? > 0 && repairs(node, "link")? + repairs(node, "filter")? > 0);
    wait_until("the count of routes", PAUSE, || Ok(repairs(node, "route")? == 1))
}
