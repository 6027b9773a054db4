// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets of all sizes, by real stacks: path-MTU discovery and fragments through every kind of translation (rule 64), with
//! captures in which every checksum must be right.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, Talk, http},
    world::{Captures, Family, Far, Namespace, Options, World, kinds, objects, wait_to_meet, wait_until},
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

/// Captures on the links of all who take part.
fn captures(far: &Far, world: &World) -> Result<Captures> {
    world.capture(&[(world.switch(), "sw-router"), (far.client(), "eth0")])
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

/// Threads cilium 47755, 46993 and 12968: large transfers over a narrower way in the middle, in both directions.
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
    let ends = ["client", "caller", "web-1", "web-2", "web-3", "far"];
    let is_end = |place: &&(String, String)| ends.iter().any(|end| place.0.ends_with(&format!("-{end}")));
    for (place, packets) in captures.finish()?.iter().filter(is_end) {
        // Whoever sends large packets is told.
        for error in [format!("need to frag (mtu {MTU})"), format!("packet too big, mtu {MTU}")] {
            ensure!(packets.contains(&error), "{place} has seen no \"{error}\"");
        }
    }
    Ok(())
}

#[test]
fn rule_64_pitfall_10_large_transfers_learn_the_mtu_of_the_way_by_tc() -> Result<()> {
    large_transfers(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_pitfall_10_large_transfers_learn_the_mtu_of_the_way_with_xdp() -> Result<()> {
    large_transfers(Options::XDP)
}

/// Threads cilium 32601 and 48784: datagrams that take several packets, and back.
fn large_datagrams(options: Options) -> Result<()> {
    let (far, world) = world(options)?;
    let captures = captures(&far, &world)?;
    by_every_way(&far, &world, Protocol::Udp, &|from, _, to| {
        let mut talk = from.enter(|| Talk::begin(Protocol::Udp, to, PATIENCE))??;
        for length in [1_000, 8 << 10, 60_000] {
            // IPv6 routers cut nothing: by the loss of a datagram each side learns how to.
            wait_until(&format!("{length} bytes coming back twice"), LIMIT, || {
                Ok(talk.exchange(length).is_ok() && talk.exchange(length).is_ok())
            })?;
        }
        Ok(())
    })?;
    captures.finish().map(drop)
}

#[test]
fn rule_64_pitfall_11_datagrams_of_many_fragments_arrive_whole_by_tc() -> Result<()> {
    large_datagrams(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_pitfall_11_datagrams_of_many_fragments_arrive_whole_with_xdp() -> Result<()> {
    large_datagrams(Options::XDP)
}

/// Behind node-a, on the way to the backends, and from there back to the client: each is told just its own.
const FORTH: u16 = 1400;
const BACK: u16 = 1300;
/// Larger than both, and with all headers smaller than the links' own.
const LENGTH: usize = 1_400;

/// Packets that node-a's agent has counted as too big.
fn too_big(world: &World) -> Result<u64> {
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let answer = world.node("node-a").namespace().enter(|| http::get(metrics, "/metrics", LIMIT))??;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("shunt_reasons_total{reason=\"too-big\"} "));
    line.context("no such counter")?.trim().parse().context("no number")
}

/// A node that sends on to another one what it has translated is the only one who can say that the way behind it is too narrow:
/// the kernel's own forwarding never sees such packets, nor their answers.
fn own_errors(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    let node = world.node("node-a");
    for family in Family::BOTH {
        let bits = family.bits();
        let narrow = |to: IpAddr, way: &str, mtu| format!("route replace {to}/{bits} {way} mtu lock {mtu}\n");
        let way = format!("via {}", world.node("node-b").address(family));
        let forth = ["web-2", "web-3"].map(|pod| narrow(world.pod(pod).address(family), &way, FORTH));
        let back = narrow(world.outside_address(family), "dev eth0", BACK);
        node.namespace().ip(&format!("{}{back}", forth.concat()))?;
    }
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    world.put([objects::service("shop", HOST, &json!({ "spec": spec }))])?;
    let captures = world.capture(&[])?;
    let outside = world.outside();
    for pod in ["web-2", "web-3"] {
        world.put(world.slices("shop", &[pod]))?;
        let server = world.pod(pod).namespace();
        for (protocol, family) in kinds() {
            let to = SocketAddr::new(node.address(family), NODE_PORT);
            wait_to_meet(outside, protocol, to, &[pod])?;
            let before = too_big(&world)?;
            let begin = || outside.enter(|| Talk::begin(protocol, to, LIMIT))?.map_err(anyhow::Error::from);
            let transfer = || -> Result<()> {
                if protocol == Protocol::Udp {
                    let mut talk = outside.enter(|| Talk::begin(protocol, to, PATIENCE))??;
                    return wait_until("a datagram coming back twice", LIMIT, || {
                        Ok(talk.exchange(LENGTH).is_ok() && talk.exchange(LENGTH).is_ok())
                    });
                }
                forget(outside, server)?;
                begin()?.upload(BYTES).context("upload")?;
                forget(outside, server)?;
                begin()?.download(BYTES).context("download")
            };
            forget(outside, server)?;
            transfer().with_context(|| format!("{protocol:?} to {pod} by {to}"))?;
            let told = too_big(&world)? - before;
            ensure!(told >= 2, "{protocol:?} to {pod} by {to}: node-a has told of {told} packets");
        }
    }
    let texts = captures.finish()?;
    for (end, mtu) in [("outside", FORTH), ("web-2", BACK), ("web-3", BACK)] {
        let place = texts.iter().find(|(place, _)| place.ends_with(&format!("-{end}")));
        let (place, packets) = place.context("a capture")?;
        for error in [format!("need to frag (mtu {mtu})"), format!("packet too big, mtu {mtu}")] {
            ensure!(packets.contains(&error), "{place} has seen no \"{error}\"");
        }
    }
    Ok(())
}

#[test]
fn rule_64_pitfall_10_a_node_tells_of_the_narrow_way_behind_it_by_tc() -> Result<()> {
    own_errors(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn rule_64_pitfall_10_a_node_tells_of_the_narrow_way_behind_it_with_xdp() -> Result<()> {
    own_errors(Options::XDP)
}
