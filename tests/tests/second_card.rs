// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node with a second network card, which has no default route: kube-proxy serves by both, and undoes a translation
//! wherever the answer leaves (pitfall 31: calico 10469, cilium 40521, harvester 10586).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, talk},
    world::{Family, Options, World, objects, wait_for, wait_to_meet},
};

const NAME: &str = "shop";
const HOST: u8 = 92;
const NODE_PORT: u16 = 30_092;
const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];
const PATIENCE: Duration = Duration::from_secs(1);
/// Each of three backends is met sooner: none would be in one of 10^8 runs.
const QUESTIONS: u32 = 50;

/// A world in which the outside client and node-a are connected by their `eth1` too.
fn world(options: Options, uplinks: &[&str], flags: &[&str]) -> Result<World> {
    let world = World::with_echoes_on(options, flags, |world| {
        world.nodes_mut().for_each(|node| node.set_uplinks(uplinks));
        let node = world.node("node-a").namespace();
        world.outside().ip(&format!(
            "link add eth1 type veth peer name eth1 netns {}\n\
             addr add 172.22.0.100/24 dev eth1\naddr add fd00:22::100/64 dev eth1 nodad\nlink set eth1 up",
            node.name()
        ))?;
        node.ip("addr add 172.22.0.11/24 dev eth1\naddr add fd00:22::11/64 dev eth1 nodad\nlink set eth1 up\n\
             route add 203.0.113.0/24 via 172.20.0.254")
    })?;
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    let service = objects::service(NAME, HOST, &json!({ "spec": spec }));
    world.put([service].into_iter().chain(world.slices(NAME, &ALL)))?;
    Ok(world)
}

/// The address of node-a's second card.
fn second(family: Family) -> IpAddr {
    family.pick("172.22.0.11", "fd00:22::11")
}

/// The client asks by the first card, under its address in the second one's network, so that answers leave by that.
fn answers_that_leave_by_the_second_card_are_translated(world: &World) -> Result<()> {
    world.outside().ip("route replace 172.20.0.11/32 dev eth0 src 172.22.0.100\n\
         route replace fd00:20::11/128 dev eth0 src fd00:22::100 metric 1")?;
    for family in Family::BOTH {
        let to = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
        let client = family.pick("172.22.0.100", "fd00:22::100");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            wait_to_meet(world.outside(), protocol, to, &ALL)?;
            // The backend of this node sees the client's own address; those of others see the node's.
            let of_this_node = || -> Result<Option<talk::Answer>> {
                let answer = talk::ask(protocol, to, PATIENCE).with_context(|| format!("{protocol:?} {family:?}"))?;
                Ok((answer.server == "web-1").then_some(answer))
            };
            let answer = world.outside().enter(|| (0..QUESTIONS).find_map(|_| of_this_node().transpose()))?;
            let answer = answer.with_context(|| format!("web-1 answers none of {QUESTIONS} questions"))??;
            ensure!(answer.client.ip() == client, "{answer:?}");
        }
    }
    world.outside().ip("route del 172.20.0.11/32 dev eth0\nroute del fd00:20::11/128 dev eth0 metric 1")
}

#[test]
fn pitfall_31_answers_leave_by_a_card_that_is_no_uplink() -> Result<()> {
    let world = world(Options::TC, &["eth0"], &["--nodeport-addresses", "all"])?;
    answers_that_leave_by_the_second_card_are_translated(&world)?;
    // Nobody has named that one for serving.
    for family in Family::BOTH {
        let to = SocketAddr::new(second(family), NODE_PORT);
        wait_for(world.outside(), Protocol::Tcp, to, &talk::Outcome::Refused)?;
        let trace = |device: &str| {
            let from = family.pick("172.22.0.100", "fd00:22::100");
            world.node("node-a").lb_agent(&format!("trace --from {from} --to {to} --in-interface {device}"))
        };
        ensure!(trace("eth0")?.contains("translated"), "{}", trace("eth0")?);
        for device in ["eth1", "cni0"] {
            ensure!(!trace(device)?.contains("translated"), "{}", trace(device)?);
        }
    }
    Ok(())
}

#[test]
fn pitfall_31_answers_leave_by_a_card_that_is_no_uplink_with_xdp() -> Result<()> {
    answers_that_leave_by_the_second_card_are_translated(&world(Options::XDP, &["eth0"], &[])?)
}

#[test]
fn pitfall_31_a_card_without_a_default_route_serves() -> Result<()> {
    let world = world(Options::TC, &[], &["--nodeport-addresses", "all"])?;
    answers_that_leave_by_the_second_card_are_translated(&world)?;
    for family in Family::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            wait_to_meet(world.outside(), protocol, SocketAddr::new(second(family), NODE_PORT), &ALL)?;
        }
    }
    // The first card's address, by the second card.
    world
        .outside()
        .ip("route replace 172.20.0.11/32 via 172.22.0.11\nroute replace fd00:20::11/128 via fd00:22::11 metric 1")?;
    for family in Family::BOTH {
        let to = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
        wait_to_meet(world.outside(), Protocol::Tcp, to, &ALL)?;
    }
    Ok(())
}
