// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a network throws at a load balancer beside its clients: scans, floods, forged segments. Connections go on.

use std::{
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::flow::STREAM_SECS;
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        Protocol, Talk,
        forge::{self, Forged},
        talk::Answer,
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

/// A flow, and who answered whom when it began.
struct Flow {
    protocol: Protocol,
    talk: Talk,
    first: Answer,
}

impl Flow {
    /// Whether the same server answers, and sees the same client.
    fn is_the_same(&mut self) -> bool {
        self.talk.ask().is_ok_and(|answer| answer == self.first)
    }
}

/// Flows of a pod and of the outside client, TCP and UDP, both families: so many of each kind. They have grown up: each client
/// has spoken again after an answer.
fn flows(world: &World, count: usize) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for (protocol, family) in kinds() {
        for (from, to) in
            [(world.pod("client").namespace(), inside(family)), (world.outside(), node_port(world, family))]
        {
            for _ in 0..count {
                let mut talk = from.enter(|| Talk::begin(protocol, to, LIMIT))??;
                let first = talk.ask()?;
                ensure!(talk.ask()? == first);
                flows.push(Flow { protocol, talk, first });
            }
        }
    }
    // UDP is a stream once it has gone both ways for a while.
    sleep(Duration::from_secs(STREAM_SECS.into()));
    for flow in &mut flows {
        ensure!(flow.is_the_same(), "a flow was lost before all began");
    }
    Ok(flows)
}

/// nmap finds the open port and harms nothing: to its scans a Service looks like a host.
fn scans(options: Options) -> Result<()> {
    const SCANS: [&str; 5] = ["-sS", "-sT", "-sU", "-sA", "-sX"];
    let world = serve(options, &[], &ALL)?;
    let captures = world.capture(&[])?;
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
    ensure!(flows.iter_mut().all(Flow::is_the_same), "a scan has ended a flow");
    captures.finish().map(drop)
}

