// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a network throws at a load balancer beside its clients: scans, floods, forged segments. Connections go on.

use std::{
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        Protocol, Talk,
        forge::{self, Forged},
    },
    world::{Family, Options, Process, World, echo_port, for_each_kind, kinds, objects, wait_to_meet},
};

const NAME: &str = "shop";
const HOST: u8 = 89;
const NODE_PORT: u16 = 30_089;
const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];
const LIMIT: Duration = Duration::from_secs(5);

fn service() -> Value {
    objects::service(NAME, HOST, &json!({ "spec": { "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) } }))
}

fn inside(family: Family) -> SocketAddr {
    objects::cluster_ip(HOST, family)
}

/// The Service's port at node-a.
fn node_port(world: &World, family: Family) -> SocketAddr {
    SocketAddr::new(world.node("node-a").address(family), NODE_PORT)
}

/// A world in which these pods serve.
fn serve(options: Options, flags: &[&str], pods: &[&str]) -> Result<World> {
    let world = World::with_echoes(options, flags)?;
    world.put([service()].into_iter().chain(world.slices(NAME, pods)))?;
    for_each_kind(|protocol, family| {
        wait_to_meet(world.pod("client").namespace(), protocol, inside(family), pods)?;
        wait_to_meet(world.outside(), protocol, node_port(&world, family), pods)
    })?;
    Ok(world)
}

/// Flows of a pod and of the outside client, TCP and UDP, both families: so many of each kind.
fn flows(world: &World, count: usize) -> Result<Vec<Talk>> {
    let mut flows = Vec::new();
    for (protocol, family) in kinds() {
        for (from, to) in
            [(world.pod("client").namespace(), inside(family)), (world.outside(), node_port(world, family))]
        {
            for _ in 0..count {
                let mut talk = from.enter(|| Talk::begin(protocol, to, LIMIT))??;
                talk.ask()?;
                flows.push(talk);
            }
        }
    }
    Ok(flows)
}

/// nmap finds the open port and harms nothing: to its scans a Service looks like a host.
#[test]
fn scans_find_the_open_port_and_harm_nothing() -> Result<()> {
    const SCANS: [&str; 5] = ["-sS", "-sT", "-sU", "-sA", "-sX"];
    let world = serve(Options::TC, &[], &ALL)?;
    let mut flows = flows(&world, 2)?;
    for family in Family::BOTH {
        let places = [(world.pod("client").namespace(), inside(family)), (world.outside(), node_port(&world, family))];
        for (from, to) in places {
            let (address, port) = (to.ip().to_string(), to.port());
            let ports = format!("{}-{}", port - 3, port + 3);
            for scan in SCANS {
                let mut arguments = vec![scan, "-n", "-Pn", "-T5", "--max-retries", "2", "-p", &ports, &address];
                if family == Family::V6 {
                    arguments.push("-6");
                }
                let report = from.run("nmap", &arguments)?;
                let open: Vec<&str> = report.lines().filter(|line| line.contains(" open ")).collect();
                let protocol = if scan == "-sU" { "udp" } else { "tcp" };
                let is_right = match scan {
                    "-sA" | "-sX" => open.is_empty(),
                    _ => open.len() == 1 && open[0].starts_with(&format!("{port}/{protocol}")),
                };
                ensure!(is_right, "{scan}:\n{report}");
            }
        }
    }
    flows.iter_mut().try_for_each(|talk| talk.ask().map(drop))?;
    Ok(())
}

/// Half-open connections from addresses that nobody has, as many as one machine can send: who has a connection keeps it, and
/// new clients are served afterwards.
fn flood(options: Options) -> Result<()> {
    const FLOWS_OF_EACH_KIND: usize = 50;
    /// Less than hping3 sends in that time.
    const FLAGS: [&str; 2] = ["--max-flows", "32768"];
    const TIME: Duration = Duration::from_secs(4);
    let world = serve(options, &FLAGS, &ALL)?;
    let mut flows = flows(&world, FLOWS_OF_EACH_KIND)?;
    let to = node_port(&world, Family::V4);
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let mut hping = world.outside().command("hping3");
    hping.args(["-q", "-S", "--flood", "--rand-source", "-p", &port, &address]);
    let sent = || -> Result<u64> {
        let links: Value = serde_json::from_str(&world.outside().run("ip", &["-s", "-j", "link", "show", "eth0"])?)?;
        links[0]["stats64"]["tx"]["packets"].as_u64().context("no count of packets")
    };
    let before = sent()?;
    let hping = Process::start(hping, &world.site().directory().join("hping3.log"))?;
    let start = Instant::now();
    // One half of the connections is in use meanwhile, the other idle.
    while start.elapsed() < TIME {
        for talk in flows.iter_mut().step_by(2) {
            // That it fails shows below, too.
            let _ = talk.ask();
        }
    }
    drop(hping);
    let sent = sent()? - before;
    sleep(Duration::from_millis(200));
    let outcomes: Vec<bool> = flows.iter_mut().map(|talk| talk.ask().is_err()).collect();
    let [used, idle] = [0, 1].map(|first| outcomes.iter().skip(first).step_by(2).filter(|is_dead| **is_dead).count());
    let dead = used + idle;
    println!("{sent} packets of the flood: of {} connections {used} in use and {idle} idle ones died", flows.len());
    ensure!(dead * 100 <= flows.len(), "{dead} of {} connections did not survive", flows.len());
    for_each_kind(|protocol, family| wait_to_meet(world.outside(), protocol, node_port(&world, family), &ALL))
}

#[test]
fn connections_survive_a_flood_of_half_open_ones_by_tc() -> Result<()> {
    flood(Options::TC)
}

#[test]
fn connections_survive_a_flood_of_half_open_ones_with_xdp() -> Result<()> {
    flood(Options::XDP)
}

/// Thread kubernetes 74839: segments with wrong sequence numbers, of either side, end no connection; and one that has seen
/// them is not taken for one that is over, however long it is idle.
fn forged_segments(options: Options) -> Result<()> {
    const CLOSING: Duration = Duration::from_secs(1);
    let world = serve(options, &["--tcp-timeout-closing", "1s"], &["web-1"])?;
    let mut talks = Vec::new();
    for family in Family::BOTH {
        let node_b = SocketAddr::new(world.node("node-b").address(family), NODE_PORT);
        let places = [
            (world.pod("client").namespace(), inside(family)),
            (world.outside(), node_port(&world, family)),
            (world.outside(), node_b),
        ];
        for (from, to) in places {
            let mut talk = from.enter(|| Talk::begin(Protocol::Tcp, to, LIMIT))??;
            let answer = talk.ask()?;
            let server = SocketAddr::new(world.pod("web-1").address(family), echo_port());
            for (number, kind) in (1..).zip(Forged::ALL) {
                // Far from anything that either side has chosen, in all likelihood.
                let sequence = 0x1234_5678_u32.wrapping_mul(number);
                from.enter(|| forge::send(kind, answer.local, to, sequence))??;
                // By the FINs of both sides a connection is over.
                if kind != Forged::FinAck {
                    world.pod("web-1").namespace().enter(|| forge::send(kind, server, answer.client, sequence))??;
                }
                talk.ask().with_context(|| format!("{to} after {kind:?}"))?;
            }
            // A reset last.
            from.enter(|| forge::send(Forged::Rst, answer.local, to, 0x0bad_5eed))??;
            talks.push((to, talk));
        }
    }
    // New connections go elsewhere.
    world.put(world.slices(NAME, &["web-2"]))?;
    for_each_kind(|protocol, family| wait_to_meet(world.outside(), protocol, node_port(&world, family), &["web-2"]))?;
    sleep(4 * CLOSING);
    for (to, talk) in &mut talks {
        let answer = talk.ask().with_context(|| format!("{to}, idle after a forged reset"))?;
        ensure!(answer.server == "web-1", "{to}: {answer:?}");
    }
    Ok(())
}

#[test]
fn forged_segments_end_no_connection_by_tc() -> Result<()> {
    forged_segments(Options::TC)
}

#[test]
fn forged_segments_end_no_connection_with_xdp() -> Result<()> {
    forged_segments(Options::XDP)
}
