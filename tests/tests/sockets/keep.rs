// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a socket keeps, and what it loses: its backend while that serves, its place in the table while it is open, and no
//! more of a Service than it has asked for last.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{Protocol, talk},
    world::{Family, Namespace, Options, World, echo_port, wait_to_meet, wait_until},
};

use crate::service::{ALL, NAME, inside, is_closed, localhost, node, refused, serve, world};

const LIMIT: Duration = Duration::from_secs(5);

/// A UDP socket without a connection.
struct Loose(UdpSocket);

impl Loose {
    fn new(from: &Namespace, family: Family) -> Result<Self> {
        let socket = from.enter(|| UdpSocket::bind((family.pick("0.0.0.0", "::"), 0)))??;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(Self(socket))
    }

    /// Asks who is there, and returns that, and who is said to have answered.
    fn ask(&self, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
        let mut buffer = [0; 256];
        self.0.send_to(b"who?\n", to)?;
        let (length, from) = self.0.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        Ok((text.split_whitespace().next().unwrap_or_default().to_owned(), from))
    }

    fn server(&self, to: SocketAddr) -> Result<String> {
        let (server, from) = self.ask(to)?;
        ensure!(from == to, "asked {to}, answered by {from}");
        Ok(server)
    }
}

/// Sockets that the door remembers in the table of node-a.
fn remembered(world: &World) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&world.node("node-a").lb_agent("get sockets -o json")?)?)
}

/// The datagrams of a socket without a connection go on to their backend while it serves: others come, and it drains. QUIC and
/// the like would break. Then they move, as they do from no endpoint at all to the first one (pitfall 9, thread kubernetes 139628).
#[test]
fn pitfall_9_datagrams_keep_together_until_their_backend_stops_serving() -> Result<()> {
    const SOCKETS: usize = 8;
    let world = world(Options::ALL_SOCKETS, &[])?;
    for from in [node(&world), world.pod("client").namespace()] {
        for family in Family::BOTH {
            serve(&world, &json!({}), &["web-1"])?;
            let sockets: Vec<_> = (0..SOCKETS).map(|_| Loose::new(from, family)).collect::<Result<_>>()?;
            let servers =
                || -> Result<BTreeSet<String>> { sockets.iter().map(|socket| socket.server(inside(family))).collect() };
            ensure!(servers()? == BTreeSet::from(["web-1".to_owned()]));
            serve(&world, &json!({}), &ALL)?;
            ensure!(servers()? == BTreeSet::from(["web-1".to_owned()]), "others have come: {:?}", servers()?);
            let drains = json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
            world.put(world.patched_slices(NAME, &[("web-1", drains), ("web-2", json!({}))]))?;
            wait_to_meet(from, Protocol::Udp, inside(family), &["web-2"])?;
            ensure!(servers()? == BTreeSet::from(["web-1".to_owned()]), "it drains: {:?}", servers()?);
            world.put(world.slices(NAME, &["web-2"]))?;
            wait_until("the sockets having moved", LIMIT, || Ok(servers()? == BTreeSet::from(["web-2".to_owned()])))?;
            world.put(world.slices(NAME, &[]))?;
            wait_until("a refusal", LIMIT, || Ok(sockets[0].ask(inside(family)).is_err()))?;
            let outcome = talk::outcome(Err(sockets[0].ask(inside(family)).expect_err("nobody serves")))?;
            ensure!(outcome == refused(Protocol::Udp), "nobody serves: {outcome:?}");
            serve(&world, &json!({}), &["web-3"])?;
            ensure!(servers()? == BTreeSet::from(["web-3".to_owned()]), "none, then one: {:?}", servers()?);
        }
    }
    Ok(())
}

