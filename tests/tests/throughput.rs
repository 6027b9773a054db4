// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bulk traffic with segmentation and checksum offload on: it arrives whole, and about as fast as without Shunt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shunt_tests::{
    load::http,
    world::{Family, Namespace, Options, Process, World, sample, wait_until},
};

const LIMIT: Duration = Duration::from_secs(20);
const IPERF_PORT: u16 = 5201;
const SECONDS: [&str; 2] = ["-t", "2"];
/// Below this share of the direct speed something is broken, not slow: lost offloads cost far more.
const LEAST_SHARE: f64 = 0.4;

const IPERF: &str = "
apiVersion: v1
kind: Service
metadata: { name: iperf, namespace: default }
spec:
  type: ClusterIP
  ipFamilies: [IPv4, IPv6]
  clusterIP: 10.96.0.52
  clusterIPs: [10.96.0.52, 'fd00:96::52']
  ports:
    - { name: tcp, protocol: TCP, port: 5000 }
    - { name: udp, protocol: UDP, port: 5000 }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: iperf-ipv4, namespace: default, labels: { kubernetes.io/service-name: iperf } }
addressType: IPv4
ports: [{ name: tcp, protocol: TCP, port: 5201 }, { name: udp, protocol: UDP, port: 5201 }]
endpoints: [{ addresses: [10.244.2.12], nodeName: node-b, conditions: { ready: true } }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: iperf-ipv6, namespace: default, labels: { kubernetes.io/service-name: iperf } }
addressType: IPv6
ports: [{ name: tcp, protocol: TCP, port: 5201 }, { name: udp, protocol: UDP, port: 5201 }]
endpoints: [{ addresses: ['fd00:244:2::12'], nodeName: node-b, conditions: { ready: true } }]
";

/// One run of iperf3; what it reports at the end.
fn iperf(client: &Namespace, to: &str, port: u16, more: &[&str]) -> Result<Value> {
    let port = port.to_string();
    let arguments = [&["-c", to, "-p", &port, "-J", "--connect-timeout", "5000"], more].concat();
    let report: Value = serde_json::from_str(&client.run("iperf3", &arguments)?)?;
    ensure!(report["error"].is_null(), "{to}: {}", report["error"]);
    Ok(report["end"].clone())
}

fn bits_per_second(end: &Value) -> Result<f64> {
    end["sum_received"]["bits_per_second"].as_f64().with_context(|| format!("no bit rate in {end}"))
}

#[test]
fn iperf3_runs_through_a_service_about_as_fast_as_without() -> Result<()> {
    let mut world = World::with_agents(Options::TC)?;
    let mut server = world.pod("web-2").namespace().command("iperf3");
    server.args(["-s", "-p", &IPERF_PORT.to_string()]);
    let server = Process::start(server, &world.site().directory().join("iperf3.log"))?;
    world.pod_mut("web-2").run(server);
    world.apply("iperf.yaml", IPERF)?;
    let client = world.pod("client").namespace();
    for family in Family::BOTH {
        let direct = world.pod("web-2").address(family).to_string();
        let service = family.pick("10.96.0.52", "fd00:96::52").to_string();
        wait_until("iperf3 through the Service", LIMIT, || Ok(iperf(client, &service, 5000, &["-n", "1K"]).is_ok()))?;
        let without = bits_per_second(&iperf(client, &direct, IPERF_PORT, &SECONDS)?)?;
        let with = bits_per_second(&iperf(client, &service, 5000, &SECONDS)?)?;
        println!("{family:?}: {:.1} Gbit/s direct, {:.1} Gbit/s through the Service", without / 1e9, with / 1e9);
        ensure!(with > LEAST_SHARE * without, "{family:?}: {with:.0} of {without:.0} bit/s");
        // The other direction: replies are translated on egress.
        let reverse = bits_per_second(&iperf(client, &service, 5000, &["-R", "-t", "2"])?)?;
        ensure!(reverse > LEAST_SHARE * without, "{family:?} from the server: {reverse:.0} of {without:.0} bit/s");
        // Slow enough for a server that has to wait for a busy machine: its buffer must hold what comes meanwhile.
        let datagrams = iperf(client, &service, 5000, &["-u", "-t", "2", "-b", "1M", "-l", "1200"])?;
        let lost = datagrams["sum"]["lost_packets"].as_u64().context("no count of lost datagrams")?;
        ensure!(lost == 0, "{family:?}: {lost} of {} datagrams lost", datagrams["sum"]["packets"]);
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
