// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small world of network namespaces: an outside client, a switch, two nodes with pods, and the real agent on each.
//!
//! ```text
//!   outside 172.20.0.100 ──┐
//!                        switch
//!   node-a 172.20.0.11 ────┤├──── node-b 172.20.0.12
//!    cni0 10.244.1.1/25     │      cni0 10.244.2.1/25
//!     ├ bridged pods        │       ├ bridged pods
//!    routed pods            │      routed pods
//! ```
//!
//! Every address has an IPv6 twin written with the same digits: `10.244.1.11` is also `fd00:244:1::11`. The nodes route to
//! each other's pods; the outside client knows no route to any pod, so that an untranslated packet gets nowhere. All of
//! it goes when the [`World`] is dropped.

mod agent;
mod capture;
mod cgroup;
mod echo;
mod far;
mod interrupt;
mod link;
mod namespace;
mod node;
pub mod objects;
mod overlay;
mod parent;
mod publish;
pub mod sample;
mod server;
mod site;
mod traffic;
mod wait;
mod xdp_pass;

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result, bail, ensure};

pub use self::{
    agent::{Agent, agent_binary},
    capture::{Capture, Captures},
    echo::{Echo, echo_port},
    far::Far,
    interrupt::catch as catch_interrupts,
    link::LinkKind,
    namespace::Namespace,
    node::{Node, Pod},
    parent::{BOND, VLAN},
    publish::{for_each_kind, kinds, wait_for, wait_to_meet},
    server::{Process, dns_port, http_port},
    site::{Site, remove_all},
    wait::{check_interrupt, is_quick, wait_until},
};

/// How the agents attach to their uplinks by XDP, as the agent's `--xdp` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// As the agent thinks best.
    Auto,
    /// Not at all: TC does everything.
    Off,
    /// In the driver. The peers of all links run an XDP program then too, and checksums are complete in every packet.
    Driver,
}

impl Xdp {
    /// The value of the agent's option.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Driver => "driver",
        }
    }
}

/// How the agents use their socket door, as the agent's `--socket-lb` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// Not at all.
    Off,
    /// For the nodes' own processes.
    Host,
    /// For pods too.
    All,
}

impl Sockets {
    /// The value of the agent's option.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Host => "host",
            Self::All => "all",
        }
    }
}

/// What a world is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How the agents use XDP.
    pub xdp: Xdp,
    /// Whose sockets the agents translate.
    pub sockets: Sockets,
    /// Whether senders leave checksums and segmentation to the "hardware", as veth does by default. Without it the
    /// checksums in captures are the final ones.
    pub offloads: bool,
}

impl Options {
    /// TC alone, offloads on: what a machine with veth uplinks gets by default.
    pub const TC: Self = Self { xdp: Xdp::Off, sockets: Sockets::Off, offloads: true };
    /// TC alone, and every checksum complete.
    pub const TC_WITHOUT_OFFLOADS: Self = Self { offloads: false, ..Self::TC };
    /// XDP in the driver, which needs complete checksums: it can't know of missing ones.
    pub const XDP: Self = Self { xdp: Xdp::Driver, offloads: false, ..Self::TC };
    /// TC, and the socket door for the nodes' own processes.
    pub const HOST_SOCKETS: Self = Self { sockets: Sockets::Host, ..Self::TC };
    /// TC, and the socket door for pods too.
    pub const ALL_SOCKETS: Self = Self { sockets: Sockets::All, ..Self::TC };
}

/// The family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That one of an IPv4 and an IPv6 address.
    #[must_use]
    pub fn pick(self, v4: &str, v6: &str) -> IpAddr {
        match self {
            Self::V4 => v4.parse().expect("an IPv4 address"),
            Self::V6 => v6.parse().expect("an IPv6 address"),
        }
    }

    /// Bits of an address.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// The outside client's last address part.
const OUTSIDE_HOST: u16 = 100;
/// The web server pods that a world starts with, where they are, and how they are linked: see `manifests/sample`.
const WEB_PODS: [(&str, &str, u16, LinkKind); 3] = [
    ("web-1", "node-a", 11, LinkKind::Bridged),
    ("web-2", "node-b", 12, LinkKind::Bridged),
    ("web-3", "node-b", 203, LinkKind::Routed),
];

/// The world. Fields are dropped in this order: processes first, what they stand on last.
pub struct World {
    nodes: Vec<Node>,
    outside: Namespace,
    switch: Namespace,
    options: Options,
    /// Of every node's sockets, where the agents have a socket door.
    _cgroups: Option<cgroup::Cgroups>,
    site: Site,
}