/// Rule 55: new flows refresh a client's affinity, a socket's further datagrams don't.
#[test]
fn rule_55_datagrams_of_a_socket_refresh_no_affinity() -> Result<()> {
    const TIMEOUT_SECS: u64 = 2;
    let world = world(Options::HOST_SOCKETS, &[])?;
    let affinity = json!({ "spec": {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": TIMEOUT_SECS } },
    } });
    world.put([crate::service::service(&affinity)])?;
    let to = inside(Family::V4);
    let met = || talk::meet(node(&world), Protocol::Udp, to, 6);
    wait_until("one backend for all", LIMIT, || Ok(met()?.len() == 1))?;
    sleep(Duration::from_secs(2 * TIMEOUT_SECS));
    // Without any affinity: Maglev's choice for this client.
    let usual = met()?.into_keys().next().context("nobody")?;
    let other = *ALL.iter().find(|server| **server != usual).context("three servers")?;
    serve(&world, &affinity, &[other])?;
    let socket = Loose::new(node(&world), Family::V4)?;
    ensure!(socket.server(to)? == other);
    world.put(world.slices(NAME, &ALL))?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3 * TIMEOUT_SECS) {
        ensure!(socket.server(to)? == other, "the socket keeps its backend");
        sleep(Duration::from_millis(100));
    }
    let servers = met()?;
    ensure!(servers.keys().eq([&usual]), "{servers:?}: {other} is remembered still, and not {usual}");
    Ok(())
}

/// A UDP socket that is connected to a Service and names it again when it sends stays with its backend: from another one no
/// answer would reach it. It still ends with its backend.
#[test]
fn a_connected_socket_that_names_its_service_again_stays_connected() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for family in Family::BOTH {
        serve(&world, &json!({}), &ALL)?;
        let sockets: Vec<_> = (0..6).map(|_| Loose::new(node(&world), family)).collect::<Result<_>>()?;
        for socket in &sockets {
            node(&world).enter(|| socket.0.connect(inside(family)))??;
            let first = socket.server(inside(family))?;
            for _ in 0..4 {
                ensure!(socket.server(inside(family))? == first, "another backend");
            }
        }
        world.put(world.slices(NAME, &[]))?;
        for socket in &sockets {
            let mut ended = None;
            wait_until("the socket being closed", LIMIT, || {
                ended = socket.0.send(b"who?\n").and_then(|_| socket.0.recv(&mut [0; 256])).err();
                Ok(ended.is_some())
            })?;
            ensure!(ended.as_ref().is_some_and(is_closed), "{ended:?}");
        }
    }
    Ok(())
}

/// What has been closed makes room: a resolver's old socket is not pushed out by short ones, and ends with its backend
/// (pitfall 8, thread cilium 48096). Mapped addresses are no exception.
#[test]
fn pitfall_8_a_long_lived_socket_is_not_forgotten_for_short_ones() -> Result<()> {
    const SHORT: usize = 2_000;
    // Much more than the 128 that a CPU takes, or evicts, at a time before Linux 6.16.
    let world = world(Options::HOST_SOCKETS, &["--max-sockets", "1024"])?;
    let to = inside(Family::V4);
    let mapped = match to {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        SocketAddr::V6(_) => to,
    };
    serve(&world, &json!({}), &["web-1"])?;
    let old: Vec<_> = [(Family::V4, to), (Family::V6, mapped), (Family::V6, inside(Family::V6))]
        .into_iter()
        .map(|(family, to)| {
            let socket = Loose::new(node(&world), family)?;
            node(&world).enter(|| socket.0.connect(to))??;
            Ok(socket)
        })
        .collect::<Result<_>>()?;
    node(&world).enter(|| -> Result<()> {
        for _ in 0..SHORT {
            UdpSocket::bind("0.0.0.0:0")?.connect(to)?;
        }
        for protocol in Protocol::BOTH {
            talk::ask(protocol, localhost(Family::V4), LIMIT)?;
        }
        Ok(())
    })??;
    let connected = remembered(&world)?.into_iter().filter(|row| row["connected"] == true).count();
    ensure!(connected == old.len(), "{connected} sockets are remembered, and {} are open", old.len());
    world.put(world.slices(NAME, &["web-2"]))?;
    for socket in &old {
        let error = socket.0.recv(&mut [0; 256]).expect_err("nothing was asked");
        ensure!(is_closed(&error), "{error}");
    }
    Ok(())
}

/// A socket that goes to a backend's own address after its Service's is shown that, and does not end with the Service's.
#[test]
fn a_socket_that_turns_to_a_backend_itself_is_no_services_any_more() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for family in Family::BOTH {
        serve(&world, &json!({}), &["web-1"])?;
        let direct = SocketAddr::new(world.pod("web-1").address(family), echo_port());
        let loose = Loose::new(node(&world), family)?;
        loose.server(inside(family))?;
        loose.server(direct)?;
        loose.server(inside(family))?;
        let connected = Loose::new(node(&world), family)?;
        node(&world).enter(|| -> Result<()> {
            connected.0.connect(inside(family))?;
            connected.0.connect(direct)?;
            ensure!(connected.0.peer_addr()? == direct, "{:?}", connected.0.peer_addr()?);
            Ok(())
        })??;
        connected.server(direct)?;
        serve(&world, &json!({}), &["web-2"])?;
        // As long as it takes to close those that are to be closed, twice over.
        sleep(Duration::from_secs(1));
        ensure!(connected.server(direct)? == "web-1");
    }
    Ok(())
}

