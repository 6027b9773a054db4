// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real agent on a real kernel, fed by an API server that comes and goes: traffic does not notice.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    api_server::{ApiServer, Resource, world_and_server},
    load::{self, Target},
    world::{Family, Options, World, http_port, sample, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The sample's slices with these pods alone.
fn set_endpoints(server: &ApiServer, world: &World, pods: &[&str]) {
    for (family, suffix, address_type) in [(Family::V4, "ipv4", "IPv4"), (Family::V6, "ipv6", "IPv6")] {
        let endpoint = |name: &&str| json!({"addresses": [world.pod(name).address(family)], "nodeName": world.pod(name).node_name()});
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        server.apply(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": format!("web-{suffix}"), "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": address_type,
            "ports": [{"name": "http", "port": http_port(), "protocol": "TCP"}],
            "endpoints": endpoints,
        }));
    }
}

/// Waits until just this pod answers.
fn wait_for_pod(world: &World, pod: &str) -> Result<()> {
    for family in Family::BOTH {
        let target = [Target::Http(sample::web(family))];
        wait_until(&format!("only {pod} answering"), PATIENCE, || {
            let tally = load::send(world.pod("client").namespace(), &target, 16, &|| {})?;
            Ok(tally.backends.keys().eq([pod]))
        })?;
    }
    Ok(())
}

#[test]
fn rules_7_8_traffic_does_not_notice_an_api_server_that_is_away() -> Result<()> {
    let (server, mut world) = world_and_server(Options::TC)?;
    let load = world.load_web()?;
    server.go_away()?;
    sleep(Duration::from_secs(2));
    // An agent that starts meanwhile adopts what is there, and waits.
    world.nodes_mut().try_for_each(|node| node.agent_mut().kill())?;
    for node in world.nodes_mut() {
        node.start_agent(Options::TC.xdp)?;
    }
    sleep(Duration::from_secs(2));
    server.forget_history();
    server.come_back()?;
    world.nodes().try_for_each(|node| node.agent().wait_ready())?;
    sleep(Duration::from_secs(1));
    let [tally] = <[_; 1]>::try_from(load.finish()).expect("one phase");
    ensure!(tally.failed() == 0 && tally.requests() > 100, "{} requests, {:?}", tally.requests(), tally.errors);

    server.go_away()?;
    set_endpoints(&server, &world, &["web-2"]);
    server.come_back()?;
    wait_for_pod(&world, "web-2")
}

#[test]
fn rules_8_79_a_service_deleted_while_the_agent_is_cut_off_goes_when_it_is_back() -> Result<()> {
    let (server, world) = world_and_server(Options::TC)?;
    for node in ["node-a", "node-b"] {
        let is_start = |event: &Value| event["reason"] == "Starting" && event["regarding"]["name"] == node;
        server.wait_for_event("the agent's start being told", is_start)?;
    }
    wait_for_any(&world)?;
    let logged: Vec<usize> = world.nodes().map(|node| node.agent().log().len()).collect();
    server.go_away()?;
    server.delete(Resource::Services, "web");
    server.forget_history();
    wait_for_any(&world)?;
    for (node, before) in world.nodes().zip(&logged) {
        let complains = || Ok(node.agent().log()[*before..].contains("Kubernetes API server http://"));
        wait_until("the server being missed", PATIENCE, complains)?;
    }
    server.come_back()?;
    let target = [Target::Http(sample::web(Family::V4))];
    wait_until("the Service going", PATIENCE, || {
        Ok(load::send(world.pod("client").namespace(), &target, 1, &|| {})?.failed() == 1)
    })?;
    // The agent's own words, and none of a library's for each attempt.
    for (node, before) in world.nodes().zip(logged) {
        let log = &node.agent().log()[before..];
        let mut complaints = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        ensure!(complaints.all(|line| line.contains("Kubernetes API server http://")), "{log}");
    }
    Ok(())
}

fn wait_for_any(world: &World) -> Result<()> {
    let target = [Target::Http(sample::web(Family::V4))];
    let tally = load::send(world.pod("client").namespace(), &target, 10, &|| {})?;
    ensure!(tally.failed() == 0, "{:?}", tally.errors);
    Ok(())
}
