// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows in progress when endpoints come and go, with real clients (rules 43, 58 to 61).

use std::{
    io::ErrorKind,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{Protocol, Talk, talk::Outcome},
    world::{Family, Namespace, Options, World, for_each_kind, objects, wait_for, wait_to_meet, wait_until},
};

const LIMIT: Duration = Duration::from_secs(5);
/// A change is in the maps in far less; the directory's change notices may wait for a quiet moment of 50 ms.
const SOON: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// What becomes of the connections of a backend that goes: the value of the Service's annotation, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnRemoval {
    Reset,
    Keep,
}

impl OnRemoval {
    const BOTH: [Self; 2] = [Self::Reset, Self::Keep];

    fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Keep => "keep",
        }
    }

    fn host(self) -> u8 {
        77 + self as u8
    }

    fn node_port(self) -> u16 {
        30_077 + self as u16
    }

    fn service(self) -> Value {
        let patch = json!({
            "metadata": { "annotations": { "shunt.dev/on-backend-removal": self.name() } },
            "spec": { "type": "NodePort", "ports": objects::ports(Some(self.node_port())) },
        });
        objects::service(self.name(), self.host(), &patch)
    }

    /// The ways to the Service that are translated differently: a pod's, and an outside client's by the node of the backend
    /// `web-1`, and by the other one.
    fn ways(self, world: &World, family: Family) -> [(&Namespace, SocketAddr); 3] {
        let at = |node| SocketAddr::new(world.node(node).address(family), self.node_port());
        let inside = (world.pod("client").namespace(), objects::cluster_ip(self.host(), family));
        [inside, (world.outside(), at("node-a")), (world.outside(), at("node-b"))]
    }

    /// An established connection to `web-1` by each way.
    fn connect(self, world: &World) -> Result<Vec<(SocketAddr, Talk)>> {
        let mut talks = Vec::new();
        for (from, to) in Family::BOTH.iter().flat_map(|family| self.ways(world, *family)) {
            let mut talk = from.enter(|| Talk::begin(Protocol::Tcp, to, LIMIT))??;
            ensure!(talk.ask()?.server == "web-1");
            talks.push((to, talk));
        }
        Ok(talks)
    }
}

/// Makes these pods the endpoints of Services, and waits until just they answer new flows, by all ways.
fn serve(world: &World, services: &[OnRemoval], pods: &[&str]) -> Result<()> {
    for service in services {
        world.put(world.slices(service.name(), pods))?;
    }
    for_each_kind(|protocol, family| {
        for (from, to) in services.iter().flat_map(|service| service.ways(world, family)) {
            match pods {
                [] => wait_for(from, protocol, to, &Outcome::Refused)?,
                _ => wait_to_meet(from, protocol, to, pods)?,
            }
        }
        Ok(())
    })
}

/// A Service can have its clients told at once that their backend has gone; without that they keep it for as long as it
/// answers (rule 58), even where nothing serves new ones (rule 43).
fn established_connections(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    world.put(OnRemoval::BOTH.map(OnRemoval::service))?;
    for successors in [&["web-2"][..], &[]] {
        serve(&world, &OnRemoval::BOTH, &["web-1"])?;
        let [reset, kept] = [OnRemoval::Reset.connect(&world)?, OnRemoval::Keep.connect(&world)?];
        serve(&world, &OnRemoval::BOTH, successors)?;
        for (to, mut talk) in reset {
            let error = talk.ask().err().map(|error| error.kind());
            ensure!(error == Some(ErrorKind::ConnectionReset), "{to}, then {successors:?}: {error:?}");
        }
        for (to, mut talk) in kept {
            for _ in 0..3 {
                ensure!(talk.ask()?.server == "web-1", "{to}, then {successors:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn rules_43_58_backends_that_go_reset_their_connections_or_keep_them_by_tc() -> Result<()> {
    established_connections(Options::TC)
}

#[test]
fn rules_43_58_backends_that_go_reset_their_connections_or_keep_them_with_xdp() -> Result<()> {
    established_connections(Options::XDP)
}

/// Asks on one flow, every few milliseconds, until that server answers; returns how long it took.
fn time_until(talk: &mut Talk, server: &str) -> Result<Duration> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        // Refusals are what it is about.
        if talk.ask().is_ok_and(|answer| answer.server == server) {
            return Ok(start.elapsed());
        }
        sleep(PAUSE);
    }
    anyhow::bail!("{server} has not answered within {LIMIT:?}")
}

/// UDP clients that keep their source port: they began before there was a Service or an endpoint, and follow their Service
/// to its first endpoint, from one to the next, and back. Threads kubernetes 126130 and 139628, cilium 12859.
fn udp_clients_that_keep_their_port(options: Options) -> Result<()> {
    const SERVICE: OnRemoval = OnRemoval::Keep;
    let world = World::with_echoes(options, &[])?;
    let mut talks = Vec::new();
    for family in Family::BOTH {
        for (from, to) in SERVICE.ways(&world, family) {
            let mut talk = from.enter(|| Talk::begin(Protocol::Udp, to, PAUSE))??;
            ensure!(talk.ask().is_err(), "{to} answers already");
            talks.push((to, talk));
        }
    }
    // A Service without endpoints: refused.
    world.put([SERVICE.service()])?;
    serve(&world, &[SERVICE], &[])?;
    for (to, talk) in &mut talks {
        wait_until("the refusal", LIMIT, || {
            Ok(talk.ask().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
        })?;
        for _ in 0..5 {
            ensure!(talk.ask().is_err(), "{to} answers without endpoints");
            sleep(PAUSE);
        }
    }
    let mut slowest = Duration::ZERO;
    for server in ["web-1", "web-2", "web-3", "web-1"] {
        world.put(world.slices(SERVICE.name(), &[server]))?;
        let start = Instant::now();
        for (to, talk) in &mut talks {
            time_until(talk, server).map_err(|error| error.context(*to))?;
        }
        slowest = slowest.max(start.elapsed());
    }
    println!("the last of {} UDP clients followed after {slowest:?}", talks.len());
    ensure!(slowest < SOON, "the last UDP client followed after {slowest:?}");
    // Where one endpoint of two stops to serve, who had the other one keeps it.
    world.put(world.slices(SERVICE.name(), &["web-1", "web-2"]))?;
    for_each_kind(|protocol, family| {
        SERVICE
            .ways(&world, family)
            .into_iter()
            .try_for_each(|(from, to)| wait_to_meet(from, protocol, to, &["web-1", "web-2"]))
    })?;
    for (to, talk) in &mut talks {
        let mut answer = talk.ask();
        // The server may take longer than a talk waits.
        wait_until("an answer", LIMIT, || {
            if answer.is_err() {
                answer = talk.ask();
            }
            Ok(answer.is_ok())
        })?;
        ensure!(answer?.server == "web-1", "{to} has left its backend");
    }
    serve(&world, &[SERVICE], &[])?;
    for (to, talk) in &mut talks {
        // Late answers to what was asked before.
        while talk.hear().is_ok() {}
        ensure!(talk.ask().is_err(), "{to} is served by what has gone");
    }
    Ok(())
}

#[test]
fn rule_61_pitfall_9_udp_clients_that_keep_their_port_follow_their_service_by_tc() -> Result<()> {
    udp_clients_that_keep_their_port(Options::TC)
}

#[test]
fn rule_61_pitfall_9_udp_clients_that_keep_their_port_follow_their_service_with_xdp() -> Result<()> {
    udp_clients_that_keep_their_port(Options::XDP)
}
