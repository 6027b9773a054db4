// SPDX-License-Identifier: MIT OR Apache-2.0
//! NodePort from an outside client, both families, with the backend on the node that is asked and on the other one.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use shunt_tests::{
    load::{self, Target, dns, http},
    world::{Family, Options, World, sample},
};

const LIMIT: Duration = Duration::from_secs(5);
const REQUESTS: usize = 90;

/// Both nodes answer for every backend, by HTTP and DNS.
fn both_nodes_serve_every_backend(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    for family in Family::BOTH {
        for node in world.nodes() {
            let address = node.address(family);
            let targets =
                [Target::Http(sample::web_at(address)), Target::Dns(sample::dns_at(address), "dns-1".to_owned())];
            let tally = load::send(world.outside(), &targets, 2 * REQUESTS, &|| {})?;
            ensure!(tally.failed() == 0, "{} {family:?}: {:?}", node.name(), tally.errors);
            for backend in sample::WEB_BACKENDS {
                ensure!(tally.answered_by(backend) > 0, "{} {family:?}: no answer of {backend}", node.name());
            }
            let (at, port) = (format!("@{address}"), sample::DNS_NODE_PORT.to_string());
            let dig = ["-p", &port, &at, "+tcp", "+short", "+tries=1", "+time=5", dns::NAME];
            let answer = world.outside().run("dig", &dig)?;
            ensure!(answer.trim() == dns::ADDRESS_V4.to_string(), "{} {family:?} by TCP: {answer}", node.name());
        }
    }
    Ok(())
}

#[test]
fn both_nodes_serve_every_backend_by_tc() -> Result<()> {
    both_nodes_serve_every_backend(Options::TC)
}

#[test]
fn both_nodes_serve_every_backend_with_xdp() -> Result<()> {
    both_nodes_serve_every_backend(Options::XDP)
}

/// Section N, source addresses: an outside client keeps its address where the backend is on the node that it asks, and
/// appears as that node where it is not.
fn source_addresses(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    // A bridged pod on node-a, a bridged and a routed one on node-b.
    for backend in ["web-1", "web-2", "web-3"] {
        world.route_web_to(&[backend])?;
        for family in Family::BOTH {
            for node in world.nodes() {
                let is_local = world.pod(backend).node_name() == node.name();
                let address: IpAddr = node.address(family);
                world.outside().enter(|| -> Result<()> {
                    for _ in 0..10 {
                        let response = http::get(sample::web_at(address), "/", LIMIT)?;
                        let seen = response.client();
                        let is_right = if is_local {
                            seen == Some(response.local)
                        } else {
                            seen.is_some_and(|seen| seen.ip() == address)
                        };
                        ensure!(is_right, "{backend} by {} {family:?}: {response:?}", node.name());
                    }
                    Ok(())
                })??;
            }
        }
    }
    Ok(())
}

#[test]
fn local_backends_see_the_client_and_remote_ones_the_node_by_tc() -> Result<()> {
    source_addresses(Options::TC)
}

#[test]
fn local_backends_see_the_client_and_remote_ones_the_node_with_xdp() -> Result<()> {
    source_addresses(Options::XDP)
}

/// A pod that uses a node's address and NodePort is served, without leaving its node where that is its own.
#[test]
fn pods_reach_node_ports() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    for client in ["client", "caller"] {
        for family in Family::BOTH {
            for node in world.nodes() {
                let targets = [Target::Http(sample::web_at(node.address(family)))];
                let tally = load::send(world.pod(client).namespace(), &targets, 30, &|| {})?;
                ensure!(tally.failed() == 0, "{client} to {} {family:?}: {:?}", node.name(), tally.errors);
            }
        }
    }
    Ok(())
}