impl World {
    /// Makes the world of `manifests/sample`: nodes, pods and their servers, but no agents yet.
    ///
    /// Pods: `web-1` (node-a, bridged), `web-2` (node-b, bridged), `web-3` (node-b, routed), `dns-1` (node-a, routed),
    /// and the clients `client` (node-a, bridged) and `caller` (node-a, routed).
    ///
    /// # Errors
    /// When not root, or when a program is lacking or fails.
    pub fn new(options: Options) -> Result<Self> {
        let site = Site::new()?;
        if options.xdp == Xdp::Driver {
            xdp_pass::pin(&site.xdp_pass())?;
        }
        let cgroups = match options.sockets {
            Sockets::Off => None,
            Sockets::Host | Sockets::All => Some(cgroup::Cgroups::create(&site)?),
        };
        let switch = Namespace::create(&site, "switch")?;
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up")?;
        let outside = Namespace::create(&site, "outside")?;
        let mut world = Self { nodes: Vec::new(), outside, switch, options, _cgroups: None, site };
        world.plug_in(&world.outside, "outside", OUTSIDE_HOST)?;
        for number in [1, 2] {
            let node = Node::create(&world.site, number, options.sockets, cgroups.as_ref())?;
            world.plug_in(node.namespace(), node.name(), node.host())?;
            node.configure()?;
            world.nodes.push(node);
        }
        world._cgroups = cgroups;
        for (name, node, host, link) in WEB_PODS {
            world.add_web_pod(name, node, host, link)?;
        }
        world.add_pod("dns-1", "node-a", 153, LinkKind::Routed)?;
        let dns = server::dnsmasq("dns-1", world.pod("dns-1").namespace(), &world.site.directory())?;
        world.pod_mut("dns-1").run(dns);
        world.add_pod("client", "node-a", 90, LinkKind::Bridged)?;
        world.add_pod("caller", "node-a", 190, LinkKind::Routed)?;
        world.wait_for_servers()?;
        Ok(world)
    }

    /// The same, with the sample manifests in both nodes' directories and both agents ready.
    ///
    /// # Errors
    /// As [`World::new`], and when an agent does not become ready.
    pub fn with_agents(options: Options) -> Result<Self> {
        let mut world = Self::new(options)?;
        world.apply_sample()?;
        world.start_agents()?;
        Ok(world)
    }

    /// Connects a host to the switch, by its `eth0`.
    fn plug_in(&self, host: &Namespace, port: &str, number: u16) -> Result<()> {
        let port = format!("sw-{port}");
        self.switch.ip(&format!("link add {port} type veth peer name eth0 netns {}", host.name()))?;
        self.finish_link(&self.switch, &port, host)?;
        self.switch.ip(&format!("link set {port} master br0 up"))?;
        host.ip(&format!(
            "link set lo up\n\
             addr add 172.20.0.{number}/24 dev eth0\n\
             addr add fd00:20::{number}/64 dev eth0 nodad\n\
             link set eth0 up"
        ))
    }

    /// Offloads and XDP of both ends of a new link, as the options say. `far` has it as `eth0`.
    fn finish_link(&self, near: &Namespace, interface: &str, far: &Namespace) -> Result<()> {
        for (namespace, interface) in [(near, interface), (far, "eth0")] {
            if !self.options.offloads {
                namespace.run("ethtool", &["-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])?;
            }
        }
        if self.options.xdp == Xdp::Driver {
            // Not the node's own ends: those are the agent's.
            let is_switch = near.name() == self.switch.name();
            let (namespace, interface) = if is_switch { (near, interface) } else { (far, "eth0") };
            xdp_pass::attach(namespace, interface, &self.site.xdp_pass())?;
        }
        Ok(())
    }

    /// Adds `node-c`, which is connected to no other host and has no agent: its pods, which must be routed ones, reach each other.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_lone_node(&mut self) -> Result<()> {
        let node = Node::create(&self.site, 3, Sockets::Off, None)?;
        node.namespace().sysctl(&[("net/ipv4/ip_forward", "1")])?;
        node.namespace().ip("link set lo up")?;
        self.nodes.push(node);
        Ok(())
    }

    /// Adds a pod to a running world. `host` is the last part of its addresses: below 100 for bridged pods, from 128 for
    /// routed ones.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_pod(&mut self, name: &str, node: &str, host: u16, link: LinkKind) -> Result<()> {
        let node = self.node_position(node)?;
        let namespace = self.nodes[node].within(Namespace::create(&self.site, name)?)?;
        let pod = Pod::new(name, namespace, self.nodes[node].number(), host);
        link::connect(&self.nodes[node], &pod)?;
        self.finish_link(self.nodes[node].namespace(), &pod.interface(), pod.namespace())?;
        link::configure(&self.nodes[node], &pod, link)?;
        self.nodes[node].add(pod);
        Ok(())
    }

    /// The same, with a web server in it.
    ///
    /// # Errors
    /// When `ip` or nginx fails.
    pub fn add_web_pod(&mut self, name: &str, node: &str, host: u16, link: LinkKind) -> Result<()> {
        self.add_pod(name, node, host, link)?;
        let server = server::nginx(name, self.pod(name).namespace(), &self.site.directory())?;
        self.pod_mut(name).run(server);
        Ok(())
    }

