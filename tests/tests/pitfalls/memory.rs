// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the maps take, and how full they are.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    frontend::{Frontend, FrontendKey},
    maps::{FRONTENDS, LAYOUT_VERSION},
};
use serde_json::{Value, json};
use shunt_tests::{
    load::http,
    world::{Family, Node, Options, World, Xdp, objects, wait_until},
};

use crate::service::LIMIT;

/// Room for frontends: the sample takes some of it.
const ROOM: usize = 40;

fn maps(node: &Node) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&node.lb_agent("get maps -o json")?)?)
}

/// Threads cilium 37935 and 39070: what the maps may take is said before they are made, it is not less than what the kernel
/// accounts for them, and more than is allowed is not even tried.
#[test]
fn pitfall_17_the_memory_bill_is_told_first_and_capped() -> Result<()> {
    let mut world = World::with_echoes(Options::TC, &[])?;
    let node = world.node("node-a");
    let log = node.agent().log();
    let bill = log.split("the maps take up to ").nth(1).and_then(|rest| rest.split(' ').next()).context("no bill")?;
    let bill: u64 = bill.parse().context("no number")?;
    let memory: u64 = maps(node)?.iter().filter_map(|map| map["memory_bytes"].as_u64()).sum();
    println!("the bill says {bill} MiB, the kernel {} KiB", memory >> 10);
    ensure!(memory > 0 && memory <= bill << 20, "the bill says {bill} MiB, the kernel {memory} bytes");

    let node = world.node_mut("node-a");
    node.agent_mut().terminate()?;
    node.lb_agent("cleanup")?;
    node.add_flags(&["--max-map-memory", "16"]);
    let output = node.agent_command(&node.agent_arguments(Xdp::Off))?.output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(!output.status.success() && said.contains("--max-map-memory") && said.contains("--max-flows"), "{said}");
    let made = node.bpffs().join(format!("v{LAYOUT_VERSION}/maps"));
    let left = fs::read_dir(&made).into_iter().flatten().count();
    ensure!(left == 0, "{left} maps in {}", made.display());
    Ok(())
}

/// What the gauge of occupancy says.
fn gauge(node: &Node) -> Result<usize> {
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let answer = node.namespace().enter(|| http::get(metrics, "/metrics", LIMIT))??;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let start = format!("shunt_map_entries{{map=\"{FRONTENDS}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start)).context("no gauge")?;
    Ok(line.parse::<f64>()? as usize)
}

/// What the map holds, without the agent's help.
fn entries(node: &Node) -> Result<usize> {
    const KEY: usize = size_of::<FrontendKey>();
    const VALUE: usize = size_of::<Frontend>();
    let map = MapData::from_pin(node.bpffs().join(format!("v{LAYOUT_VERSION}/maps/{FRONTENDS}")))?;
    let map: HashMap<MapData, [u8; KEY], [u8; VALUE]> = Map::HashMap(map).try_into()?;
    map.keys().map(|key| Ok(key.map(|_| 1)?)).sum()
}

/// Thread cilium 32311: the gauge is what the map holds, up to the last entry; who finds no room is named, with the flag; and
/// room that comes is used.
#[test]
fn pitfall_18_occupancy_is_exact_and_who_finds_no_room_is_named() -> Result<()> {
    let world = World::with_echoes(Options::TC, &["--max-frontends", &ROOM.to_string()])?;
    let node = world.node("node-a");
    let name = |number: usize| format!("shop-{number}");
    let service = |number: usize| {
        let host = u8::try_from(100 + number).expect("few Services");
        let v4 = objects::cluster_ip(host, Family::V4).ip();
        let spec = json!({
            "ipFamilies": ["IPv4"], "clusterIPs": [v4], "ports": [{ "name": "echo", "protocol": "TCP", "port": 7 }],
        });
        objects::service(&name(number), host, &json!({ "spec": spec }))
    };
    let is_exact = |wanted: Option<usize>| {
        let mut seen = (0, 0);
        let outcome = wait_until("the gauge being exact", LIMIT, || {
            seen = (gauge(node)?, entries(node)?);
            Ok(seen.0 == seen.1 && wanted.is_none_or(|wanted| seen.1 == wanted))
        });
        outcome.map(|()| seen.1).with_context(|| format!("{seen:?} instead of {wanted:?}"))
    };
    let before = is_exact(None)?;
    // One entry for its port, one for all other ports of its address.
    let of_each = 2;
    let fitting = (ROOM - before) / of_each;
    for number in 0..fitting {
        world.put([service(number)])?;
        is_exact(Some(before + (number + 1) * of_each))?;
    }
    world.put([service(fitting)])?;
    wait_until("the Service without room being named", LIMIT, || {
        let log = node.agent().log();
        let mut lines = log.lines();
        Ok(lines.any(|line| line.contains(&format!("default/{}", name(fitting))) && line.contains("--max-frontends")))
    })?;
    is_exact(None)?;
    world.take_away([service(0)])?;
    let from = world.pod("client").address(Family::V4);
    let trace =
        format!("trace --from {from}:4000 --to {}", objects::cluster_ip(u8::try_from(100 + fitting)?, Family::V4));
    wait_until("the room being used", LIMIT, || Ok(node.lb_agent(&trace)?.contains(&name(fitting))))?;
    is_exact(Some(before + fitting * of_each)).map(drop)
}
