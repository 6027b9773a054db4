// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent comes and goes, and what it remembers of sockets does: connections must not notice.

use std::{collections::BTreeSet, fs, net::SocketAddr, os::unix::fs::MetadataExt as _, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        self, Load, Protocol, Source, Target,
        talk::{self, Talk},
    },
    world::{Family, Options, World, dns_port, objects, sample, wait_until},
};

use crate::service::{ALL, NAME, inside, is_closed, localhost, node, world};

const LIMIT: Duration = Duration::from_secs(5);

/// Programs are replaced under their links, and connected sockets work on.
#[test]
fn agents_killed_and_restarted_under_load_lose_no_connection() -> Result<()> {
    let mut world = world(Options::ALL_SOCKETS, &[])?;
    let load = Load::start(&sources(&world), 2, Duration::from_millis(1))?;
    let pins = pins(&world)?;
    let mut talks = node(&world).enter(|| {
        Protocol::BOTH.map(|protocol| Talk::begin(protocol, inside(Family::V4), LIMIT).map(|talk| (protocol, talk)))
    })?;
    for _ in 0..3 {
        for node in world.nodes_mut() {
            node.agent_mut().kill()?;
        }
        sleep(Duration::from_millis(300));
        world.start_agents()?;
    }
    for (protocol, talk) in talks.iter_mut().flatten() {
        talk.ask().with_context(|| format!("{protocol:?}"))?;
    }
    let [tally] = <[_; 1]>::try_from(load.finish()).expect("one phase");
    ensure!(tally.failed() == 0 && tally.requests() > 100, "{} requests, {:?}", tally.requests(), tally.errors);
    ensure!(pins.len() == 9 && self::pins(&world)? == pins, "not the same links: {pins:?}, {:?}", self::pins(&world)?);
    Ok(())
}

/// HTTP and DNS, the latter with and without a connection, by ClusterIPs and from the node itself at localhost.
fn sources(world: &World) -> [Source<'_>; 2] {
    let web_and_dns = |web, dns| [Target::Http(web), Target::Dns(dns, sample::DNS_BACKEND.to_owned())];
    let inside = Family::BOTH.map(|family| web_and_dns(sample::web(family), sample::dns(family))).concat();
    let local = Family::BOTH.map(|family| localhost(family).ip());
    let local = local.map(|ip| web_and_dns(sample::web_at(ip), sample::dns_at(ip))).concat();
    [
        Source { namespace: node(world), targets: [inside.clone(), local].concat() },
        Source { namespace: world.pod("client").namespace(), targets: inside },
    ]
}

/// The pins of links, by the inodes that they stand in: a link that is replaced gets another.
fn pins(world: &World) -> Result<BTreeSet<(String, u64)>> {
    let layouts = fs::read_dir(world.node("node-a").bpffs())?.flatten();
    let entries = layouts.flat_map(|layout| fs::read_dir(layout.path().join("links")).into_iter().flatten().flatten());
    let pin = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.ino()));
    Ok(entries.filter_map(pin).filter(|(name, _)| name.starts_with("socket-")).collect())
}

/// Endpoints change under load: a request that fails got a backend that had gone.
#[test]
fn endpoints_change_under_load_and_no_request_fails() -> Result<()> {
    let mut world = world(Options::ALL_SOCKETS, &[])?;
    world.add_dns("web-2")?;
    let load = Load::start(&sources(&world), 2, Duration::from_millis(1))?;
    let stays = json!({});
    let drains = json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
    set_dns(&world, &[("dns-1", &stays), ("web-2", &stays)])?;
    world.route_web_to(&["web-1"])?;
    set_dns(&world, &[("dns-1", &drains), ("web-2", &stays)])?;
    world.route_web_to(&["web-2", "web-3"])?;
    set_dns(&world, &[("web-2", &stays)])?;
    world.route_web_to(&["web-3"])?;
    set_dns(&world, &[("web-2", &drains), ("dns-1", &stays)])?;
    world.route_web_to(&ALL)?;
    let [tally] = <[_; 1]>::try_from(load.finish()).expect("one phase");
    ensure!(tally.failed() == 0 && tally.requests() > 100, "{} requests, {:?}", tally.requests(), tally.errors);
    Ok(())
}

/// Makes these pods the endpoints of the sample's Service `dns`, each with a patch.
fn set_dns(world: &World, pods: &[(&str, &Value)]) -> Result<()> {
    let pods: Vec<_> = pods.iter().map(|(pod, patch)| (*pod, (*patch).clone())).collect();
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
        .map(|(name, protocol)| json!({ "name": name, "protocol": protocol, "port": dns_port() }));
    let mut service = objects::service("dns", 0, &json!({ "spec": { "type": "NodePort" } }));
    let addresses = Family::BOTH.map(|family| sample::dns(family).ip());
    service["spec"]["clusterIP"] = json!(addresses[0]);
    service["spec"]["clusterIPs"] = json!(addresses);
    service["spec"]["ports"] = [("dns", "UDP"), ("dns-tcp", "TCP")]
        .map(|(name, protocol)| {
            let port = sample::dns(Family::V4).port();
            json!({ "name": name, "protocol": protocol, "port": port, "nodePort": sample::DNS_NODE_PORT })
        })
        .into_iter()
        .collect();
    let mut documents = vec![service];
    for mut slice in world.patched_slices("dns", &pods) {
        slice["ports"] = json!(ports);
        documents.push(slice);
    }
    let documents: Vec<String> = documents.iter().map(|object| format!("{object:#}\n")).collect();
    world.apply("dns.yaml", &documents.join("---\n"))
}

