// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where nothing serves, clients are told at once.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::talk::{self, Outcome, Protocol},
    world::{
        Echo, Family, Namespace, Options, Sockets, World, echo_port, for_each_kind, is_quick, objects, sample,
        wait_for, wait_to_meet, wait_until,
    },
};

const LIMIT: Duration = Duration::from_secs(5);
/// Part of an address that no Service has.
const NOBODYS: u8 = 200;
/// Well below the second after which TCP tries again.
const AT_ONCE: Duration = Duration::from_millis(500);
/// The kernel's IPv6 TCP overlooks an ICMP error that comes while `connect` still holds the socket, as it does in a world
/// on one machine, where everything happens within the sending of the SYN. It is the same with netfilter's REJECT. So
/// here the second SYN's error counts.
const AT_ONCE_TCP_V6: Duration = Duration::from_millis(1500);

fn refuses_tcp(from: &Namespace, to: SocketAddr) -> Result<()> {
    let limit = if to.is_ipv4() { AT_ONCE } else { AT_ONCE_TCP_V6 };
    is_quick(limit, || {
        let error = from.enter(|| TcpStream::connect_timeout(&to, LIMIT).err())?.context("a connection to nothing")?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{to}: {error}");
        Ok(())
    })
}

fn refuses_udp(from: &Namespace, to: SocketAddr) -> Result<()> {
    let error = from.enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(AT_ONCE))?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 16])
    })?;
    let error = error.err().context("an answer from nothing")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{to}: {error}");
    Ok(())
}

/// Rule 40: no endpoint anywhere means ICMP port-unreachable, for TCP and UDP, on every frontend.
fn no_endpoints(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    world.route_web_to(&[])?;
    // Fewer than the kernel and Shunt limit their rejects to, per peer and second.
    for family in Family::BOTH {
        for client in ["client", "caller"] {
            refuses_tcp(world.pod(client).namespace(), sample::web(family))?;
        }
        refuses_tcp(world.outside(), sample::web_at(world.node("node-a").address(family)))?;
    }
    Ok(())
}

#[test]
fn rule_40_no_endpoints_are_refused_at_once_by_tc() -> Result<()> {
    no_endpoints(Options::TC)
}

#[test]
fn rule_40_no_endpoints_are_refused_at_once_with_xdp() -> Result<()> {
    no_endpoints(Options::XDP)
}

/// The same for UDP, with a Service of its own.
#[test]
fn rule_40_udp_is_refused_too() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    world.apply("nothing.yaml", NOTHING)?;
    for family in Family::BOTH {
        let address = SocketAddr::new(family.pick("10.96.0.99", "fd00:96::99"), 99);
        for client in ["client", "caller"].map(|pod| world.pod(pod).namespace()) {
            wait_until("the Service being refused", LIMIT, || Ok(refuses_udp(client, address).is_ok()))?;
        }
    }
    Ok(())
}

const NOTHING: &str = "
apiVersion: v1
kind: Service
metadata: { name: nothing, namespace: default }
spec:
  type: ClusterIP
  ipFamilies: [IPv4, IPv6]
  clusterIP: 10.96.0.99
  clusterIPs: [10.96.0.99, 'fd00:96::99']
  ports: [{ name: discard, protocol: UDP, port: 99 }]
";

/// Section N on rule 44: an undefined port of an active ClusterIP is refused, of either protocol.
#[test]
fn rule_44_undefined_port_is_refused() -> Result<()> {
    let world = World::with_echoes(Options::TC, &[])?;
    for_each_kind(|protocol, family| {
        for pod in ["client", "caller"] {
            let to = SocketAddr::new(sample::web(family).ip(), 81);
            let outcome = talk::attempt(world.pod(pod).namespace(), protocol, to)?;
            ensure!(outcome == Outcome::Refused, "{pod}: {outcome:?}");
        }
        Ok(())
    })
}

/// An address of a ServiceCIDR that no Service has.
fn stray(family: Family) -> SocketAddr {
    SocketAddr::new(objects::cluster_ip(NOBODYS, family).ip(), echo_port())
}

