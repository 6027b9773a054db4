// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Services that these tests are about, the ways to them, and flows by these ways.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{Protocol, Talk, talk::Answer},
    world::{Family, Namespace, World, objects, wait_to_meet},
};

pub const NAME: &str = "shop";
pub const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];
pub const LIMIT: Duration = Duration::from_secs(10);
/// For an answer. A datagram that is lost fails its flow after this.
const PATIENCE: Duration = Duration::from_secs(3);
const HOST: u8 = 61;
const NODE_PORT: u16 = 30_061;

/// One of several Services, with a patch of its spec.
pub fn service(name: &str, number: u8, patch: &Value) -> Value {
    let mut spec = json!({ "type": "NodePort", "ports": objects::ports(Some(node_port(number))) });
    objects::merge(&mut spec, patch);
    objects::service(name, HOST + number, &json!({ "spec": spec }))
}

pub fn node_port(number: u8) -> u16 {
    NODE_PORT + u16::from(number)
}

/// The ways to `web-1` that are translated differently: from its own node and from another, from outside by its node and by
/// another.
pub fn ways(world: &World, number: u8, family: Family) -> [(&Namespace, SocketAddr); 4] {
    let at = |node| SocketAddr::new(world.node(node).address(family), node_port(number));
    let inside = objects::cluster_ip(HOST + number, family);
    let [here, there] = ["client", "web-3"].map(|pod| world.pod(pod).namespace());
    [(here, inside), (there, inside), (world.outside(), at("node-a")), (world.outside(), at("node-b"))]
}

/// Waits until new flows by all ways meet just these pods.
pub fn wait_to_meet_by_all_ways(world: &World, number: u8, pods: &[&str]) -> Result<()> {
    shunt_tests::world::for_each_kind(|protocol, family| {
        ways(world, number, family).into_iter().try_for_each(|(from, to)| wait_to_meet(from, protocol, to, pods))
    })
}

/// A flow, and who answered whom when it began.
pub struct Flow {
    to: SocketAddr,
    protocol: Protocol,
    first: Answer,
    talk: Talk,
}

impl Flow {
    /// Begins one, and speaks twice: then it has grown up.
    pub fn begin(from: &Namespace, protocol: Protocol, to: SocketAddr) -> Result<Self> {
        let mut talk = from.enter(|| Talk::begin(protocol, to, PATIENCE))??;
        let first = talk.ask()?;
        let flow = Self { to, protocol, first, talk };
        flow.checked()
    }

    fn checked(mut self) -> Result<Self> {
        self.is_the_same()?;
        Ok(self)
    }

    /// That the same server answers, and sees the same client.
    pub fn is_the_same(&mut self) -> Result<()> {
        let answer = self.ask().with_context(|| format!("{:?} to {}", self.protocol, self.to))?;
        ensure!(answer == self.first, "{:?} to {}: {:?}, then {answer:?}", self.protocol, self.to, self.first);
        Ok(())
    }

    /// Who answers now.
    pub fn ask(&mut self) -> io::Result<Answer> {
        self.talk.ask()
    }
}

/// So many flows by every way, both families.
pub fn begin(world: &World, number: u8, protocol: Protocol, count: usize) -> Result<Vec<Flow>> {
    let ways = Family::BOTH.into_iter().flat_map(|family| ways(world, number, family));
    ways.flat_map(|way| (0..count).map(move |_| way)).map(|(from, to)| Flow::begin(from, protocol, to)).collect()
}
