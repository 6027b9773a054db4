// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world in which ways to a server are compared.
//!
//! ```text
//!   outside ─┬─ node-a: Shunt      client-a, server-a     Services in 10.96.0.0/12
//!            └─ node-b: nftables   client-b, server-b     Services in 10.112.0.0/12
//!               node-c: iptables   client-c, server-c     Services in 10.128.0.0/12
//! ```
//!
//! The floor is the same client and server without a Service between them. Pods are routed, so that a
//! packet passes the node's stack on every way alike. Sockets inside a node's cgroup pass the socket door, those outside of
//! it the packet doors.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{chart::Shall, cpu::on_one_cpu, iptables, nftables};
use crate::world::{Echo, Family, LinkKind, Namespace, Options, Process, World, echo_port, http_port, wait_until};

const SERVICE_LIMIT: Duration = Duration::from_secs(600);
/// Of tables: room for 30,000 Services of three endpoints.
const TABLE_SLOTS: &str = "16777216";
/// Seconds: longer than this nobody waits for nftables or iptables to take their rules.
const RULES_LIMIT: &str = "60";
/// Endpoints of a Service that is only there.
const ENDPOINTS: u32 = 3;
/// Of the Service that is measured, within both ranges.
const HOST: u32 = 9;
const FIRST_FILLER: u32 = 256;
const SHUNT_RANGE: u32 = 0x0a60_0000;
const NFTABLES_RANGE: u32 = 0x0a70_0000;
const IPTABLES_RANGE: u32 = 0x0a80_0000;
/// Of the Service whose endpoint is on the node that is asked, and of the one whose endpoint is on the other.
/// Those of IPv6 come after them.
const NODE_PORTS: [u16; 2] = [30_090, 30_190];
const NODE_PORTS_V6: u16 = 10;

/// One Service port of one family.
pub(super) struct Rule {
    pub name: String,
    pub cluster_ip: IpAddr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    pub port: u16,
    pub node_port: Option<u16>,
    pub endpoints: Vec<(IpAddr, u16)>,
}

/// What a client wants to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    /// The server.
    pub place: Place,
    /// Whether it is on another node than the one that is asked, or on which the client is.
    pub is_elsewhere: bool,
    /// By which addresses.
    pub family: Family,
}

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
    /// On the node of iptables, without a Service.
    DirectC,
    /// By iptables.
    Iptables,
}

impl Way {
    /// All ways, the floor first.
    pub const ALL: [Self; 8] = [
        Self::DirectA,
        Self::DirectInCgroup,
        Self::Packets,
        Self::Socket,
        Self::DirectB,
        Self::Nftables,
        Self::DirectC,
        Self::Iptables,
    ];

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
            Self::DirectC => "direct, node of iptables",
            Self::Iptables => "iptables (generated)",
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
        matches!(self, Self::DirectA | Self::DirectInCgroup | Self::Packets | Self::Socket)
    }
}