/// Whoever is at the end of the default route has that address, and answers there.
fn answer_outside(world: &World) -> Result<Echo> {
    let echo = Echo::start(world.outside(), "outside")?;
    for family in Family::BOTH {
        let (node, pods) = (world.node("node-a"), family.pick("10.244.1.0", "fd00:244:1::"));
        let length = if family == Family::V4 { 24 } else { 64 };
        node.namespace().ip(&format!("route add default via {}", world.outside_address(family)))?;
        world.outside().ip(&format!(
            "addr add {stray}/{bits} dev eth0 {at_once}\n\
             route add {pods}/{length} via {node} src {stray}\n\
             route add {node}/{bits} dev eth0 src {stray}",
            bits = family.bits(),
            at_once = if family == Family::V6 { "nodad" } else { "" },
            node = node.address(family),
            stray = stray(family).ip()
        ))?;
    }
    Ok(echo)
}

fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": ["10.96.0.0/16", "fd00:96::/112"] },
    })
}

/// Rules 6 and 44: what is sent to an address of a ServiceCIDR that no Service has is dropped, instead of leaving the node by
/// its default route, be it a pod's or a process's of the node; the range comes and goes, and a Service takes the address.
#[test]
fn rules_6_44_addresses_of_a_service_cidr_that_nobody_has_are_dropped() -> Result<()> {
    let world = World::with_echoes(Options::HOST_SOCKETS, &[])?;
    let _echo = answer_outside(&world)?;
    let (client, node) = (world.pod("client").namespace(), world.node("node-a").namespace());
    let all_see = |wanted: &Outcome| {
        for_each_kind(|protocol, family| {
            wait_for(client, protocol, stray(family), wanted)?;
            if *wanted != Outcome::Silence {
                return wait_for(node, protocol, stray(family), wanted);
            }
            // A process hears at once that its packets get nowhere.
            wait_until("a process of the node hearing an error", LIMIT, || {
                Ok(node.enter(|| talk::ask(protocol, stray(family), AT_ONCE))?.is_err())
            })
        })
    };
    all_see(&Outcome::Answered("outside".to_owned()))?;
    world.put([service_cidr()])?;
    all_see(&Outcome::Silence)?;
    // The range's Services are there as before, and others at once.
    world.serves()?;
    world.put([objects::service("new", NOBODYS, &json!({}))].into_iter().chain(world.slices("new", &["web-2"])))?;
    for_each_kind(|protocol, family| {
        let to = objects::cluster_ip(NOBODYS, family);
        wait_to_meet(client, protocol, to, &["web-2"])?;
        wait_to_meet(node, protocol, to, &["web-2"])
    })?;
    world.take_away([objects::service("new", NOBODYS, &json!({}))])?;
    all_see(&Outcome::Silence)?;
    world.take_away([service_cidr()])?;
    all_see(&Outcome::Answered("outside".to_owned()))
}

/// Rule 44: without a socket door the node's own processes reach Services by whoever comes after the look-up of a route, such
/// as kube-proxy's rules. A route that drops the range would end that.
#[test]
fn rule_44_without_a_socket_door_the_nodes_own_processes_find_a_route() -> Result<()> {
    let mut world = World::with_echoes(Options::HOST_SOCKETS, &[])?;
    let _echo = answer_outside(&world)?;
    world.put([service_cidr()])?;
    let outside = Outcome::Answered("outside".to_owned());
    for_each_kind(|protocol, family| {
        wait_for(world.pod("client").namespace(), protocol, stray(family), &Outcome::Silence)
    })?;
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
        node.set_sockets(Sockets::Off);
    }
    world.start_agents()?;
    let node = world.node("node-a").namespace();
    for family in Family::BOTH {
        wait_for(node, Protocol::Tcp, stray(family), &outside)?;
    }
    let routes = node.run("ip", &["route", "show", "protocol", "83"])?;
    ensure!(routes.is_empty(), "{routes}");
    Ok(())
}