/// A backend that went while no agent ran takes its sockets along when one is back.
#[test]
fn what_went_during_an_absence_is_closed_afterwards() -> Result<()> {
    let mut world = world(Options::HOST_SOCKETS, &[])?;
    crate::service::serve(&world, &json!({}), &["web-1"])?;
    let mut talk = node(&world).enter(|| Talk::begin(Protocol::Udp, inside(Family::V4), LIMIT))??;
    talk.ask()?;
    for node in world.nodes_mut() {
        node.agent_mut().kill()?;
    }
    world.put(world.slices(NAME, &["web-2"]))?;
    ensure!(talk.ask()?.server == "web-1", "nobody has noticed");
    world.start_agents()?;
    let mut error = None;
    wait_until("the socket being closed", LIMIT, || {
        error = talk.ask().err();
        Ok(error.is_some())
    })?;
    let error = error.context("no error")?;
    ensure!(is_closed(&error), "{error}");
    Ok(())
}

/// Entries that vanish cost what is shown, not the connection.
#[test]
fn vanishing_entries_are_harmless() -> Result<()> {
    const SOCKETS: usize = 400;
    let world = world(Options::HOST_SOCKETS, &["--max-sockets", "32"])?;
    node(&world).enter(|| -> Result<()> {
        let talks: Result<Vec<_>, _> =
            (0..SOCKETS).map(|_| Talk::begin(Protocol::Tcp, inside(Family::V4), LIMIT)).collect();
        for mut talk in talks? {
            talk.ask()?;
        }
        let mut talk = Talk::begin(Protocol::Udp, inside(Family::V4), LIMIT)?;
        for _ in 0..SOCKETS {
            talk::ask(Protocol::Udp, localhost(Family::V4), LIMIT)?;
        }
        talk.ask()?;
        Ok(())
    })??;
    let sockets: Vec<Value> = serde_json::from_str(&world.node("node-a").lb_agent("get sockets -o json")?)?;
    ensure!(sockets.len() <= 32 + 256, "{} entries", sockets.len());
    Ok(())
}

/// `get` and `trace` know of this door, and `cleanup` closes it.
#[test]
fn get_and_trace_answer_and_cleanup_removes_the_links() -> Result<()> {
    let mut world = world(Options::HOST_SOCKETS, &[])?;
    let talk = node(&world).enter(|| Talk::begin(Protocol::Udp, inside(Family::V4), LIMIT))??;
    let agent = |words: &str| world.node("node-a").lb_agent(words);
    let sockets: Vec<Value> = serde_json::from_str(&agent("get sockets -o json")?)?;
    let frontend = inside(Family::V4).to_string();
    let connected = |row: &&Value| row["frontend"] == frontend.as_str() && row["connected"] == true;
    let row = sockets.iter().find(connected).with_context(|| format!("{sockets:?}"))?;
    ensure!(row["service"]["name"] == NAME && row["stale"] == false, "{row}");
    drop(talk);

    let before = agent("get sockets -o json")?;
    for (to, proto) in [(inside(Family::V4), "tcp"), (localhost(Family::V6), "udp")] {
        let answer: Value =
            serde_json::from_str(&agent(&format!("trace --socket --to {to} --proto {proto} -o json"))?)?;
        ensure!(answer["verdict"] == "translated" && answer["decision"] == "new", "{answer}");
        let service = answer["service"].as_str().unwrap_or_default();
        ensure!(service.starts_with("default/sock:echo"), "{answer}");
        ensure!(
            answer["backend"]["address"].as_str().is_some_and(|text| text.parse::<SocketAddr>().is_ok()),
            "{answer}"
        );
    }
    let undefined = SocketAddr::new(inside(Family::V4).ip(), 9999);
    let answer: Value = serde_json::from_str(&agent(&format!("trace --socket --to {undefined} -o json"))?)?;
    ensure!(answer["verdict"] == "rejected" && answer["reason"] == "undefined-port", "{answer}");
    let answer = agent("trace --socket --to 172.20.0.100:80")?;
    ensure!(answer.contains("left alone"), "{answer}");
    ensure!(agent("get sockets -o json")? == before, "a question leaves no mark");

    ensure!(pins(&world)?.len() == 9, "{:?}", pins(&world)?);
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
    }
    let plan = world.node("node-a").lb_agent("cleanup --dry-run")?;
    ensure!(plan.contains("socket-connect4 (on a cgroup)"), "{plan}");
    let target = [Target::Http(sample::web(Family::V4))];
    ensure!(load::send(node(&world), &target, 4, &|| {})?.failed() == 0, "nothing is removed yet");
    world.node("node-a").lb_agent("cleanup")?;
    ensure!(load::send(node(&world), &target, 1, &|| {})?.failed() == 1, "still served after cleanup");
    Ok(())
}

/// The door is closed by a restart with `--socket-lb off`, and the packet doors go on.
#[test]
fn off_closes_the_door() -> Result<()> {
    let mut world = world(Options::HOST_SOCKETS, &[])?;
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
        node.set_sockets(shunt_tests::world::Sockets::Off);
    }
    world.start_agents()?;
    ensure!(pins(&world)?.is_empty(), "{:?}", pins(&world)?);
    world.serves()
}
