// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers to what a node has sent itself, or for a pod behind its own address, from a port that is a NodePort, too.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, Talk},
    world::{Echo, Family, Namespace, Node, Options, World, echo_port, objects, wait_to_meet},
};

const NAME: &str = "shop";
const HOST: u8 = 81;
const LIMIT: Duration = Duration::from_secs(5);
/// Services, each with a NodePort of its own.
const COUNT: u8 = 3;
/// NodePorts from here on.
const NODE_PORT: u16 = 30_081;

/// Who talks to a server outside, and from which NodePort.
struct Client<'a> {
    namespace: &'a Namespace,
    from: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
    node_port: SocketAddr,
}

impl Client<'_> {
    fn begin(&self) -> Result<Talk> {
        let talk = self.namespace.enter(|| Talk::begin_at(self.protocol, self.from, self.to, LIMIT))?;
        talk.with_context(|| format!("{:?} from {} by way of {}", self.protocol, self.from, self.node_port))
    }

    fn ask(&self, talk: &mut Talk, when: &str) -> Result<()> {
        for _ in 0..3 {
            let answer = talk.ask().with_context(|| {
                format!("{:?} from {} by way of {}, {when}", self.protocol, self.from, self.node_port)
            })?;
            ensure!(answer.server == "outside" && answer.client == self.node_port, "{when}: {answer:?}");
        }
        Ok(())
    }
}

fn put_services(world: &World) -> Result<()> {
    for number in 0..COUNT {
        let ports = objects::ports(Some(NODE_PORT + u16::from(number)));
        let name = format!("{NAME}-{number}");
        let spec = json!({ "type": "NodePort", "ports": ports });
        world.put([objects::service(&name, HOST + number, &json!({ "spec": spec }))])?;
        world.put(world.slices(&name, &["web-1"]))?;
    }
    for number in 0..COUNT {
        for (protocol, family) in shunt_tests::world::kinds() {
            let to = SocketAddr::new(world.node("node-a").address(family), NODE_PORT + u16::from(number));
            wait_to_meet(world.outside(), protocol, to, &["web-1"])?;
        }
    }
    Ok(())
}

/// Hides pods behind the node, each by a NodePort, as a rule of netfilter may that chooses ports at random.
fn masquerade(node: &Node, pods: &[(IpAddr, u16)]) -> Result<()> {
    let rules: String = pods
        .iter()
        .map(|(pod, port)| {
            let family = if pod.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} saddr {pod} oifname eth0 meta l4proto {{ tcp, udp }} masquerade to :{port};")
        })
        .collect();
    let chain = "chain post { type nat hook postrouting priority srcnat; policy accept;";
    node.namespace().run("nft", &[&format!("table inet hide {{ {chain} {rules} }}; }}")]).map(drop)
}

/// Threads cilium 44348, 10261, 34041, kubernetes 139276: a process of the node, and pods that netfilter hides behind it, talk to a
/// server outside from a port that becomes a NodePort.
fn connections_go_on(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    let _echo = Echo::start(world.outside(), "outside")?;
    let node = world.node("node-a");
    let mut hidden = Vec::new();
    let mut clients = Vec::new();
    for (protocol, family) in shunt_tests::world::kinds() {
        let any = family.pick("0.0.0.0", "::");
        let to = SocketAddr::new(world.outside_address(family), echo_port());
        let at_node = |number: u16| SocketAddr::new(node.address(family), NODE_PORT + number);
        clients.push(Client { namespace: node.namespace(), from: at_node(0), to, protocol, node_port: at_node(0) });
        for (number, pod) in [(1, "client"), (2, "caller")] {
            let namespace = world.pod(pod).namespace();
            let from = SocketAddr::new(any, 0);
            clients.push(Client { namespace, from, to, protocol, node_port: at_node(number) });
            hidden.push((world.pod(pod).address(family), NODE_PORT + number));
        }
    }
    hidden.sort_unstable();
    hidden.dedup();
    masquerade(node, &hidden)?;
    let mut talks = Vec::new();
    for client in &clients {
        let mut talk = client.begin()?;
        client.ask(&mut talk, "before there is a Service")?;
        talks.push(talk);
    }
    put_services(&world)?;
    for (client, talk) in clients.iter().zip(&mut talks) {
        client.ask(talk, "beside the Service")?;
    }
    Ok(())
}

#[test]
fn pitfall_28_connections_of_the_node_from_before_the_service_go_on_by_tc() -> Result<()> {
    connections_go_on(Options::TC)
}

#[test]
fn pitfall_28_connections_of_the_node_from_before_the_service_go_on_with_xdp() -> Result<()> {
    connections_go_on(Options::XDP)
}

/// The same for connections that begin beside the Service.
fn connections_begin(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    let _echo = Echo::start(world.outside(), "outside")?;
    put_services(&world)?;
    let node = world.node("node-a");
    let hidden: Vec<_> =
        Family::BOTH.map(|family| (world.pod("client").address(family), NODE_PORT + 1)).into_iter().collect();
    masquerade(node, &hidden)?;
    for (protocol, family) in shunt_tests::world::kinds() {
        let to = SocketAddr::new(world.outside_address(family), echo_port());
        let at_node = |number: u16| SocketAddr::new(node.address(family), NODE_PORT + number);
        let any = SocketAddr::new(family.pick("0.0.0.0", "::"), 0);
        for (namespace, from, node_port) in
            [(node.namespace(), at_node(0), at_node(0)), (world.pod("client").namespace(), any, at_node(1))]
        {
            let client = Client { namespace, from, to, protocol, node_port };
            let mut talk = client.begin()?;
            client.ask(&mut talk, "beside the Service")?;
        }
        // Clients of the Service are served as before.
        wait_to_meet(world.outside(), protocol, at_node(0), &["web-1"])?;
    }
    Ok(())
}

#[test]
fn pitfall_28_the_node_connects_from_a_node_port_by_tc() -> Result<()> {
    connections_begin(Options::TC)
}

#[test]
fn pitfall_28_the_node_connects_from_a_node_port_with_xdp() -> Result<()> {
    connections_begin(Options::XDP)
}
