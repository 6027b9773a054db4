// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bulk traffic with segmentation and checksum offload on: it arrives whole, and about as fast as without Shunt.

use std::{net::SocketAddr, panic::resume_unwind, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        http,
        iperf::{self, Log},
    },
    world::{Family, Options, World, objects, sample, wait_until},
};

const LIMIT: Duration = Duration::from_secs(20);
const IPERF_PORT: u16 = 5201;
const NAME: &str = "iperf";
const HOST: u8 = 52;
const NODE_PORT: u16 = 30_052;
const SECONDS: [&str; 2] = ["-t", "2"];
/// Below this share of the direct speed something is broken, not slow: lost offloads cost far more.
const LEAST_SHARE: f64 = 0.4;

/// What arrived, over all of it.
fn bits_per_second(report: &Value) -> Result<f64> {
    let end = &report["end"];
    end["sum_received"]["bits_per_second"].as_f64().with_context(|| format!("no bit rate in {end}"))
}

/// A world with an iperf3 server in `web-2`, and its Service.
fn world_with_iperf(options: Options) -> Result<(World, Log)> {
    let mut world = World::with_agents(options)?;
    let log = world.site().directory().join("iperf3.log");
    let (server, log) = iperf::serve(world.pod("web-2").namespace(), IPERF_PORT, &log)?;
    world.pod_mut("web-2").run(server);
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    world.put([objects::service(NAME, HOST, &json!({ "spec": spec }))])?;
    set_endpoints(&world, &["web-2"])?;
    for family in Family::BOTH {
        let client = world.pod("client").namespace();
        let to = objects::cluster_ip(HOST, family);
        wait_until("iperf3 through the Service", LIMIT, || Ok(iperf::run(&log, client, to, &["-n", "1K"]).is_ok()))?;
    }
    Ok((world, log))
}

/// Makes these pods the Service's endpoints, whether iperf3 runs there or not.
fn set_endpoints(world: &World, pods: &[&str]) -> Result<()> {
    let mut slices = world.slices(NAME, pods);
    for port in slices.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = json!(IPERF_PORT);
    }
    world.put(slices)
}

#[test]
fn iperf3_runs_through_a_service_about_as_fast_as_without() -> Result<()> {
    let (world, log) = world_with_iperf(Options::TC)?;
    let client = world.pod("client").namespace();
    for family in Family::BOTH {
        let service = objects::cluster_ip(HOST, family);
        let direct = SocketAddr::new(world.pod("web-2").address(family), IPERF_PORT);
        let measure = |to, more: &[&str]| bits_per_second(&iperf::run(&log, client, to, more)?);
        // Once with, once without; a busy machine may stop in either.
        wait_until("as much with it as without", LIMIT, || {
            let without = measure(direct, &SECONDS)?;
            let with = measure(service, &SECONDS)?;
            // The other direction: replies are translated on egress.
            let reverse = measure(service, &["-R", "-t", "2"])?;
            let [direct, there, back] = [without, with, reverse].map(|rate| rate / 1e9);
            println!("{family:?}: {direct:.1} Gbit/s direct, through the Service {there:.1} and back {back:.1}");
            Ok(with.min(reverse) > LEAST_SHARE * without)
        })?;
        // Slow enough for a server that has to wait for a busy machine: its buffer must hold what comes meanwhile.
        let report = iperf::run(&log, client, service, &["-u", "-t", "2", "-b", "1M", "-l", "1200"])?;
        let datagrams = &report["end"]["sum"];
        let lost = datagrams["lost_packets"].as_u64().context("no count of lost datagrams")?;
        ensure!(lost == 0, "{family:?}: {lost} of {} datagrams lost", datagrams["packets"]);
    }
    Ok(())
}