/// The world, with servers and rules in place.
pub struct Scene {
    world: World,
    /// The client pods of Shunt's node and of nftables', outside of their nodes' cgroups.
    outside_cgroup: [Namespace; 2],
    /// Whether nftables and iptables have taken their rules in time.
    has_nftables: bool,
    has_iptables: bool,
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
            let echo = on_one_cpu(|| Echo::start(world.pod(&server).namespace(), &server))??;
            world.pod_mut(&server).run(echo);
            let mut command = world.pod(&server).namespace().command("iperf3");
            command.args(["--server", "--interval", "0"]).stdout(Stdio::null());
            let log = world.site().directory().join(format!("iperf3-{letter}.log"));
            let iperf = Process::start(command, &log)?;
            world.pod_mut(&server).run(iperf);
            world.add_pod(&format!("client-{letter}"), node, 202, LinkKind::Routed)?;
            world.wait_for_web(&server)?;
        }
        world.add_lone_node()?;
        world.add_web_pod("server-c", "node-c", 201, LinkKind::Routed)?;
        world.add_pod("client-c", "node-c", 202, LinkKind::Routed)?;
        for family in Family::BOTH {
            for node in ["node-a", "node-b"].map(|node| world.node(node)) {
                let number = node.number();
                let pods = family.pick(&format!("10.244.{number}.0"), &format!("fd00:244:{number}::"));
                let bits = if family == Family::V4 { 24 } else { 64 };
                world.outside().ip(&format!("route add {pods}/{bits} via {}", node.address(family)))?;
            }
        }
        let outside_cgroup = ["client-a", "client-b"].map(|pod| world.pod(pod).namespace().outside_cgroup());
        let outside_cgroup = outside_cgroup.into_iter().collect::<Result<Vec<_>>>()?;
        let outside_cgroup = <[_; 2]>::try_from(outside_cgroup).ok().context("two clients")?;
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/sample/nodes.yaml");
        world.apply("nodes.yaml", &std::fs::read_to_string(sample).context("can't read the sample's nodes")?)?;
        world.node_mut("node-a").add_flags(&["--max-table-slots", TABLE_SLOTS]);
        let scene = Self { world, outside_cgroup, has_nftables: false, has_iptables: false };
        let (client, server) = scene.way(Way::DirectC, Aim::WEB).context("the way without a Service")?;
        wait_until("server-c answering", SERVICE_LIMIT, || client.enter(|| Ok(TcpStream::connect(server).is_ok()))?)?;
        Ok(scene)
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
        let wanted = u64::from(count) + 4 * Place::ALL.len() as u64;
        wait_until(&format!("{count} Services in the maps"), SERVICE_LIMIT, || {
            let maps: Vec<Value> = serde_json::from_str(&self.world.node("node-a").lb_agent("get maps -o json")?)?;
            Ok(maps.iter().any(|map| map["name"] == "SERVICE_NAMES" && map["entries"] == wanted))
        })?;
        self.has_nftables = self.write_nftables(count)?;
        self.has_iptables = self.write_iptables(count)?;
        Ok(())
    }

    /// The client pod's namespace on a way, and where it has to go. `None` where there is no such way.
    #[must_use]
    pub fn way(&self, way: Way, aim: Aim) -> Option<(&Namespace, SocketAddr)> {
        let client = match way {
            Way::DirectInCgroup | Way::Socket => self.world.pod("client-a").namespace(),
            Way::DirectA | Way::Packets => &self.outside_cgroup[0],
            Way::DirectB | Way::Nftables => &self.outside_cgroup[1],
            Way::DirectC | Way::Iptables => self.world.pod("client-c").namespace(),
        };
        let is_lone = matches!(way, Way::DirectC | Way::Iptables);
        if (!way.is_shunts() && aim.family == Family::V6)
            || (is_lone && (aim.is_elsewhere || aim.place != Place::Web))
            || (way == Way::Nftables && !self.has_nftables)
            || (way == Way::Iptables && !self.has_iptables)
        {
            return None;
        }
        let [own, other] = if way.is_shunts() { ["server-a", "server-b"] } else { ["server-b", "server-a"] };
        let server = match way {
            Way::DirectC => "server-c",
            _ if aim.is_elsewhere => other,
            _ => own,
        };
        let range = match way {
            Way::DirectA | Way::DirectInCgroup | Way::DirectB | Way::DirectC => {
                return Some((client, self.server(server, aim)));
            }
            Way::Packets | Way::Socket => SHUNT_RANGE,
            Way::Nftables => NFTABLES_RANGE,
            Way::Iptables => IPTABLES_RANGE,
        };
        let cluster_ip = cluster_ip(range, HOST + u32::from(aim.is_elsewhere), aim.family);
        Some((client, SocketAddr::new(cluster_ip, aim.place.service_port())))
    }

    /// The same for the outside client, who asks for a NodePort: directly it is spared the detour to a server elsewhere.
    #[must_use]
    pub fn way_from_outside(&self, way: Way, aim: Aim) -> Option<(&Namespace, SocketAddr)> {
        let (node, servers) = match way {
            Way::DirectA | Way::Packets => ("node-a", ["server-a", "server-b"]),
            Way::DirectB | Way::Nftables => ("node-b", ["server-b", "server-a"]),
            Way::DirectInCgroup | Way::Socket | Way::DirectC | Way::Iptables => return None,
        };
        if (!way.is_shunts() && aim.family == Family::V6) || (way == Way::Nftables && !self.has_nftables) {
            return None;
        }
        let to = match way {
            Way::DirectA | Way::DirectB => self.server(servers[usize::from(aim.is_elsewhere)], aim),
            _ => SocketAddr::new(self.world.node(node).address(aim.family), aim.node_port()),
        };
        Some((self.world.outside(), to))
    }

    /// Who has not taken the rules of the last number of Services within a minute.
    #[must_use]
    pub fn too_late(&self) -> Vec<&'static str> {
        let both = [("nftables", self.has_nftables), ("iptables", self.has_iptables)];
        both.into_iter().filter(|(_, in_time)| !in_time).map(|(name, _)| name).collect()
    }

    fn server(&self, pod: &str, aim: Aim) -> SocketAddr {
        SocketAddr::new(self.world.pod(pod).address(aim.family), aim.place.server_port())
    }

    /// The measured Services of a node whose own server this is, and fillers before and behind them, `count` together.
    fn rules(&self, range: u32, count: u32, [own, other]: [&str; 2], families: &[Family]) -> Vec<Rule> {
        let mut measured = Vec::new();
        for &family in families {
            for (server, is_elsewhere) in [(own, false), (other, true)] {
                measured.extend(Place::ALL.map(|place| {
                    let aim = Aim { place, is_elsewhere, family };
                    let server = self.server(server, aim);
                    Rule {
                        name: format!("bench-{}-{}-{}", family.bits(), u8::from(is_elsewhere), place.name()),
                        cluster_ip: cluster_ip(range, HOST + u32::from(is_elsewhere), family),
                        protocol: place.protocol(),
                        port: place.service_port(),
                        node_port: Some(aim.node_port()),
                        endpoints: vec![(server.ip(), server.port())],
                    }
                }));
            }
        }
        let filler = |number: u32| Rule {
            name: format!("filler-{number}"),
            cluster_ip: cluster_ip(range, FIRST_FILLER + number, Family::V4),
            protocol: "tcp",
            port: 80,
            node_port: None,
            endpoints: (0..ENDPOINTS)
                .map(|n| (Ipv4Addr::from(0x0b00_0000 + number * ENDPOINTS + n).into(), 8080))
                .collect(),
        };
        let half = count / 2;
        (0..half).map(filler).chain(measured).chain((half..count).map(filler)).collect()
    }

    fn manifests(&self, count: u32) -> Result<String> {
        let mut text = String::new();
        for rule in self.rules(SHUNT_RANGE, count, ["server-a", "server-b"], &Family::BOTH) {
            write_manifest(&mut text, &rule)?;
        }
        Ok(text)
    }

    /// Whether nftables takes them in time.
    fn write_nftables(&self, count: u32) -> Result<bool> {
        let IpAddr::V4(node) = self.world.node("node-b").address(Family::V4) else { unreachable!("asked for IPv4") };
        let rules = self.rules(NFTABLES_RANGE, count, ["server-b", "server-a"], &[Family::V4]);
        let rules = nftables::table(&rules, node);
        let path = self.write("rules.nft", &format!("add table ip kube-proxy\ndelete table ip kube-proxy\n{rules}"))?;
        run_in_time(self.world.node("node-b").namespace(), &["nft", "-f", &path])
    }

    /// Whether iptables takes them in time.
    fn write_iptables(&self, count: u32) -> Result<bool> {
        let rules = self.rules(IPTABLES_RANGE, count, ["server-c", "server-c"], &[Family::V4]);
        let path = self.write("rules.iptables", &iptables::tables(&rules))?;
        run_in_time(self.world.node("node-c").namespace(), &["iptables-restore", &path])
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.world.site().directory().join(name);
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// Runs a command for [`RULES_LIMIT`] at most; whether it has come to its end by then.
fn run_in_time(namespace: &Namespace, words: &[&str]) -> Result<bool> {
    /// `timeout`'s, where it has ended the program.
    const TOO_LATE: i32 = 124;
    let status = namespace.command("timeout").arg(RULES_LIMIT).args(words).status().context("can't start timeout")?;
    ensure!(status.success() || status.code() == Some(TOO_LATE), "{words:?}: {status}");
    Ok(status.success())
}

impl Aim {
    /// The web server on the client's own node, by IPv4.
    pub const WEB: Self = Self { place: Place::Web, is_elsewhere: false, family: Family::V4 };

    fn node_port(self) -> u16 {
        let of_family = if self.family == Family::V4 { 0 } else { NODE_PORTS_V6 };
        NODE_PORTS[usize::from(self.is_elsewhere)] + of_family + self.place.offset()
    }
}

fn cluster_ip(range: u32, host: u32, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(range + host).into(),
        Family::V6 => Ipv6Addr::from((0xfd00_0096_u128 << 96) + u128::from(host)).into(),
    }
}

