// SPDX-License-Identifier: MIT OR Apache-2.0
//! ClusterIP from pods: HTTP and DNS, both families, from a bridged and from a routed pod.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{self, Target, dns, http},
    world::{Family, Namespace, Options, World, objects, sample, wait_until},
};

const LIMIT: Duration = Duration::from_secs(5);
const CLIENTS: [&str; 2] = ["client", "caller"];
const REQUESTS: usize = 90;

/// Every request is answered, and each backend answers some.
fn http_reaches_every_backend(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    for client in CLIENTS {
        for family in Family::BOTH {
            let targets = [Target::Http(sample::web(family))];
            let tally = load::send(world.pod(client).namespace(), &targets, REQUESTS, &|| {})?;
            ensure!(tally.failed() == 0, "{client} {family:?}: {:?}", tally.errors);
            let answered: BTreeSet<&str> = tally.backends.keys().map(String::as_str).collect();
            ensure!(answered == BTreeSet::from(sample::WEB_BACKENDS), "{client} {family:?}: {answered:?}");
        }
    }
    Ok(())
}

#[test]
fn http_reaches_every_backend_by_tc() -> Result<()> {
    http_reaches_every_backend(Options::TC)
}

#[test]
fn http_reaches_every_backend_with_xdp() -> Result<()> {
    http_reaches_every_backend(Options::XDP)
}

/// By UDP with our own resolver, by TCP with `dig`.
fn dns_by_udp_and_tcp(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    for client in CLIENTS {
        let client = world.pod(client).namespace();
        for family in Family::BOTH {
            let server = sample::dns(family);
            let targets = [Target::Dns(server, sample::DNS_BACKEND.to_owned())];
            let tally = load::send(client, &targets, REQUESTS, &|| {})?;
            ensure!(tally.failed() == 0, "{family:?}: {:?}", tally.errors);
            let at = format!("@{}", server.ip());
            let answer = client.run("dig", &[&at, "+tcp", "+short", "+tries=1", "+time=5", dns::NAME])?;
            ensure!(answer.trim() == dns::ADDRESS_V4.to_string(), "{family:?} by TCP: {answer}");
        }
    }
    Ok(())
}

#[test]
fn dns_by_udp_and_tcp_by_tc() -> Result<()> {
    dns_by_udp_and_tcp(Options::TC)
}

#[test]
fn dns_by_udp_and_tcp_with_xdp() -> Result<()> {
    dns_by_udp_and_tcp(Options::XDP)
}

/// Rule 46: a pod's address and port are kept, wherever the backend is.
#[test]
fn rule_46_pods_keep_their_address() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    for pod in CLIENTS {
        for family in Family::BOTH {
            world.pod(pod).namespace().enter(|| -> Result<()> {
                for _ in 0..20 {
                    let response = http::get(sample::web(family), "/", LIMIT)?;
                    ensure!(response.client() == Some(response.local), "{pod} {family:?}: {response:?}");
                }
                Ok(())
            })??;
        }
    }
    Ok(())
}

/// Rule 49, and threads cilium 26100 and 26733: a pod that reaches itself through its Service sees the node, not itself.
fn hairpin(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    // A bridged and a routed pod.
    for pod in ["web-1", "web-3"] {
        world.route_web_to(&[pod])?;
        for family in Family::BOTH {
            let own = world.pod(pod).address(family);
            world.pod(pod).namespace().enter(|| -> Result<()> {
                for _ in 0..5 {
                    let response = http::get(sample::web(family), "/", LIMIT)?;
                    ensure!(response.server() == Some(pod), "{pod} {family:?}: {response:?}");
                    let seen = response.client().map(|client| client.ip());
                    ensure!(seen.is_some_and(|seen| seen != own), "{pod} {family:?}: {response:?}");
                }
                Ok(())
            })??;
        }
    }
    Ok(())
}

#[test]
fn rule_49_hairpin_by_tc() -> Result<()> {
    hairpin(Options::TC)
}

#[test]
fn rule_49_hairpin_with_xdp() -> Result<()> {
    hairpin(Options::XDP)
}

