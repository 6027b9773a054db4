// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules of Services, for the processes of a node.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{
        Protocol, http,
        talk::{self, Outcome},
    },
    world::{Echo, Family, Options, World, for_each_kind, is_quick, kinds, wait_for, wait_to_meet},
};

use crate::service::{
    ALL, NAME, NODE_PORT, at_node, denied, inside, is_closed, localhost, node, refused, serve, service, world,
};

/// More than any refusal at the socket takes, and less than any that comes as a packet late.
const AT_ONCE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(5);

/// Rules 27, 28 and 30, and threads cilium 37691 and 24805: the processes of a node reach every way in, also NodePorts on
/// localhost, and every endpoint (rule 26).
#[test]
fn rule_30_pitfall_13_node_ports_on_localhost_and_all_else_for_the_nodes_own_processes() -> Result<()> {
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
        is_quick(AT_ONCE, || {
            ensure!(talk::attempt(node(&world), protocol, to)? == wanted);
            Ok(())
        })
        .with_context(|| format!("{protocol:?} to {to}: {wanted:?}"))
    };
    for_each_kind(|protocol, family| outcome(protocol, SocketAddr::new(inside(family).ip(), 9999), Outcome::Refused))?;
    let mut established = node(&world).enter(|| talk::Talk::begin(Protocol::Tcp, inside(Family::V4), LIMIT))??;
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| {
        [inside(family), localhost(family)].into_iter().try_for_each(|to| outcome(protocol, to, Outcome::Refused))
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
        Family::BOTH.into_iter().try_for_each(|family| outcome(protocol, inside(family), denied(protocol)))?;
    }
    Ok(())
}

/// Flows and refusals in the table of node-a, of both protocols and families together.
fn counters(world: &World) -> Result<[u64; 3]> {
    let services = world.node("node-a").lb_agent("get services -o json")?;
    let services: Vec<serde_json::Value> = serde_json::from_str(&services)?;
    let ours = || services.iter().filter(|service| service["name"] == NAME);
    let sum = |field: &str| ours().filter_map(|service| service[field].as_u64()).sum();
    Ok(["flows", "rejected_packets", "dropped_packets"].map(sum))
}

/// glibc connects UDP to each address of a name to sort them, `ping` to learn its own address: nothing is sent, and nobody may
/// refuse it. What is sent is refused, and shown as the Service's; and once somebody serves, the socket is closed.
#[test]
fn pitfall_36_udp_is_connected_though_nobody_serves_and_refused_when_it_sends() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| wait_for(node(&world), protocol, inside(family), &Outcome::Refused))?;
    let mut waiting = Vec::new();
    for family in Family::BOTH {
        let undefined = SocketAddr::new(inside(family).ip(), 9999);
        for to in [inside(family), undefined, localhost(family)] {
            node(&world).enter(|| -> Result<()> {
                let socket = UdpSocket::bind((family.pick("0.0.0.0", "::"), 0))?;
                socket.set_read_timeout(Some(LIMIT))?;
                socket.connect(to).with_context(|| format!("connect to {to}"))?;
                ensure!(socket.peer_addr()? == to, "{:?}", socket.peer_addr());
                let own = socket.local_addr()?.ip();
                ensure!(own == world.node("node-a").address(family), "the own address is {own}");
                for _ in 0..2 {
                    socket.send(b"who?")?;
                    let error = socket.recv(&mut [0; 8]).expect_err("nobody serves");
                    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
                }
                if to == inside(family) {
                    waiting.push(socket);
                }
                Ok(())
            })??;
        }
    }
    world.put(world.slices(NAME, &ALL))?;
    for_each_kind(|protocol, family| wait_to_meet(node(&world), protocol, inside(family), &ALL))?;
    for (socket, family) in waiting.into_iter().zip(Family::BOTH) {
        shunt_tests::world::wait_until("the socket is closed", LIMIT, || {
            Ok(socket.send(b"who?").is_err_and(|error| is_closed(&error)))
        })?;
        // Of being closed it has not heard yet.
        socket.take_error()?;
        node(&world).enter(|| socket.connect(inside(family)))??;
        socket.send(b"who?")?;
        socket.recv(&mut [0; 64])?;
    }
    Ok(())
}