/// By the ClusterIP, and from outside by the backend's node and by the other one, in both directions, TCP and UDP: streams flow,
/// no datagram is lost, and every checksum on the way is right.
fn iperf3_by_every_way(options: Options) -> Result<()> {
    const BYTES: &str = "512K";
    /// A socket's buffer takes as much, however long its owner has to wait for a busy machine.
    const BYTES_IN_DATAGRAMS: &str = "96K";
    let (world, log) = world_with_iperf(options)?;
    let captures = world.capture(&[])?;
    for family in Family::BOTH {
        let at = |node| SocketAddr::new(world.node(node).address(family), NODE_PORT);
        let inside = (world.pod("client").namespace(), objects::cluster_ip(HOST, family));
        for (from, to) in [inside, (world.outside(), at("node-a")), (world.outside(), at("node-b"))] {
            for direction in [&[][..], &["-R"]] {
                let report = iperf::run(&log, from, to, &[direction, &["-n", BYTES]].concat())?;
                // The last bytes may still be on their way when it stops counting.
                let received = report["end"]["sum_received"]["bytes"].as_u64().context("no count of bytes")?;
                ensure!(received > 0, "{to} {direction:?}: {received} bytes");
                let datagrams = ["-u", "-n", BYTES_IN_DATAGRAMS, "-b", "10M", "-l", "1200"];
                let report = iperf::run(&log, from, to, &[direction, &datagrams].concat())?;
                let sum = &report["end"]["sum"];
                ensure!(sum["lost_packets"] == 0 && sum["packets"].as_u64() > Some(70), "{to} {direction:?}: {sum}");
            }
        }
    }
    captures.finish().map(drop)
}

#[test]
fn iperf3_by_every_way_by_tc() -> Result<()> {
    iperf3_by_every_way(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn iperf3_by_every_way_with_xdp() -> Result<()> {
    iperf3_by_every_way(Options::XDP)
}

/// A stream goes on at every moment while endpoints come and go, its own among them.
#[test]
fn iperf3_goes_on_while_backends_come_and_go() -> Result<()> {
    const CHANGES: [&[&str]; 5] = [&["web-2", "web-3"], &["web-1"], &["web-1", "web-2"], &["web-3"], &["web-2"]];
    let (world, log) = world_with_iperf(Options::TC)?;
    for family in Family::BOTH {
        let (client, to) = (world.pod("client").namespace(), objects::cluster_ip(HOST, family));
        let before = log.clients()?;
        let report = thread::scope(|scope| {
            let run = scope.spawn(|| iperf::run(&log, client, to, &["-t", "3", "-i", "0.5"]));
            wait_until("the stream", LIMIT, || Ok(log.clients()? > before))?;
            for pods in CHANGES {
                thread::sleep(Duration::from_millis(500));
                set_endpoints(&world, pods)?;
            }
            run.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        let intervals = report["intervals"].as_array().context("no intervals")?;
        let number = |interval: &Value, name| interval["sum"][name].as_f64().unwrap_or_default();
        // After a stop of the machine intervals follow each other at once.
        let whole: Vec<_> = intervals.iter().filter(|interval| number(interval, "seconds") > 0.25).collect();
        let rates: Vec<f64> = whole.iter().map(|interval| number(interval, "bits_per_second") / 1e9).collect();
        println!("{family:?}: Gbit/s {rates:.1?}");
        let seconds: f64 = whole.iter().map(|interval| number(interval, "seconds")).sum();
        // All the time of the changes.
        ensure!(seconds > 2.5 && rates.iter().all(|rate| *rate > 0.0), "{family:?}: {seconds} s, {rates:?}");
        // And new ones find it again.
        wait_until("iperf3 through the Service", LIMIT, || Ok(iperf::run(&log, client, to, &["-n", "1K"]).is_ok()))?;
    }
    Ok(())
}

#[test]
fn large_answers_arrive_whole() -> Result<()> {
    const LENGTH: usize = 4 << 20;
    let world = World::with_agents(Options::TC)?;
    for family in Family::BOTH {
        let addresses = [
            (world.pod("client").namespace(), sample::web(family)),
            (world.pod("caller").namespace(), sample::web(family)),
            (world.outside(), sample::web_at(world.node("node-a").address(family))),
        ];
        for (from, to) in addresses {
            for _ in 0..6 {
                let response = from.enter(|| http::get(to, "/large", LIMIT))??;
                ensure!(response.body.len() == LENGTH && response.body.iter().all(|byte| *byte == b'.'), "{to}");
            }
        }
    }
    Ok(())
}

/// wrk, on connections that it keeps and on a new one per request.
#[test]
fn wrk_sees_no_error() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    for family in Family::BOTH {
        let urls = [
            (world.pod("client").namespace(), format!("http://{}/", sample::web(family))),
            (world.outside(), format!("http://{}/", sample::web_at(world.node("node-a").address(family)))),
        ];
        for (from, url) in urls {
            for header in ["Connection: keep-alive", "Connection: close"] {
                let report = from.run("wrk", &["-t", "1", "-c", "16", "-d", "1s", "-H", header, &url])?;
                ensure!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{url} {header}:\n{report}");
            }
        }
    }
    Ok(())
}
