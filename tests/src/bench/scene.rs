// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world in which ways to a server are compared.
//!
//! ```text
//!   outside ─┬─ node-a: Shunt      client-a, server-a     Services in 10.96.0.0/12
//!            └─ node-b: nftables   client-b, server-b     Services in 10.112.0.0/12
//! ```
//!
//! The floor is the same client and server without a Service between them. Pods are routed, so that a
//! packet passes the node's stack on every way alike. Sockets inside a node's cgroup pass the socket door, those outside of
//! it the packet doors.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    chart::Shall,
    nftables::{self, Rule},
};
use crate::world::{Echo, Family, LinkKind, Namespace, Options, Process, World, echo_port, http_port, wait_until};

const SERVICE_LIMIT: Duration = Duration::from_secs(120);
/// Endpoints of a Service that is only there.
const ENDPOINTS: u32 = 3;
/// Of the Service that is measured, within both ranges.
const HOST: u32 = 9;
const FIRST_FILLER: u32 = 256;
const SHUNT_RANGE: u32 = 0x0a60_0000;
const NFTABLES_RANGE: u32 = 0x0a70_0000;
/// Of the Service whose endpoint is on the node that is asked, and of the one whose endpoint is on the other.
const NODE_PORTS: [u16; 2] = [30_090, 30_190];

/// What a server does, and so at which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// nginx.
    Web,
    /// `iperf3 -s`.
    Iperf,
    /// An echo server by UDP.
    Echo,
}

impl Place {
    const ALL: [Self; 3] = [Self::Web, Self::Iperf, Self::Echo];

    fn server_port(self) -> u16 {
        match self {
            Self::Web => http_port(),
            Self::Iperf => 5201,
            Self::Echo => echo_port(),
        }
    }

    const fn service_port(self) -> u16 {
        match self {
            Self::Web => 80,
            // iperf3 takes one port for everything.
            Self::Iperf => 5201,
            Self::Echo => 7,
        }
    }

    const fn protocol(self) -> &'static str {
        match self {
            Self::Web | Self::Iperf => "tcp",
            Self::Echo => "udp",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Iperf => "iperf",
            Self::Echo => "echo",
        }
    }

    const fn offset(self) -> u16 {
        self as u16
    }
}

/// How a client gets to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On Shunt's node, without a Service: the floor of all.
    DirectA,
    /// The same, by a socket that the socket door looks at and leaves alone.
    DirectInCgroup,
    /// By the packet doors.
    Packets,
    /// By the socket door.
    Socket,
    /// On the node of nftables, without a Service: netfilter follows its connections there.
    DirectB,
    /// By nftables.
    Nftables,
}

impl Way {
    /// All ways, the floor first.
    pub const ALL: [Self; 6] =
        [Self::DirectA, Self::DirectInCgroup, Self::Packets, Self::Socket, Self::DirectB, Self::Nftables];

    /// What all are compared with.
    pub const FLOOR: Self = Self::DirectA;

    /// For tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DirectA => "direct",
            Self::DirectInCgroup => "direct, past the socket door",
            Self::Packets => "packet doors",
            Self::Socket => "socket door",
            Self::DirectB => "direct, node of nftables",
            Self::Nftables => "nftables (generated)",
        }
    }

    /// What the ratio of its rate to the direct way's shall be.
    #[must_use]
    pub const fn rate_shall(self) -> Option<Shall> {
        match self {
            Self::Packets => Some(Shall::AtLeast(0.97)),
            Self::Socket => Some(Shall::AtLeast(0.99)),
            _ => None,
        }
    }

    /// What the ratio of its `connect()` to the direct way's shall be.
    #[must_use]
    pub const fn connect_shall(self) -> Option<Shall> {
        match self {
            Self::Packets => Some(Shall::AtMost(1.10)),
            Self::Socket => Some(Shall::AtMost(1.03)),
            _ => None,
        }
    }

    const fn is_shunts(self) -> bool {
        !matches!(self, Self::DirectB | Self::Nftables)
    }
}

/// The world, with servers and rules in place.
pub struct Scene {
    world: World,
    /// The client pods, outside of their nodes' cgroups.
    outside_cgroup: [Namespace; 2],
}