    /// Removes a pod: its processes, its link, its namespace.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.pods().any(|pod| pod.name() == name));
        let node = node.with_context(|| format!("no pod {name}"))?;
        let pod = node.take(name).expect("found above");
        node.namespace().ip(&format!("link del {}", pod.interface()))?;
        site::remove_namespace(pod.namespace().name());
        Ok(())
    }

    /// Starts a DNS server in a pod, like that of `dns-1`, and waits until it answers.
    ///
    /// # Errors
    /// When it can't be started, or does not answer in time.
    pub fn add_dns(&mut self, pod: &str) -> Result<()> {
        let dns = server::dnsmasq(pod, self.pod(pod).namespace(), &self.site.directory())?;
        self.pod_mut(pod).run(dns);
        server::wait_for_dns(self.pod("client").namespace(), self.pod(pod).address(Family::V4))
    }

    /// Waits until every server answers a client on node-a directly: links, routes and servers work.
    fn wait_for_servers(&self) -> Result<()> {
        WEB_PODS.iter().try_for_each(|(name, ..)| self.wait_for_web(name))?;
        let server = self.pod("dns-1");
        Family::BOTH
            .iter()
            .try_for_each(|family| server::wait_for_dns(self.pod("client").namespace(), server.address(*family)))
    }

    /// Waits until a pod's web server answers a client on node-a directly, both families.
    ///
    /// # Errors
    /// When it doesn't in time.
    pub fn wait_for_web(&self, name: &str) -> Result<()> {
        let (client, server) = (self.pod("client").namespace(), self.pod(name));
        Family::BOTH.iter().try_for_each(|family| server::wait_for_web(client, server.address(*family), name))
    }

    /// Copies `manifests/sample` to both nodes' directories.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn apply_sample(&self) -> Result<()> {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join("manifests/sample");
        for file in ["nodes.yaml", "web.yaml", "web-endpoints.yaml", "dns.yaml"] {
            let path = sample.join(file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
            self.apply(file, &text)?;
        }
        Ok(())
    }

    /// Writes a manifest file to both nodes' directories, each in one step.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.apply(file, text))
    }

    /// Makes these pods the endpoints of the sample's Service `web`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set_web_endpoints(&self, pods: &[&str]) -> Result<()> {
        let pods: Vec<&Pod> = pods.iter().map(|name| self.pod(name)).collect();
        self.apply("web-endpoints.yaml", &node::endpoint_slices("web", "http", server::http_port(), &pods))
    }

    /// Starts the agents of both nodes and waits until they are ready.
    ///
    /// # Errors
    /// When one is not ready in time (the error holds the end of its log), or has not attached XDP as it was told to.
    pub fn start_agents(&mut self) -> Result<()> {
        let xdp = self.options.xdp;
        for node in &mut self.nodes {
            node.start_agent(xdp)?;
        }
        self.nodes.iter().try_for_each(|node| node.agent().wait_ready())?;
        if xdp == Xdp::Driver {
            // Or tests of XDP would quietly be tests of TC.
            for node in &self.nodes {
                let link = node.namespace().run("ip", &["link", "show", "eth0"])?;
                ensure!(link.contains("prog/xdp"), "no XDP program on {}'s eth0: {link}", node.name());
            }
        }
        Ok(())
    }

    /// The outside client.
    #[must_use]
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Its address.
    #[must_use]
    pub fn outside_address(&self, family: Family) -> IpAddr {
        family.pick("172.20.0.100", "fd00:20::100")
    }

    /// The switch, whose ports are called `sw-outside`, `sw-node-a` and `sw-node-b`.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// What the world was made with.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// All nodes, to be changed.
    pub fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }

    /// A node of this world.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        &self.nodes[self.node_position(name).expect("a node of this world")]
    }

    /// A node of this world, to be changed.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        let position = self.node_position(name).expect("a node of this world");
        &mut self.nodes[position]
    }

    /// A pod of this world.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        let mut pods = self.nodes.iter().flat_map(Node::pods);
        pods.find(|pod| pod.name() == name).unwrap_or_else(|| panic!("no pod {name} in this world"))
    }

    /// A pod of this world, to be changed.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn pod_mut(&mut self, name: &str) -> &mut Pod {
        let mut pods = self.nodes.iter_mut().flat_map(Node::pods_mut);
        pods.find(|pod| pod.name() == name).unwrap_or_else(|| panic!("no pod {name} in this world"))
    }

    /// Where this world's files are: logs, configurations, manifests.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Leaves everything running when this process ends; [`remove_all`] ends it.
    ///
    /// # Errors
    /// When the mark can't be written.
    pub fn keep(self) -> Result<()> {
        self.site.mark_kept()?;
        std::mem::forget(self);
        Ok(())
    }

    fn node_position(&self, name: &str) -> Result<usize> {
        match self.nodes.iter().position(|node| node.name() == name) {
            Some(position) => Ok(position),
            None => bail!("no node {name}"),
        }
    }
}

impl Drop for World {
    /// A test that fails shows what its agents said.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for agent in self.nodes.iter().filter_map(Node::try_agent) {
                eprintln!("{}", agent.log_tail());
            }
        }
    }
}
