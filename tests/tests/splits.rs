// SPDX-License-Identifier: MIT OR Apache-2.0
//! Splits (`shunt.dev/split`), with real clients: the proportions that they ask for, and live changes of them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{Talk, talk},
    world::{Options, World, for_each_kind, kinds, objects, wait_to_meet, wait_until},
};

const NAME: &str = "shop";
const HOST: u8 = 74;
const NODE_PORT: u16 = 30_074;
/// Of the parts `old` (`web-1`) and `new` (`web-2`).
const PARTS: [(&str, u8, &str); 2] = [("old", HOST + 1, "web-1"), ("new", HOST + 2, "web-2")];
const LIMIT: Duration = Duration::from_secs(5);
const FLOWS: usize = 400;
/// How far a share may be off: five times the standard deviation of that many flows at one half.
const TOLERANCE: f64 = 0.125;

/// The Service, with that split.
fn split(text: &str) -> Value {
    objects::service(
        NAME,
        HOST,
        &json!({
            "metadata": { "annotations": { "shunt.dev/split": text } },
            "spec": { "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) },
        }),
    )
}

/// That `web-1` answers this share of new flows and `web-2` the rest, from inside and from outside.
fn shares(world: &World, old: f64) -> Result<()> {
    let share = |met: &BTreeMap<String, usize>, pod| met.get(pod).copied().unwrap_or_default() as f64 / FLOWS as f64;
    for_each_kind(|protocol, family| {
        let node_port = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
        let inside = (world.pod("client").namespace(), objects::cluster_ip(HOST, family));
        for (from, to) in [inside, (world.outside(), node_port)] {
            let met = talk::meet(from, protocol, to, FLOWS)?;
            let is_right =
                (share(&met, "web-1") - old).abs() < TOLERANCE && (share(&met, "web-2") + old - 1.0).abs() < TOLERANCE;
            ensure!(is_right, "{to}: {met:?}, where web-1 should have {old}");
        }
        Ok(())
    })
}

/// Waits until just these pods answer.
fn wait_for_pods(world: &World, pods: &[&str]) -> Result<()> {
    for_each_kind(|protocol, family| {
        wait_to_meet(world.pod("client").namespace(), protocol, objects::cluster_ip(HOST, family), pods)?;
        let node_port = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
        wait_to_meet(world.outside(), protocol, node_port, pods)
    })
}

#[test]
fn a_split_shares_out_new_flows_and_follows_its_annotation_live() -> Result<()> {
    let world = World::with_echoes(Options::TC, &[])?;
    for (part, host, pod) in PARTS {
        world.put([objects::service(part, host, &json!({}))].into_iter().chain(world.slices(part, &[pod])))?;
    }
    // Endpoints of its own count for nothing.
    world.put([split("old=90,new=10")].into_iter().chain(world.slices(NAME, &["web-3"])))?;
    wait_for_pods(&world, &["web-1", "web-2"])?;
    shares(&world, 0.9)?;
    // A name that nobody has changes nothing.
    world.put([split("old=10,newer=90")])?;
    wait_until("the unknown name being told", LIMIT, || Ok(world.node("node-a").agent().log().contains("newer")))?;
    shares(&world, 0.9)?;
    // Weight 0 drains; established connections stay.
    let mut established = Vec::new();
    for (protocol, family) in kinds() {
        let from = world.pod("client").namespace();
        let mut talk = from.enter(|| Talk::begin(protocol, objects::cluster_ip(HOST, family), LIMIT))??;
        established.push((talk.ask()?.server, talk));
    }
    world.put([split("old=0,new=100")])?;
    wait_for_pods(&world, &["web-2"])?;
    for (server, talk) in &mut established {
        let answer = talk.ask()?;
        ensure!(answer.server == *server, "{server} was left for {}", answer.server);
    }
    world.put([split("old=50,new=50")])?;
    wait_for_pods(&world, &["web-1", "web-2"])?;
    shares(&world, 0.5)?;
    // A part without endpoints gives its share to the others; with them it has it back.
    world.put(world.slices("new", &[]))?;
    wait_for_pods(&world, &["web-1"])?;
    world.put(world.slices("new", &["web-2"]))?;
    wait_for_pods(&world, &["web-1", "web-2"])?;
    world.put([objects::service(
        NAME,
        HOST,
        &json!({ "spec": { "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) } }),
    )])?;
    wait_for_pods(&world, &["web-3"])
}