impl Scene {
    /// Makes it, without any Service.
    ///
    /// # Errors
    /// When not root, or when a program is lacking.
    pub fn new() -> Result<Self> {
        let mut world = World::new(Options::ALL_SOCKETS)?;
        for (node, letter) in [("node-a", "a"), ("node-b", "b")] {
            let server = format!("server-{letter}");
            world.add_web_pod(&server, node, 201, LinkKind::Routed)?;
            let echo = Echo::start(world.pod(&server).namespace(), &server)?;
            world.pod_mut(&server).run(echo);
            let mut command = world.pod(&server).namespace().command("iperf3");
            command.args(["--server", "--interval", "0"]).stdout(Stdio::null());
            let log = world.site().directory().join(format!("iperf3-{letter}.log"));
            let iperf = Process::start(command, &log)?;
            world.pod_mut(&server).run(iperf);
            world.add_pod(&format!("client-{letter}"), node, 202, LinkKind::Routed)?;
            world.wait_for_web(&server)?;
        }
        for (network, node) in [("10.244.1.0/24", "172.20.0.11"), ("10.244.2.0/24", "172.20.0.12")] {
            world.outside().ip(&format!("route add {network} via {node}"))?;
        }
        let outside_cgroup = ["client-a", "client-b"].map(|pod| world.pod(pod).namespace().outside_cgroup());
        let outside_cgroup = outside_cgroup.into_iter().collect::<Result<Vec<_>>>()?;
        let outside_cgroup = <[_; 2]>::try_from(outside_cgroup).ok().context("two clients")?;
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/sample/nodes.yaml");
        world.apply("nodes.yaml", &std::fs::read_to_string(sample).context("can't read the sample's nodes")?)?;
        Ok(Self { world, outside_cgroup })
    }

    /// Brings this many Services to both nodes, those that are measured among them, and waits until they serve.
    ///
    /// # Errors
    /// When they don't in time.
    pub fn set_services(&mut self, count: u32) -> Result<()> {
        self.world.node("node-a").apply("services.yaml", &self.manifests(count)?)?;
        if !self.world.node("node-a").has_agent() {
            let node = self.world.node_mut("node-a");
            node.start_agent(Options::ALL_SOCKETS.xdp)?;
            node.agent().wait_ready()?;
        }
        let wanted = u64::from(count) + 2 * Place::ALL.len() as u64;
        wait_until(&format!("{count} Services in the maps"), SERVICE_LIMIT, || {
            let maps: Vec<Value> = serde_json::from_str(&self.world.node("node-a").lb_agent("get maps -o json")?)?;
            Ok(maps.iter().any(|map| map["name"] == "SERVICE_NAMES" && map["entries"] == wanted))
        })?;
        self.write_rules(count)
    }

    /// The client's namespace on a way, and where it has to go.
    #[must_use]
    pub fn way(&self, way: Way, place: Place) -> (&Namespace, SocketAddr) {
        let client = match way {
            Way::DirectInCgroup | Way::Socket => self.world.pod("client-a").namespace(),
            Way::DirectA | Way::Packets => &self.outside_cgroup[0],
            Way::DirectB | Way::Nftables => &self.outside_cgroup[1],
        };
        let to = match way {
            Way::DirectA | Way::DirectInCgroup => SocketAddr::new(self.server("server-a").into(), place.server_port()),
            Way::DirectB => SocketAddr::new(self.server("server-b").into(), place.server_port()),
            Way::Packets | Way::Socket => cluster_ip(SHUNT_RANGE, HOST, place.service_port()),
            Way::Nftables => cluster_ip(NFTABLES_RANGE, HOST, place.service_port()),
        };
        (client, to)
    }