/// A Service of one port, and its slice.
fn write_manifest(text: &mut String, rule: &Rule) -> Result<()> {
    let Rule { name, cluster_ip, protocol, port, node_port, endpoints } = rule;
    let protocol = protocol.to_uppercase();
    let family = if cluster_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let kind = if node_port.is_some() { "NodePort" } else { "ClusterIP" };
    let node_port = node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
    let target = endpoints.first().map_or(0, |(_, port)| *port);
    let addresses: Vec<_> = endpoints.iter().map(|(address, _)| format!("{{ addresses: [\"{address}\"] }}")).collect();
    write!(
        text,
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{ name: {name}, namespace: bench }}\n\
         spec:\n\
         \x20 type: {kind}\n\
         \x20 clusterIP: \"{cluster_ip}\"\n\
         \x20 clusterIPs: [\"{cluster_ip}\"]\n\
         \x20 ipFamilies: [{family}]\n\
         \x20 ports: [{{ protocol: {protocol}, port: {port}{node_port} }}]\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{ name: {name}, namespace: bench, labels: {{ kubernetes.io/service-name: {name} }} }}\n\
         addressType: {family}\n\
         ports: [{{ name: \"\", protocol: {protocol}, port: {target} }}]\n\
         endpoints: [{}]\n\
         ---\n",
        addresses.join(", ")
    )
    .context("writing a manifest")
}
