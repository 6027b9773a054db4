// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules of Services, for the processes of a node.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{
        Protocol,
        talk::{self, Outcome},
    },
    world::{Family, Options, for_each_kind, wait_for, wait_to_meet},
};

use crate::service::{ALL, NAME, NODE_PORT, at_node, inside, localhost, node, refused, serve, service, world};

/// More than any refusal at the socket takes, and less than any that comes as a packet late.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Rules 27, 28 and 30, and threads cilium 37691 and 24805: the processes of a node reach every way in, also NodePorts on
/// localhost, and every endpoint (rule 26).
#[test]
fn rule_30_node_ports_on_localhost_and_all_else_for_the_nodes_own_processes() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for_each_kind(|protocol, family| {
        let unspecified = SocketAddr::new(family.pick("0.0.0.0", "::"), NODE_PORT);
        for to in [inside(family), at_node(&world, "node-a", family), localhost(family), unspecified] {
            wait_to_meet(node(&world), protocol, to, &ALL)?;
        }
        // The other node's packet doors serve there.
        wait_to_meet(node(&world), protocol, at_node(&world, "node-b", family), &ALL)?;
        // A pod's localhost is its own.
        for to in [localhost(family), unspecified] {
            wait_for(world.pod("client").namespace(), protocol, to, &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// A process that binds a NodePort's number is reached at addresses that answer no NodePorts, and its own traffic from that
/// port is left alone.
#[test]
fn a_process_on_a_node_ports_number_is_not_hijacked_elsewhere() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let bridge = SocketAddr::from(([10, 244, 1, 1], NODE_PORT));
    node(&world).enter(|| -> Result<()> {
        let listener = TcpListener::bind(bridge)?;
        let client = std::net::TcpStream::connect(bridge)?;
        ensure!(client.peer_addr()? == bridge && listener.accept()?.1 == client.local_addr()?);
        let [server, other] = [bridge, SocketAddr::new(bridge.ip(), 0)].map(UdpSocket::bind);
        let (server, other) = (server?, other?);
        other.send_to(b"there", bridge)?;
        let (_, from) = server.recv_from(&mut [0; 8])?;
        ensure!(from == other.local_addr()?);
        server.send_to(b"back", from)?;
        ensure!(other.recv_from(&mut [0; 8])?.1 == bridge);
        Ok(())
    })?
}

/// Rules 40, 41 and 44: refused at once where nothing serves, also for an undefined port; EPERM where only others may be
/// served. Rule 43: not what is established.
#[test]
fn rules_40_41_44_sockets_are_refused_at_once() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let outcome = |protocol, to, wanted: Outcome| -> Result<()> {
        wait_for(node(&world), protocol, to, &wanted)?;
        let start = Instant::now();
        ensure!(talk::attempt(node(&world), protocol, to)? == wanted);
        ensure!(start.elapsed() < AT_ONCE, "{protocol:?} to {to}: {wanted:?} after {:?}", start.elapsed());
        Ok(())
    };
    for_each_kind(|protocol, family| outcome(protocol, SocketAddr::new(inside(family).ip(), 9999), refused(protocol)))?;
    let mut established = node(&world).enter(|| talk::Talk::begin(Protocol::Tcp, inside(Family::V4), AT_ONCE))??;
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| {
        [inside(family), localhost(family)].into_iter().try_for_each(|to| outcome(protocol, to, refused(protocol)))
    })?;
    established.ask()?;
    node(&world).enter(|| -> Result<()> {
        for family in Family::BOTH {
            let socket = UdpSocket::bind((family.pick("0.0.0.0", "::"), 0))?;
            let error = socket.send_to(b"who?", inside(family)).expect_err("nobody serves");
            let outcome = talk::outcome(Err(error))?;
            ensure!(outcome == refused(Protocol::Udp), "{outcome:?}");
        }
        Ok(())
    })??;
    world.put([service(&json!({ "spec": { "internalTrafficPolicy": "Local" } }))])?;
    world.put(world.slices(NAME, &["web-2"]))?;
    // TCP first: where UDP that nobody serves is denied too, it does not show that the policy is in force.
    for protocol in Protocol::BOTH {
        Family::BOTH.into_iter().try_for_each(|family| outcome(protocol, inside(family), Outcome::Denied))?;
    }
    let services = world.node("node-a").lb_agent("get services -o json")?;
    let services: Vec<serde_json::Value> = serde_json::from_str(&services)?;
    let ours = services.iter().filter(|service| service["name"] == NAME);
    for service in ours {
        let count = |field: &str| service[field].as_u64().unwrap_or_default();
        ensure!(count("rejected_packets") > 0 && count("dropped_packets") > 0 && count("flows") > 0, "{service}");
    }
    Ok(())
}

/// Rule 38: the external policy Local is not for the node's own processes. Rule 37: the internal one is.
#[test]
fn rules_37_38_policies_for_the_nodes_own_processes() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    serve(&world, &json!({ "spec": { "externalTrafficPolicy": "Local" } }), &["web-2", "web-3"])?;
    for_each_kind(|protocol, family| {
        [at_node(&world, "node-a", family), localhost(family)]
            .into_iter()
            .try_for_each(|to| wait_to_meet(node(&world), protocol, to, &["web-2", "web-3"]))
    })?;
    world.put([service(&json!({ "spec": { "internalTrafficPolicy": "Local" } }))])?;
    world.put(world.slices(NAME, &ALL))?;
    for_each_kind(|protocol, family| {
        wait_to_meet(node(&world), protocol, inside(family), &["web-1"])?;
        wait_to_meet(node(&world), protocol, localhost(family), &ALL)
    })
}

