// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent get` and `trace` on a working node: what they say is what the packets do.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shunt_tests::{
    load::{self, Target},
    world::{Family, Options, World, sample},
};

fn get(world: &World, what: &str) -> Result<Vec<Value>> {
    let text = world.node("node-a").lb_agent(&format!("get {what} -o json"))?;
    serde_json::from_str(&text).with_context(|| format!("get {what} prints {text}"))
}

fn trace(world: &World, words: &str) -> Result<Value> {
    let text = world.node("node-a").lb_agent(&format!("trace {words} -o json"))?;
    serde_json::from_str(&text).with_context(|| format!("trace {words} prints {text}"))
}

#[test]
fn get_shows_the_sample() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    let targets = Family::BOTH.map(|family| Target::Http(sample::web(family)));
    ensure!(load::send(world.pod("client").namespace(), &targets, 20, &|| {})?.failed() == 0);

    let services = get(&world, "services")?;
    let web = services.iter().filter(|service| service["name"] == "web" && service["namespace"] == "default");
    let web: Vec<&Value> = web.collect();
    ensure!(web.len() == Family::BOTH.len() && web.iter().all(|service| service["backends"] == 3), "{web:?}");

    let backends = get(&world, "backends")?;
    for family in Family::BOTH {
        for pod in sample::WEB_BACKENDS {
            let address = world.pod(pod).address(family).to_string();
            ensure!(backends.iter().any(|backend| backend.to_string().contains(&address)), "{address}: {backends:?}");
        }
    }
    for what in ["services", "backends", "flows", "maglev", "maps"] {
        ensure!(!get(&world, what)?.is_empty(), "{what}");
        for form in ["table", "wide"] {
            let text = world.node("node-a").lb_agent(&format!("get {what} -o {form}"))?;
            ensure!(text.lines().count() > 1, "{what} as {form}: {text}");
        }
    }
    Ok(())
}

/// What trace foretells for a client's port is what a connection from that port meets.
#[test]
fn trace_foretells_the_backend_and_leaves_no_flow() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    let client = world.pod("client");
    // Other ports for the other family: a port whose connection has just been closed is taken for both.
    for (family, first_port) in Family::BOTH.into_iter().zip([40_000, 41_000]) {
        let service = sample::web(family);
        let mut met = BTreeSet::new();
        for port in first_port..first_port + 20 {
            let from = std::net::SocketAddr::new(client.address(family), port);
            let told = trace(&world, &format!("--from {from} --to {service} --in-interface veth-client"))?;
            let told = told["backend"]["address"].as_str().with_context(|| format!("no backend in {told}"))?.to_owned();
            let answer = client.namespace().run(
                "curl",
                &["--silent", "--max-time", "5", "--local-port", &port.to_string(), &format!("http://{service}/")],
            )?;
            let backend = answer.split_whitespace().next().with_context(|| format!("{service} answers {answer:?}"))?;
            let address = world.pod(backend).address(family).to_string();
            ensure!(told.contains(&address), "from {from}: {told} was foretold, {backend} ({address}) answered");
            met.insert(backend.to_owned());
        }
        ensure!(met.len() > 1, "one backend for all ports: {met:?}");
    }
    Ok(())
}

#[test]
fn trace_has_no_side_effect() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    let before = (get(&world, "flows")?, get(&world, "services")?, get(&world, "backends")?);
    for (from, to, interface) in [
        ("10.244.1.90:4000", "10.96.0.80:80", "veth-client"),
        ("[fd00:244:1::90]:4000", "[fd00:96::80]:80", "veth-client"),
        ("172.20.0.100:4000", "172.20.0.11:30080", "eth0"),
        ("[fd00:20::100]:4000", "[fd00:20::11]:30080", "eth0"),
    ] {
        for _ in 0..3 {
            let told = trace(&world, &format!("--from {from} --to {to} --in-interface {interface}"))?;
            ensure!(told["service"] == "default/web:http", "{told}");
        }
    }
    let nothing = trace(&world, "--from 10.244.1.90:4000 --to 192.0.2.1:80 --in-interface veth-client")?;
    ensure!(nothing["backend"].is_null(), "{nothing}");
    let after = (get(&world, "flows")?, get(&world, "services")?, get(&world, "backends")?);
    ensure!(before == after, "before {before:?}, after {after:?}");
    Ok(())
}