/// How often that reason was met, on the page of metrics of node-a.
fn reasons(world: &World, reason: &str) -> Result<u64> {
    let page = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let response = node(world).enter(|| http::get(page, "/metrics", Duration::from_secs(5)))??;
    let text = String::from_utf8_lossy(&response.body).into_owned();
    let line = format!("shunt_reasons_total{{reason=\"{reason}\"}} ");
    let count = text.lines().find_map(|known| known.strip_prefix(line.as_str()));
    Ok(count.map_or(Ok(0), str::parse)?)
}

/// Each call is counted once: a new flow, or a refusal for its Service and by its reason. Further datagrams are no new flows.
#[test]
fn calls_are_counted_for_their_service_and_by_reason() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let many = |protocol, to: SocketAddr| -> Result<()> {
        (0..3).try_for_each(|_| talk::attempt(node(&world), protocol, to).map(drop))
    };
    let both = |to: fn(Family) -> SocketAddr| -> Result<()> {
        kinds().try_for_each(|(protocol, family)| many(protocol, to(family)))
    };
    let count = |reason: &str, to: fn(Family) -> SocketAddr| -> Result<[u64; 4]> {
        let (before, reason_before) = (counters(&world)?, reasons(&world, reason)?);
        both(to)?;
        let after = counters(&world)?;
        let [flows, rejected, dropped] = [0, 1, 2].map(|index| after[index] - before[index]);
        Ok([flows, rejected, dropped, reasons(&world, reason)? - reason_before])
    };
    let served = count("no-endpoints", inside)?;
    ensure!(served == [12, 0, 0, 0], "{served:?}");
    let before = counters(&world)?;
    node(&world).enter(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..5 {
            socket.send_to(b"who?", inside(Family::V4))?;
            socket.recv_from(&mut [0; 64])?;
        }
        Ok(())
    })??;
    ensure!(counters(&world)?[0] == before[0] + 1, "one flow of five datagrams");
    let undefined = count("undefined-port", |family| SocketAddr::new(inside(family).ip(), 9999))?;
    ensure!(undefined == [0, 0, 0, 12], "of no Service port: {undefined:?}");
    world.put([service(&json!({ "spec": { "internalTrafficPolicy": "Local" } }))])?;
    world.put(world.slices(NAME, &["web-2"]))?;
    for_each_kind(|protocol, family| wait_for(node(&world), protocol, inside(family), &denied(protocol)))?;
    let local = count("no-local-endpoints", inside)?;
    ensure!(local == [0, 0, 12, 12], "{local:?}");
    world.put(world.slices(NAME, &[]))?;
    for_each_kind(|protocol, family| wait_for(node(&world), protocol, inside(family), &Outcome::Refused))?;
    let none = count("no-endpoints", localhost)?;
    ensure!(none == [0, 12, 0, 12], "{none:?}");
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
        wait_for(node(&world), protocol, address(family), &denied(protocol))?;
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

/// Packets from a loopback address never leave the machine: a socket that is bound to one is refused at once where its backend
/// is elsewhere, and served where that is the node itself.
#[test]
fn a_socket_bound_to_loopback_is_refused_or_served_here() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let _server = Echo::start(node(&world), "node-a")?;
    let attempt = |protocol, family| {
        let from = SocketAddr::new(localhost(family).ip(), 0);
        let limit = Duration::from_secs(5);
        talk::outcome(node(&world).enter(|| talk::Talk::begin_at(protocol, from, localhost(family), limit)?.ask())?)
    };
    for_each_kind(|protocol, family| {
        is_quick(AT_ONCE, || {
            let outcome = attempt(protocol, family)?;
            ensure!(outcome == denied(protocol), "{outcome:?}");
            Ok(())
        })
    })?;
    let mut slices = world.slices(NAME, &["web-1"]);
    for (slice, family) in slices.iter_mut().zip(Family::BOTH) {
        slice["endpoints"][0]["addresses"] = json!([world.node("node-a").address(family)]);
    }
    world.put(slices)?;
    for_each_kind(|protocol, family| {
        wait_to_meet(node(&world), protocol, localhost(family), &["node-a"])?;
        // A UDP server of all addresses answers loopback from loopback, whom the client did not ask: so it does without us.
        if protocol == Protocol::Tcp {
            let outcome = attempt(protocol, family)?;
            ensure!(outcome == Outcome::Answered("node-a".to_owned()), "{outcome:?}");
        }
        Ok(())
    })
}
