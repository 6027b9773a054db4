// SPDX-License-Identifier: MIT OR Apache-2.0
//! ClusterIP from pods: HTTP and DNS, both families, from a bridged and from a routed pod.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use shunt_tests::{
    load::{self, Target, dns, http},
    world::{Family, Options, World, sample},
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