#[test]
fn scans_find_the_open_port_and_harm_nothing_by_tc() -> Result<()> {
    scans(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn scans_find_the_open_port_and_harm_nothing_with_xdp() -> Result<()> {
    scans(Options::XDP)
}

/// Sends first packets from addresses that nobody has to node-a's port, as many as one machine can, while `body` runs; returns
/// how many.
fn flood_while(world: &World, protocol: Protocol, body: impl FnOnce()) -> Result<u64> {
    let to = node_port(world, Family::V4);
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let kind = if protocol == Protocol::Tcp { "--syn" } else { "--udp" };
    let mut hping = world.outside().command("hping3");
    hping.args(["-q", kind, "--flood", "--rand-source", "-p", &port, &address]);
    let sent = || -> Result<u64> {
        let links: Value = serde_json::from_str(&world.outside().run("ip", &["-s", "-j", "link", "show", "eth0"])?)?;
        links[0]["stats64"]["tx"]["packets"].as_u64().context("no count of packets")
    };
    let before = sent()?;
    let hping = Process::start(hping, &world.site().directory().join("hping3.log"))?;
    body();
    drop(hping);
    Ok(sent()? - before)
}

/// Threads cilium 24177 and 20068: floods of first packets, many more than the flow table holds: who has a flow keeps
/// it, and new clients are served afterwards. A flow that was forgotten would get another server most often, and with it
/// another address: only one served when they began, now three do.
fn flood(options: Options) -> Result<()> {
    const FLOWS_OF_EACH_KIND: usize = 25;
    const ROOM: u64 = 4096;
    const TIME: Duration = Duration::from_secs(2);
    const CAPTURED: u32 = 20_000;
    let world = serve(options, &["--max-flows", &ROOM.to_string()], &["web-1"])?;
    let mut flows = flows(&world, FLOWS_OF_EACH_KIND)?;
    world.put(world.slices(NAME, &ALL))?;
    let all_serve = || {
        for_each_kind(|protocol, family| {
            wait_to_meet(world.pod("client").namespace(), protocol, inside(family), &ALL)?;
            wait_to_meet(world.outside(), protocol, node_port(&world, family), &ALL)
        })
    };
    all_serve()?;
    let captures = world.capture_first(CAPTURED)?;
    for protocol in Protocol::BOTH {
        let sent = flood_while(&world, protocol, || {
            let start = Instant::now();
            // One half of the connections is in use meanwhile, the other idle.
            while start.elapsed() < TIME {
                for flow in flows.iter_mut().step_by(2) {
                    // That it fails shows below, too.
                    let _ = flow.talk.ask();
                }
            }
        })?;
        ensure!(sent > 4 * ROOM, "{sent} packets are no flood");
        sleep(Duration::from_millis(200));
        let are_lost: Vec<bool> = flows.iter_mut().map(|flow| !flow.is_the_same()).collect();
        let [used, idle] =
            [0, 1].map(|first| are_lost.iter().skip(first).step_by(2).filter(|is_lost| **is_lost).count());
        println!("{sent} {protocol:?} packets: of {} flows {used} in use and {idle} idle ones were lost", flows.len());
        ensure!(
            used + idle == 0,
            "{protocol:?}: {used} flows in use and {idle} idle ones of {} were lost",
            flows.len()
        );
    }
    if !options.offloads {
        captures.finish()?;
    }
    all_serve()
}

#[test]
fn pitfall_5_connections_survive_a_flood_of_first_packets_by_tc() -> Result<()> {
    flood(Options::TC)
}

#[test]
fn pitfall_5_connections_survive_a_flood_of_first_packets_with_xdp() -> Result<()> {
    flood(Options::XDP)
}

/// Rule 63: a flow that is idle for longer than it may be is decided anew, one that is used is not. Only one server was there
/// when they began, now there are three: datagrams go to any of them, and a connection to another one is none.
#[test]
fn rule_63_idle_flows_are_decided_anew_and_those_in_use_are_not() -> Result<()> {
    const FLAGS: [&str; 4] = ["--udp-timeout-replied", "4s", "--tcp-timeout-established", "4s"];
    const TIME: Duration = Duration::from_millis(6500);
    let world = serve(Options::TC, &FLAGS, &["web-1"])?;
    let (mut used, mut idle) = (flows(&world, 1)?, flows(&world, 5)?);
    world.put(world.slices(NAME, &ALL))?;
    for_each_kind(|protocol, family| wait_to_meet(world.outside(), protocol, node_port(&world, family), &ALL))?;
    let start = Instant::now();
    while start.elapsed() < TIME {
        ensure!(used.iter_mut().all(Flow::is_the_same), "a flow in use was forgotten");
        sleep(Duration::from_millis(200));
    }
    for protocol in Protocol::BOTH {
        let of_protocol = idle.iter_mut().filter(|flow| flow.protocol == protocol);
        let answers: Vec<bool> = of_protocol.map(|flow| flow.is_the_same()).collect();
        let forgotten = answers.iter().filter(|is_the_same| !**is_the_same).count();
        println!("{protocol:?}: {forgotten} of {} idle flows met another server", answers.len());
        ensure!(forgotten > 0, "{protocol:?}: no flow was forgotten");
    }
    ensure!(used.iter_mut().all(Flow::is_the_same), "a flow in use was forgotten");
    Ok(())
}

/// Thread kubernetes 74839: segments with wrong sequence numbers, of either side, end no connection; and one that has seen
/// them is not taken for one that is over, however long it is idle.
fn forged_segments(options: Options) -> Result<()> {
    const CLOSING: Duration = Duration::from_secs(1);
    let world = serve(options, &["--tcp-timeout-closing", "1s"], &["web-1"])?;
    let mut talks = Vec::new();
    for family in Family::BOTH {
        let node_b = SocketAddr::new(world.node("node-b").address(family), NODE_PORT);
        wait_to_meet(world.outside(), Protocol::Tcp, node_b, &["web-1"])?;
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