    /// The same for the outside client, whose server is on the node that it asks, or on the other one: directly it is spared
    /// that detour. `None` where a way makes no sense for it.
    #[must_use]
    pub fn way_from_outside(&self, way: Way, place: Place, is_elsewhere: bool) -> Option<(&Namespace, SocketAddr)> {
        let (node, letters) = if way.is_shunts() { ("node-a", ["a", "b"]) } else { ("node-b", ["b", "a"]) };
        let server = format!("server-{}", letters[usize::from(is_elsewhere)]);
        let to = match way {
            Way::DirectA | Way::DirectB => SocketAddr::new(self.server(&server).into(), place.server_port()),
            Way::Packets | Way::Nftables => {
                let port = NODE_PORTS[usize::from(is_elsewhere)] + place.offset();
                SocketAddr::new(self.world.node(node).address(Family::V4), port)
            }
            Way::DirectInCgroup | Way::Socket => return None,
        };
        Some((self.world.outside(), to))
    }

    fn server(&self, pod: &str) -> Ipv4Addr {
        match self.world.pod(pod).address(Family::V4) {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => unreachable!("asked for IPv4"),
        }
    }

    /// The measured Services of a node whose own server this is, and fillers up to `count`.
    fn rules(&self, range: u32, count: u32, [own, other]: [&str; 2]) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (number, server) in [own, other].into_iter().enumerate() {
            rules.extend(Place::ALL.map(|place| Rule {
                name: format!("bench-{number}-{}", place.name()),
                cluster_ip: Ipv4Addr::from(range + HOST + number as u32),
                protocol: place.protocol(),
                port: place.service_port(),
                node_port: Some(NODE_PORTS[number] + place.offset()),
                endpoints: vec![(self.server(server), place.server_port())],
            }));
        }
        rules.extend((0..count).map(|number| Rule {
            name: format!("filler-{number}"),
            cluster_ip: Ipv4Addr::from(range + FIRST_FILLER + number),
            protocol: "tcp",
            port: 80,
            node_port: None,
            endpoints: (0..ENDPOINTS).map(|n| (Ipv4Addr::from(0x0b00_0000 + number * ENDPOINTS + n), 8080)).collect(),
        }));
        rules
    }

    fn manifests(&self, count: u32) -> Result<String> {
        let mut text = String::new();
        for rule in self.rules(SHUNT_RANGE, count, ["server-a", "server-b"]) {
            write_manifest(&mut text, &rule)?;
        }
        Ok(text)
    }

    fn write_rules(&self, count: u32) -> Result<()> {
        let IpAddr::V4(node) = self.world.node("node-b").address(Family::V4) else { unreachable!("asked for IPv4") };
        let rules = nftables::table(&self.rules(NFTABLES_RANGE, count, ["server-b", "server-a"]), node);
        let path = self.world.site().directory().join("rules.nft");
        std::fs::write(&path, format!("add table ip kube-proxy\ndelete table ip kube-proxy\n{rules}"))
            .with_context(|| format!("can't write {}", path.display()))?;
        self.world.node("node-b").namespace().run("nft", &["-f", &path.display().to_string()])?;
        Ok(())
    }
}

fn cluster_ip(range: u32, host: u32, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(range + host).into(), port)
}

/// A Service of one port, and its slice.
fn write_manifest(text: &mut String, rule: &Rule) -> Result<()> {
    let Rule { name, cluster_ip, protocol, port, node_port, endpoints } = rule;
    let protocol = protocol.to_uppercase();
    let kind = if node_port.is_some() { "NodePort" } else { "ClusterIP" };
    let node_port = node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
    let target = endpoints.first().map_or(0, |(_, port)| *port);
    let addresses: Vec<_> = endpoints.iter().map(|(address, _)| format!("{{ addresses: [{address}] }}")).collect();
    write!(
        text,
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{ name: {name}, namespace: bench }}\n\
         spec:\n\
         \x20 type: {kind}\n\
         \x20 clusterIP: {cluster_ip}\n\
         \x20 clusterIPs: [{cluster_ip}]\n\
         \x20 ports: [{{ protocol: {protocol}, port: {port}{node_port} }}]\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{ name: {name}, namespace: bench, labels: {{ kubernetes.io/service-name: {name} }} }}\n\
         addressType: IPv4\n\
         ports: [{{ name: \"\", protocol: {protocol}, port: {target} }}]\n\
         endpoints: [{}]\n\
         ---\n",
        addresses.join(", ")
    )
    .context("writing a manifest")
}