/// Traffic of no Service goes its usual way through the programs.
#[test]
fn direct_traffic_is_left_alone() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    for client in CLIENTS {
        for family in Family::BOTH {
            let targets = sample::WEB_BACKENDS.map(|pod| {
                Target::Http(SocketAddr::new(world.pod(pod).address(family), shunt_tests::world::http_port()))
            });
            let tally = load::send(world.pod(client).namespace(), &targets, 30, &|| {})?;
            ensure!(tally.failed() == 0, "{client} {family:?}: {:?}", tally.errors);
            ensure!(tally.answered_by("web-1") == 10, "{client} {family:?}: {:?}", tally.backends);
        }
    }
    Ok(())
}

/// Ends when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A DNS server at one address, as NodeLocal DNSCache is.
fn dns_server_at(namespace: &Namespace, address: SocketAddr) -> Result<Server> {
    let mut command = namespace.command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--pid-file=", "--log-facility=-", "--bind-interfaces"]);
    command.args([format!("--listen-address={}", address.ip()), format!("--port={}", address.port())]);
    command.arg(format!("--host-record={},{},{}", dns::NAME, dns::ADDRESS_V4, dns::ADDRESS_V6));
    Ok(Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("dnsmasq")?))
}

/// NodeLocal DNSCache holds the ClusterIP of the cluster's DNS on a dummy device: whoever is on the node asks the cache, pods by
/// packets and processes by sockets. When the device goes, the Service serves again.
#[test]
fn a_cluster_ip_that_a_device_of_the_node_holds_is_answered_there() -> Result<()> {
    const NAME: &str = "held";
    const HOST: u8 = 99;
    let world = World::with_agents(Options::HOST_SOCKETS)?;
    let node = world.node("node-a").namespace();
    let at = |family| SocketAddr::new(objects::cluster_ip(HOST, family).ip(), 53);
    let ports = json!([{ "name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353 }]);
    world.put([objects::service(NAME, HOST, &json!({ "spec": { "ports": ports } }))])?;
    let answers = |answered: bool| -> Result<()> {
        for namespace in [world.pod("client").namespace(), world.pod("caller").namespace(), node] {
            for (family, id) in Family::BOTH.into_iter().flat_map(|family| [(family, 2), (family, 3)]) {
                wait_until(&format!("{}, {family:?}, {id}: {answered}", namespace.name()), LIMIT, || {
                    let asked = namespace.enter(|| dns::query(at(family), id, Duration::from_millis(500)))?;
                    Ok(asked.is_ok() == answered)
                })?;
            }
        }
        Ok(())
    };
    // Nobody serves, and who asks hears so.
    answers(false)?;

    // Where the kernel has no dummy device, another one that leads nowhere does.
    node.ip("link add nodelocaldns type dummy").or_else(|_| node.ip("link add nodelocaldns type ifb"))?;
    node.ip("link set nodelocaldns up\naddress add 169.254.20.10/32 dev nodelocaldns")?;
    let mut servers = Vec::new();
    for family in Family::BOTH {
        let (ip, rest) = (at(family).ip(), if family == Family::V4 { "" } else { " nodad" });
        node.ip(&format!("address add {ip} dev nodelocaldns{rest}"))?;
        servers.push(dns_server_at(node, at(family))?);
    }
    answers(true)?;
    let services = world.node("node-a").lb_agent("get services -o json")?;
    ensure!(!services.contains(&at(Family::V4).ip().to_string()), "{services}");

    node.ip("link delete nodelocaldns")?;
    drop(servers);
    answers(false)?;
    world.put(Family::BOTH.map(|family| {
        let ports = json!([{ "name": "dns", "protocol": "UDP", "port": 5353 }]);
        let endpoint = json!({ "addresses": [world.pod(sample::DNS_BACKEND).address(family)], "conditions": { "ready": true } });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
            "metadata": { "name": format!("{NAME}-{family:?}").to_lowercase(), "labels": { "kubernetes.io/service-name": NAME } },
            "ports": ports, "endpoints": [endpoint],
        })
    }))?;
    answers(true)
}
