// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets of all sizes, by real stacks: path-MTU discovery and fragments through every kind of translation (rule 64), with
//! captures in which every checksum must be right.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, Talk},
    world::{Capture, Family, Far, Namespace, Options, World, objects, wait_to_meet, wait_until},
};

const HOST: u8 = 84;
const NODE_PORT: u16 = 30_084;
const LIMIT: Duration = Duration::from_secs(10);
/// For a datagram and its answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of the ways in the middle; the links have 1500.
const MTU: u16 = 1300;
/// Enough for a window of full-sized packets.
const BYTES: usize = 100_000;

/// Each pod is the only endpoint of a Service of its own, so that a way is always the same.
const BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];

/// A world with narrow ways, the client far away, and the Services.
fn world(options: Options) -> Result<(Far, World)> {
    let world = World::with_echoes(options, &[])?;
    let far = Far::build(&world, MTU)?;
    world.narrow_ways(MTU)?;
    for (number, pod) in (0..).zip(BACKENDS) {
        let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT + u16::from(number))) });
        let service = objects::service(pod, HOST + number, &json!({ "spec": spec }));
        world.put([service].into_iter().chain(world.slices(pod, &[pod])))?;
    }
    Ok((far, world))
}

/// The ways to a pod: a pod's by the ClusterIP, on the same node and on the other one or not; from far away by the node of
/// the backend and by the other one.
fn ways<'a>(far: &'a Far, world: &'a World, number: u8, family: Family) -> [(&'a Namespace, SocketAddr); 4] {
    let at = |node| SocketAddr::new(world.node(node).address(family), NODE_PORT + u16::from(number));
    let inside = objects::cluster_ip(HOST + number, family);
    let [client, caller] = ["client", "caller"].map(|pod| world.pod(pod).namespace());
    [(client, inside), (caller, inside), (far.client(), at("node-a")), (far.client(), at("node-b"))]
}

/// Lets a client and a server forget what they have learnt about the ways.
fn forget(client: &Namespace, server: &Namespace) -> Result<()> {
    for namespace in [client, server] {
        for family in ["-4", "-6"] {
            namespace.run("ip", &[family, "route", "flush", "cache"])?;
        }
    }
    Ok(())
}

/// The pods whose links are captured; the switch's ports to both nodes and to the router, and the far client's link, are too.
const PODS: [&str; 5] = ["client", "caller", "web-1", "web-2", "web-3"];

/// Captures on the links of all who take part.
fn captures(far: &Far, world: &World) -> Result<Vec<(String, Capture)>> {
    let pods = PODS.map(|pod| (world.pod(pod).namespace(), "eth0"));
    let ports = ["sw-node-a", "sw-node-b", "sw-router"].map(|port| (world.switch(), port));
    let places = pods.into_iter().chain(ports).chain([(far.client(), "eth0")]);
    let start = |(place, interface): (&Namespace, &str)| {
        let capture = Capture::start(world.site(), place, interface, "ip or ip6")?;
        Ok((format!("{interface} in {}", place.name()), capture))
    };
    places.map(start).collect()
}

/// Does something by every way, both families.
fn by_every_way(
    far: &Far,
    world: &World,
    protocol: Protocol,
    body: &dyn Fn(&Namespace, &Namespace, SocketAddr) -> Result<()>,
) -> Result<()> {
    for family in Family::BOTH {
        for (number, pod) in (0..).zip(BACKENDS) {
            for (from, to) in ways(far, world, number, family) {
                wait_to_meet(from, protocol, to, &[pod])?;
                forget(from, world.pod(pod).namespace())?;
                body(from, world.pod(pod).namespace(), to)
                    .with_context(|| format!("{} to {pod} by {to}", from.name()))?;
            }
        }
    }
    Ok(())
}

/// Large transfers over a narrower way in the middle, in both directions.
fn large_transfers(options: Options) -> Result<()> {
    let (far, world) = world(options)?;
    let captures = captures(&far, &world)?;
    by_every_way(&far, &world, Protocol::Tcp, &|from, server, to| {
        let begin = || from.enter(|| Talk::begin(Protocol::Tcp, to, LIMIT))?.map_err(anyhow::Error::from);
        begin()?.upload(BYTES).context("upload")?;
        // What the server has learnt it tells the client, who would then send nothing that is too large.
        forget(from, server)?;
        begin()?.download(BYTES).context("download")?;
        Ok(())
    })?;
    for (place, capture) in captures {
        let packets = capture.finish()?;
        // Whoever sends large packets is told.
        for error in [format!("need to frag (mtu {MTU})"), format!("packet too big, mtu {MTU}")] {
            ensure!(packets.contains(&error), "{place} has seen no \"{error}\"");
        }
    }
    Ok(())
}

#[test]
fn rule_64_large_transfers_learn_the_mtu_of_the_way_by_tc() -> Result<()> {
    large_transfers(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_large_transfers_learn_the_mtu_of_the_way_with_xdp() -> Result<()> {
    large_transfers(Options::XDP)
}

/// Datagrams that take several packets, and back.
fn large_datagrams(options: Options) -> Result<()> {
    let (far, world) = world(options)?;
    let captures = captures(&far, &world)?;
    by_every_way(&far, &world, Protocol::Udp, &|from, _, to| {
        let mut talk = from.enter(|| Talk::begin(Protocol::Udp, to, PATIENCE))??;
        for length in [1_000, 8 << 10, 60_000] {
            // IPv6 routers cut nothing: by the loss of a datagram each side learns how to.
            wait_until(&format!("{length} bytes coming back"), LIMIT, || Ok(talk.exchange(length).is_ok()))?;
            talk.exchange(length).with_context(|| format!("{length} bytes"))?;
        }
        Ok(())
    })?;
    captures.into_iter().try_for_each(|(place, capture)| capture.finish().map(drop).context(place))
}

#[test]
fn rule_64_datagrams_of_many_fragments_arrive_whole_by_tc() -> Result<()> {
    large_datagrams(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_datagrams_of_many_fragments_arrive_whole_with_xdp() -> Result<()> {
    large_datagrams(Options::XDP)
}
