// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many clients at once, from outside to three backends elsewhere, with maps and source ports as they are by default: UDP exchanges at
//! a steady rate, each of another flow, then TCP connections that all stay open; `cargo xtask bench crowd` builds and runs it. It
//! fails where one is lost.

#![deny(unsafe_code)]

mod client;
mod report;
mod server;
mod worker;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::json;
use shunt_tests::{
    bench::{Output, conclude},
    load::Protocol,
    world::{Family, LinkKind, Options, World, catch_interrupts, objects, wait_to_meet},
};

use crate::{
    client::Sources,
    report::{Report, Row},
    server::Server,
    worker::{Role, Worker},
};

const NAME: &str = "crowd";
const HOST: u8 = 91;
const NODE_PORT: u16 = 30_091;
const PODS: [(&str, u16); 3] = [("crowd-1", 221), ("crowd-2", 222), ("crowd-3", 223)];
/// Addresses of the clients, of each family, beside the outside client's own; a port and an address are one client.
const FIRST_CLIENT: u16 = 201;
const CLIENTS: u16 = 4;
/// Processes that serve connections, in each pod.
const WORKERS: usize = 3;

#[derive(Parser)]
#[command(name = "cargo xtask bench crowd", about = "Exchanges and connections of many clients, none of them lost.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// UDP exchanges in a second, half of each family.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    exchanges: u32,
    /// Seconds for which they go on.
    #[arg(long, default_value_t = 300)]
    seconds: u32,
    /// TCP connections that are open at once, half of each family: there are 24,296 source ports for each backend of a family.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=140_000))]
    connections: u32,
    /// Be one of the processes that hold connections.
    #[arg(long, hide = true)]
    worker: Option<Role>,
    /// From where and to whom such a process connects, and how many clients come before its own.
    #[arg(long, hide = true)]
    from: Vec<IpAddr>,
    #[arg(long, hide = true)]
    to: Vec<SocketAddr>,
    #[arg(long, hide = true, default_value_t = 0)]
    first: usize,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    match arguments.worker {
        Some(Role::Serve) => return worker::serve(),
        Some(Role::Connect) => {
            let sources = Sources::new(arguments.from.clone(), arguments.first);
            return worker::connect(&sources, &arguments.to, arguments.connections);
        }
        None => catch_interrupts()?,
    }
    let mut rows = Vec::new();
    for (name, options) in [("TC", Options::TC), ("XDP", Options::XDP)] {
        let Scene { world, mut workers, _servers } = serve(options)?;
        let lines = (FIRST_CLIENT..FIRST_CLIENT + CLIENTS)
            .map(|host| format!("addr add 172.20.0.{host}/24 dev eth0\naddr add fd00:20::{host}/64 dev eth0 nodad\n"));
        world.outside().ip(&lines.collect::<String>())?;
        let plans = Family::BOTH.map(|family| {
            let clients = (FIRST_CLIENT..FIRST_CLIENT + CLIENTS)
                .map(|host| family.pick(&format!("172.20.0.{host}"), &format!("fd00:20::{host}")));
            (Sources::new(clients.collect(), 0), node_port(&world, family))
        });
        let duration = Duration::from_secs(arguments.seconds.into());
        let (done, took) = client::exchange(world.outside(), &plans, arguments.exchanges, duration)?;
        rows.push(Row::exchanges(name, done, took));
        let connected = client::connect(world.outside(), arguments.connections, &plans, &mut workers)?;
        rows.push(Row::connections(name, connected));
    }
    let report = Report { rows };
    arguments.output.write(&report)?;
    ensure!(report.is_met(), "some clients had no answer");
    Ok(())
}

fn node_port(world: &World, family: Family) -> SocketAddr {
    SocketAddr::new(world.node("node-a").address(family), NODE_PORT)
}

/// A world in which three pods of `node-b` serve at a NodePort, which clients from outside ask at `node-a`.
struct Scene {
    workers: Vec<Worker>,
    _servers: Vec<Server>,
    world: World,
}

fn serve(options: Options) -> Result<Scene> {
    let mut world = World::with_agents(options)?;
    let (mut workers, mut servers) = (Vec::new(), Vec::new());
    for (pod, host) in PODS {
        world.add_pod(pod, "node-b", host, LinkKind::Routed)?;
        let namespace = world.pod(pod).namespace();
        servers.push(Server::start(namespace, pod)?);
        for _ in 0..WORKERS {
            let mut worker = Worker::start(namespace, Role::Serve, &[])?;
            worker.answer()?;
            workers.push(worker);
        }
    }
    let ports = objects::ports(Some(NODE_PORT));
    world.put([objects::service(NAME, HOST, &json!({ "spec": { "type": "NodePort", "ports": ports } }))])?;
    let pods = PODS.map(|(pod, _)| pod);
    world.put(world.slices(NAME, &pods))?;
    for family in Family::BOTH {
        wait_to_meet(world.outside(), Protocol::Udp, node_port(&world, family), &pods)?;
    }
    Ok(Scene { workers, _servers: servers, world })
}
