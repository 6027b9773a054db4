// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods, with their sockets translated and without.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        Protocol,
        talk::{self, Outcome},
    },
    world::{Family, Options, World, for_each_kind, wait_for, wait_to_meet, wait_until},
};

use crate::service::{ALL, at_node, inside, service, world};

const CLIENTS: [&str; 2] = ["client", "caller"];
const LIMIT: Duration = Duration::from_secs(5);

/// Flows of a protocol to the Service in the table of node-a.
fn flows(world: &World, protocol: &str) -> Result<usize> {
    let flows: Vec<Value> = serde_json::from_str(&world.node("node-a").lb_agent("get flows -o json")?)?;
    let is_ours = |flow: &&Value| {
        let to = flow["destination"].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
        flow["protocol"] == protocol && to.is_some_and(|to| Family::BOTH.map(inside).contains(&to))
    };
    Ok(flows.iter().filter(is_ours).count())
}

/// With `--socket-lb all` a pod's TCP leaves with the backend's address: the packet doors see no flow. Its connected UDP is
/// theirs, because they look after it packet by packet.
#[test]
fn sockets_of_pods_make_no_flows() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    for_each_kind(|protocol, family| {
        for client in CLIENTS {
            wait_to_meet(world.pod(client).namespace(), protocol, inside(family), &ALL)?;
            for node in ["node-a", "node-b"] {
                wait_to_meet(world.pod(client).namespace(), protocol, at_node(&world, node, family), &ALL)?;
            }
        }
        Ok(())
    })?;
    ensure!(flows(&world, "TCP")? == 0, "{}", world.node("node-a").lb_agent("get flows")?);
    ensure!(flows(&world, "UDP")? > 0, "connected UDP is the packet doors'");
    Ok(())
}

/// Pitfall 25: side-cars and sandboxes that redirect a pod's connections see Services, not backends. The packet doors serve
/// the pods then.
#[test]
fn pitfall_25_pods_are_left_to_the_packet_doors_by_default() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for_each_kind(|protocol, family| wait_to_meet(world.pod("client").namespace(), protocol, inside(family), &ALL))?;
    ensure!(flows(&world, "TCP")? > 0, "{}", world.node("node-a").lb_agent("get flows")?);
    Ok(())
}

/// Rule 49: a pod that is sent to itself needs no other source address, because its packets never leave it.
#[test]
fn rule_49_a_pod_reaches_itself_by_its_socket() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    for_each_kind(|protocol, family| {
        for pod in ["web-1", "web-3"] {
            wait_to_meet(world.pod(pod).namespace(), protocol, inside(family), &ALL)?;
        }
        Ok(())
    })
}

/// Rules 35, 40, 41 and 44 for pods whose sockets are translated; a source that is not known yet is the packet doors' to judge.
#[test]
fn rules_35_40_41_44_for_sockets_of_pods() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    let client = world.pod("client").namespace();
    for_each_kind(|protocol, family| {
        wait_for(client, protocol, SocketAddr::new(inside(family).ip(), 9999), &Outcome::Refused)
    })?;
    let address = |family: Family| SocketAddr::new(family.pick("192.0.2.77", "2001:db8::77"), 7);
    let mut restricted = service(&json!({
        "spec": { "type": "LoadBalancer", "loadBalancerSourceRanges": ["10.244.1.90/32", "fd00:244:1::90/128"] },
    }));
    restricted["status"] = json!({ "loadBalancer": { "ingress": [
        { "ip": address(Family::V4).ip() }, { "ip": address(Family::V6).ip() },
    ] } });
    world.put([restricted])?;
    for_each_kind(|protocol, family| {
        wait_to_meet(client, protocol, address(family), &ALL)?;
        wait_for(world.pod("caller").namespace(), protocol, address(family), &Outcome::Silence)
    })?;
    world.put([service(&json!({ "spec": { "internalTrafficPolicy": "Local" } }))])?;
    world.put(world.slices(crate::service::NAME, &["web-2"]))?;
    for family in Family::BOTH {
        wait_for(client, Protocol::Tcp, inside(family), &Outcome::Denied)?;
        wait_for(client, Protocol::Udp, inside(family), &Outcome::Silence)?;
    }
    world.put(world.slices(crate::service::NAME, &[]))?;
    for_each_kind(|protocol, family| wait_for(client, protocol, inside(family), &Outcome::Refused))?;
    ensure!(talk::attempt(client, Protocol::Tcp, inside(Family::V6))? == Outcome::Refused);
    Ok(())
}

/// Rule 54: to session affinity a pod is one client, whether its UDP sockets are connected or not.
#[test]
fn rule_54_connected_and_other_udp_sockets_of_a_pod_are_one_client() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    world.put([service(&json!({ "spec": { "sessionAffinity": "ClientIP" } }))])?;
    for family in Family::BOTH {
        for pod in ["client", "caller", "web-1"] {
            let namespace = world.pod(pod).namespace();
            let connected = || talk::meet(namespace, Protocol::Udp, inside(family), 6);
            wait_until("one backend", LIMIT, || Ok(connected()?.len() == 1))?;
            let met: Vec<String> = connected()?.into_keys().collect();
            for _ in 0..6 {
                let server = namespace.enter(|| -> Result<String> {
                    let socket = std::net::UdpSocket::bind((family.pick("0.0.0.0", "::"), 0))?;
                    socket.set_read_timeout(Some(LIMIT))?;
                    socket.send_to(b"who?\n", inside(family))?;
                    let mut answer = [0; 128];
                    let (length, from) = socket.recv_from(&mut answer)?;
                    ensure!(from == inside(family), "answered by {from}");
                    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
                })??;
                ensure!(server.contains(&met[0]), "{pod}: connected sockets meet {met:?}, another one {server}");
            }
        }
    }
    Ok(())
}