/// Rule 35: a socket's source is the address that it is bound to, else the node's own.
#[test]
fn rule_35_source_ranges_see_the_bound_address_or_the_nodes() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let address = |family: Family| SocketAddr::new(family.pick("192.0.2.77", "2001:db8::77"), 7);
    let with_ranges = |ranges: [&str; 2]| {
        let mut object = service(&json!({
            "spec": { "type": "LoadBalancer", "loadBalancerSourceRanges": ranges },
        }));
        object["status"] = json!({ "loadBalancer": { "ingress": [
            { "ip": address(Family::V4).ip() }, { "ip": address(Family::V6).ip() },
        ] } });
        object
    };
    world.put([with_ranges(["10.244.1.0/24", "fd00:244:1::/64"])])?;
    for_each_kind(|protocol, family| {
        wait_for(node(&world), protocol, address(family), &Outcome::Denied)?;
        let bound = SocketAddr::new(family.pick("10.244.1.1", "fd00:244:1::1"), talk::fresh_port());
        let answer = node(&world)
            .enter(|| talk::Talk::begin_at(protocol, bound, address(family), Duration::from_secs(5))?.ask())??;
        ensure!(answer.client == bound, "{answer:?}");
        Ok(())
    })?;
    world.put([with_ranges(["172.20.0.11/32", "fd00:20::11/128"])])?;
    for_each_kind(|protocol, family| wait_to_meet(node(&world), protocol, address(family), &ALL))
}

/// Rules 54 to 57: the processes of a node are one client, whatever address they will have.
#[test]
fn rule_54_the_nodes_processes_are_one_client() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    world.put([service(&json!({ "spec": { "sessionAffinity": "ClientIP" } }))])?;
    let met = |protocol, to| talk::meet(node(&world), protocol, to, 12);
    for_each_kind(|protocol, family| {
        let is_settled = |met: &BTreeMap<String, usize>| met.len() == 1;
        shunt_tests::world::wait_until("one backend for all", Duration::from_secs(5), || {
            Ok(is_settled(&met(protocol, inside(family))?))
        })?;
        let first = met(protocol, inside(family))?;
        ensure!(first == met(protocol, localhost(family))?, "by {protocol:?} another one at localhost than {first:?}");
        Ok(())
    })
}
