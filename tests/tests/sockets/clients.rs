// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real clients among the processes of a node, and in pods whose sockets are translated.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{dns, iperf},
    world::{Family, Namespace, Options, Process, World, dns_port, objects, sample, wait_until},
};

use crate::service::{localhost, node, world};

const LIMIT: Duration = Duration::from_secs(10);

fn check_web(from: &Namespace, to: SocketAddr) -> Result<()> {
    let body = from.run("curl", &["-sS", "--max-time", "5", &format!("http://{to}/")])?;
    ensure!(body.starts_with("web-"), "{to}: {body}");
    let wrk = from.run("wrk", &["-t1", "-c4", "-d1s", &format!("http://{to}/")])?;
    let is_good = !wrk.contains("Socket errors") && !wrk.contains("Non-2xx") && wrk.contains("Requests/sec");
    ensure!(is_good, "{to}: {wrk}");
    Ok(())
}

fn check_dns(from: &Namespace, to: SocketAddr) -> Result<()> {
    let (at, port) = (format!("@{}", to.ip()), to.port().to_string());
    for transport in ["+notcp", "+tcp"] {
        let arguments = ["-p", &port, &at, transport, "+short", "+tries=1", "+time=5", dns::NAME];
        let answer = from.run("dig", &arguments)?;
        ensure!(answer.trim() == dns::ADDRESS_V4.to_string(), "{to} {transport}: {answer}");
    }
    Ok(())
}

/// curl, wrk and dig, by ClusterIP and by NodePorts on localhost.
#[test]
fn curl_wrk_and_dig_of_a_node_are_served() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for family in Family::BOTH {
        let here = localhost(family).ip();
        [sample::web(family), sample::web_at(here)].into_iter().try_for_each(|to| check_web(node(&world), to))?;
        [sample::dns(family), sample::dns_at(here)].into_iter().try_for_each(|to| check_dns(node(&world), to))?;
    }
    Ok(())
}

/// The same in pods, by ClusterIP and by NodePorts of both nodes.
#[test]
fn curl_wrk_and_dig_of_pods_are_served() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    let client = world.pod("client").namespace();
    for family in Family::BOTH {
        let nodes = ["node-a", "node-b"].map(|name| world.node(name).address(family));
        check_web(client, sample::web(family))?;
        check_dns(client, sample::dns(family))?;
        for node in nodes {
            check_web(client, sample::web_at(node))?;
            check_dns(client, sample::dns_at(node))?;
        }
    }
    Ok(())
}

/// A resolver with one socket for all it ever asks, without a connection: dnsmasq that forwards to the DNS Service. It is answered
/// by one server, by the next when that has gone, and again after there was none.
#[test]
fn pitfall_8_a_resolver_with_one_socket_follows_its_service() -> Result<()> {
    const PORT: u16 = 5300;
    let mut world = world(Options::HOST_SOCKETS, &[])?;
    let slices = |world: &World, pods: &[&str]| {
        let mut slices = world.slices("names", pods);
        for port in slices.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
            port["port"] = json!(dns_port());
        }
        slices
    };
    let to = objects::cluster_ip(78, Family::V4);
    world.put([objects::service("names", 78, &json!({}))])?;
    world.add_dns("web-2")?;
    world.put(slices(&world, &["dns-1"]))?;
    let mut resolver = node(&world).command("dnsmasq");
    resolver.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    resolver.args(["--pid-file=", "--log-facility=-", "--cache-size=0", "--query-port=5301"]);
    resolver.arg(format!("--port={PORT}")).arg(format!("--server={}#{}", to.ip(), to.port()));
    let _resolver = Process::start(resolver, &world.site().directory().join("resolver.log"))?;
    let answers = |limit: &str| {
        let arguments = ["-p", &PORT.to_string(), "@127.0.0.1", "+short", "+tries=1", limit, dns::NAME];
        node(&world).run("dig", &arguments).is_ok_and(|answer| answer.trim() == dns::ADDRESS_V4.to_string())
    };
    wait_until("the resolver's first answer", LIMIT, || Ok(answers("+time=1")))?;
    for pods in [&["web-2"][..], &[], &["dns-1"]] {
        world.put(slices(&world, pods))?;
        if pods.is_empty() {
            wait_until("no more answers", LIMIT, || Ok(!answers("+time=1")))?;
        } else {
            wait_until(&format!("answers by {pods:?}"), LIMIT, || Ok(answers("+time=1")))?;
            sleep(Duration::from_millis(300));
            ensure!((0..10).all(|_| answers("+time=1")), "it stays so");
        }
    }
    Ok(())
}

/// iperf3 through the door, of a process and of a pod.
#[test]
fn iperf3_is_served() -> Result<()> {
    const PORT: u16 = 5201;
    let mut world = world(Options::ALL_SOCKETS, &[])?;
    let log = world.site().directory().join("iperf3.log");
    let (server, log) = iperf::serve(world.pod("web-2").namespace(), PORT, &log)?;
    world.pod_mut("web-2").run(server);
    let mut slices = world.slices("bulk", &["web-2"]);
    for port in slices.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = json!(PORT);
    }
    world.put([objects::service("bulk", 79, &json!({}))].into_iter().chain(slices))?;
    for from in [node(&world), world.pod("client").namespace()] {
        for family in Family::BOTH {
            let to = objects::cluster_ip(79, family);
            let run = |more: &[&str]| iperf::run(&log, from, to, more);
            wait_until("iperf3 through the Service", LIMIT, || Ok(run(&["-n", "1K"]).is_ok()))?;
            for more in
                [&["-n", "32M", "-P", "4"][..], &["-n", "32M", "-R"], &["-u", "-t", "1", "-b", "1M", "-l", "1200"]]
            {
                let report = run(more)?;
                let end = &report["end"];
                let sum = if end["sum"].is_null() { &end["sum_received"] } else { &end["sum"] };
                let bits = sum["bits_per_second"].as_f64().unwrap_or_default();
                ensure!(bits > 0.0, "{to} {more:?}: {end}");
            }
        }
    }
    Ok(())
}
