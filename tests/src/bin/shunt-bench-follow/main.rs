// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long after the change of an object clients meet the new endpoint, with agents that follow an API server; `cargo xtask bench
//! follow` builds and runs it.

#![deny(unsafe_code)]

mod client;
mod report;

use std::{
    net::SocketAddr,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;
use shunt_tests::{
    api_server::{ApiServer, world_and_server},
    bench::{Output, conclude},
    load::Protocol,
    world::{Echo, Family, Namespace, Options, World, catch_interrupts, check_interrupt, objects, wait_to_meet},
};

use crate::{
    client::{Client, Kind},
    report::{Report, Row},
};

const NAME: &str = "bench";
const HOST: u8 = 90;
/// One on the clients' node, and one elsewhere: they take turns in being the only endpoint.
const PODS: [&str; 2] = ["web-1", "web-2"];
/// A client that has not met the new endpoint by then never will.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two questions.
const STEP: Duration = Duration::from_micros(200);
/// Client ports of each kind of client: behind every way are the same servers, and what the kernel and the programs remember of
/// one way's connections is no other's business.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 5_000;
/// Between two changes: for the other node, too.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(
    name = "cargo xtask bench follow",
    about = "From the change of an object to the first answer of the new endpoint."
)]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Changes for each kind of client, half of them IPv4 and half IPv6.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..))]
    changes: u32,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    catch_interrupts()?;
    let (server, mut world) = world_and_server(Options::ALL_SOCKETS)?;
    for pod in PODS {
        let echo = Echo::start(world.pod(pod).namespace(), pod)?;
        world.pod_mut(pod).run(echo);
    }
    server.apply(objects::service(NAME, HOST, &json!({})));
    let pod = world.pod("client").namespace();
    let (outside_cgroup, process) = (pod.outside_cgroup()?, world.node("node-a").namespace());
    let clients = [
        ("TCP, a new connection: pod, packet doors", &outside_cgroup, Kind::Connections),
        ("TCP, a new connection: pod, socket door", pod, Kind::Connections),
        ("TCP, a new connection: process of the node", process, Kind::Connections),
        ("UDP, connected: pod, which does not notice", pod, Kind::Connected),
        ("UDP, not connected: pod, packet doors", &outside_cgroup, Kind::Unconnected),
        ("UDP, not connected: pod, socket door", pod, Kind::Unconnected),
        ("UDP, connected: process of the node, closed and connected anew", process, Kind::Connected),
        ("UDP, not connected: process of the node", process, Kind::Unconnected),
    ];
    let scene = Scene { server: &server, world: &world };
    let mut rows = Vec::new();
    for ((name, from, kind), first) in clients.into_iter().zip((FIRST_PORT..).step_by(PORTS.into())) {
        let range = format!("{first} {}", first + PORTS - 1);
        from.sysctl(&[("net/ipv4/ip_local_port_range", &range)])?;
        rows.push(scene.measure(name, from, kind, arguments.changes).context(name)?);
    }
    arguments.output.write(&Report { changes: arguments.changes, rows })
}

struct Scene<'a> {
    server: &'a ApiServer,
    world: &'a World,
}

impl Scene<'_> {
    fn measure(&self, name: &'static str, from: &Namespace, kind: Kind, changes: u32) -> Result<Row> {
        let mut times = Vec::new();
        let mut reconnects = 0;
        for family in Family::BOTH {
            let to = objects::cluster_ip(HOST, family);
            self.point_to(family, PODS[0])?;
            for protocol in Protocol::BOTH {
                wait_to_meet(from, protocol, to, &PODS[..1])?;
            }
            from.enter(|| -> Result<()> {
                let mut client = Client::new(kind, to)?;
                for change in 1..=(changes / 2) as usize {
                    times.push(self.follow(&mut client, (family, to), PODS[change % 2])?);
                }
                reconnects += client.reconnects;
                Ok(())
            })??;
        }
        Ok(Row::new(name, kind, times, reconnects))
    }

    /// Milliseconds from a change to the first answer by its pod.
    fn follow(&self, client: &mut Client, (family, to): (Family, SocketAddr), pod: &str) -> Result<f64> {
        check_interrupt()?;
        sleep(PAUSE);
        ensure!(client.ask()?.is_some_and(|server| server != pod), "{pod} answers already at {to}");
        let start = Instant::now();
        self.point_to(family, pod)?;
        while client.ask()?.is_none_or(|server| server != pod) {
            ensure!(start.elapsed() < LIMIT, "{pod} has not answered at {to} within {LIMIT:?}");
            sleep(STEP);
        }
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Makes a pod the only endpoint of a family.
    fn point_to(&self, family: Family, pod: &str) -> Result<()> {
        let [v4, v6] = self.world.slices(NAME, &[pod]);
        self.server.apply(if family == Family::V4 { v4 } else { v6 });
        Ok(())
    }
}