/// The address that the kernel gave a socket when it was connected is none that its application has chosen: affinity goes on
/// taking it for the node's own. Source ranges see it, as its packets bear it.
#[test]
fn an_address_that_connecting_has_chosen_is_the_nodes_to_affinity_and_itself_to_source_ranges() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let address = |family: Family| SocketAddr::new(family.pick("192.0.2.77", "2001:db8::77"), 7);
    let balanced = |ranges: [&str; 2]| {
        let mut object = crate::service::service(&json!({
            "spec": { "type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "sessionAffinity": "ClientIP" },
        }));
        object["status"] = json!({ "loadBalancer": { "ingress": [
            { "ip": address(Family::V4).ip() }, { "ip": address(Family::V6).ip() },
        ] } });
        object
    };
    // Its own pod, by the bridge, whose address is another than the node's first.
    let connect_there = |family: Family| -> Result<Loose> {
        let direct = SocketAddr::new(world.pod("web-1").address(family), echo_port());
        let socket = Loose::new(node(&world), family)?;
        node(&world).enter(|| socket.0.connect(direct))??;
        let chosen = socket.0.local_addr()?.ip();
        ensure!(chosen == family.pick("10.244.1.1", "fd00:244:1::1"), "{chosen}");
        Ok(socket)
    };
    world.put([balanced(["172.20.0.11/32", "fd00:20::11/128"])])?;
    for family in Family::BOTH {
        let met = || talk::meet(node(&world), Protocol::Udp, address(family), 3);
        wait_until("the balancer's address", LIMIT, || Ok(met().is_ok_and(|met| met.len() == 1)))?;
        let usual = met()?.into_keys().next().context("nobody")?;
        let socket = connect_there(family)?;
        node(&world).enter(|| socket.0.connect(address(family)))??;
        let refused = socket.server(address(family)).expect_err("out of range");
        let refused = refused.downcast::<io::Error>()?;
        ensure!(refused.kind() == io::ErrorKind::PermissionDenied, "{refused}");
        node(&world).enter(|| socket.0.connect(inside(family)))??;
        ensure!(socket.server(inside(family))? == usual, "another client than the node");
    }
    world.put([balanced(["10.244.1.1/32", "fd00:244:1::1/128"])])?;
    for family in Family::BOTH {
        wait_until("other ranges", LIMIT, || {
            let socket = connect_there(family)?;
            Ok(node(&world).enter(|| socket.0.connect(address(family)))?.is_ok()
                && socket.server(address(family)).is_ok())
        })?;
    }
    Ok(())
}

/// A socket without a connection keeps its backend only while the address is that Service's.
#[test]
fn an_address_that_a_service_has_no_longer_is_nobodys() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for family in Family::BOTH {
        let external = SocketAddr::new(family.pick("203.0.113.77", "2001:db8:113::77"), 7);
        let with = json!({ "spec": { "externalIPs": [external.ip()] } });
        world.put([crate::service::service(&with)])?;
        wait_to_meet(node(&world), Protocol::Udp, external, &ALL)?;
        let socket = Loose::new(node(&world), family)?;
        socket.server(external)?;
        world.put([crate::service::service(&json!({}))])?;
        socket.0.set_read_timeout(Some(Duration::from_millis(200)))?;
        wait_until("nobody answering there", LIMIT, || Ok(socket.ask(external).is_err()))?;
    }
    Ok(())
}

/// A pod's UDP socket that is connected through the packet doors and names its Service again is left to them: they alone turn the
/// answer back.
#[test]
fn a_pods_connected_socket_that_names_its_service_again_is_left_to_the_packet_doors() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    let client = world.pod("client").namespace();
    for family in Family::BOTH {
        let socket = Loose::new(client, family)?;
        client.enter(|| socket.0.connect(inside(family)))??;
        for _ in 0..6 {
            socket.server(inside(family))?;
        }
    }
    Ok(())
}
