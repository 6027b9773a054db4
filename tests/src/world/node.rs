// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node: its namespace, its pods, its directory of manifests, and its agent.

use std::{
    any::Any,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Agent, Family, Namespace, Site, Sockets, Xdp, agent_binary, cgroup::Cgroups};

/// From this part of their addresses on pods are routed.
const FIRST_ROUTED: u16 = 128;

/// A node of the world.
pub struct Node {
    name: String,
    number: u16,
    agent: Option<Agent>,
    pods: Vec<Pod>,
    namespace: Arc<Namespace>,
    manifests: PathBuf,
    /// Of the cluster that its agent follows, in place of the manifests.
    kubeconfig: Option<PathBuf>,
    /// Of its agent, beside the usual ones.
    flags: Vec<String>,
    /// Of root's, those that its agent has, where not all.
    capabilities: Option<Vec<String>>,
    uplinks: Vec<String>,
    bpffs: PathBuf,
    /// Whose sockets its agent translates.
    sockets: Sockets,
    /// Of its sockets, where its agent has a socket door.
    cgroup: Option<PathBuf>,
    log: PathBuf,
}

impl Node {
    /// Node 1 is `node-a`, node 2 is `node-b`, node 3 is `node-c`.
    pub(super) fn create(site: &Site, number: u16, sockets: Sockets, cgroups: Option<&Cgroups>) -> Result<Self> {
        let name = name_of(number).to_owned();
        let cgroup = cgroups.map(|cgroups| cgroups.add(&name)).transpose()?;
        let manifests = site.directory().join(format!("manifests-{name}"));
        fs::create_dir(&manifests).with_context(|| format!("can't create {}", manifests.display()))?;
        let namespace = Arc::new(Namespace::create(site, &name)?.within(cgroup.as_deref())?);
        let bpffs = site.bpffs().join(&name);
        let log = site.directory().join(format!("agent-{name}.log"));
        let (agent, kubeconfig, pods, flags, uplinks) = (None, None, Vec::new(), Vec::new(), vec!["eth0".to_owned()]);
        Ok(Self {
            name,
            number,
            agent,
            pods,
            namespace,
            manifests,
            kubeconfig,
            flags,
            uplinks,
            capabilities: None,
            bpffs,
            sockets,
            cgroup,
            log,
        })
    }

    /// Makes the sockets of a namespace this node's.
    pub(super) fn within(&self, namespace: Namespace) -> Result<Namespace> {
        namespace.within(self.cgroup.as_deref())
    }

    /// Forwarding, the bridge, and the way to the other node's pods.
    pub(super) fn configure(&self) -> Result<()> {
        self.namespace.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let (number, other) = (self.number, 3 - self.number);
        let (v4, v6) = (self.bridge_address(Family::V4), self.bridge_address(Family::V6));
        // A fixed Ethernet address, as CNI plugins give it: else the bridge takes one of its ports', and with each new pod the
        // others may lose their gateway for seconds.
        self.namespace.ip(&format!(
            "link add cni0 address 0a:58:0a:f4:0{number}:01 type bridge forward_delay 0 mcast_snooping 0\n\
             addr add {v4}/25 dev cni0\n\
             addr add {v6}/120 dev cni0 nodad\n\
             link set cni0 up\n\
             route add 10.244.{other}.0/24 via 172.20.0.1{other}\n\
             route add fd00:244:{other}::/64 via fd00:20::1{other}"
        ))
    }

    /// Its name, in the world and as a Kubernetes object.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace. The uplink is `eth0`, the bridge `cni0`, a pod's link `veth-<pod>`.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The address of its uplink.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        let host = self.host();
        family.pick(&format!("172.20.0.{host}"), &format!("fd00:20::{host}"))
    }

    /// Where its agent pins maps, links and programs.
    #[must_use]
    pub fn bpffs(&self) -> &PathBuf {
        &self.bpffs
    }

    /// Lets its agents pin elsewhere, from the next one on.
    pub fn set_bpffs(&mut self, path: &Path) {
        self.bpffs = path.to_owned();
    }

    /// Its pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter()
    }

    pub(super) fn pods_mut(&mut self) -> impl Iterator<Item = &mut Pod> {
        self.pods.iter_mut()
    }

    /// 1 for `node-a`, 2 for `node-b`: part of its addresses.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn host(&self) -> u16 {
        10 + self.number
    }

    pub(super) fn bridge_address(&self, family: Family) -> IpAddr {
        let number = self.number;
        family.pick(&format!("10.244.{number}.1"), &format!("fd00:244:{number}::1"))
    }

    pub(super) fn add(&mut self, pod: Pod) {
        self.pods.push(pod);
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Pod> {
        let position = self.pods.iter().position(|pod| pod.name == name)?;
        Some(self.pods.remove(position))
    }

    /// Writes a manifest file in one step: the agent sees the old text or the new one.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let draft = self.manifests.join(format!(".{file}.draft"));
        let path = self.manifests.join(file);
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// Removes a manifest file.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn unapply(&self, file: &str) -> Result<()> {
        let path = self.manifests.join(file);
        fs::remove_file(&path).with_context(|| format!("can't remove {}", path.display()))
    }

    /// Lets its agents follow a Kubernetes API, from the next one on.
    pub fn follow_cluster(&mut self, kubeconfig: &Path) {
        self.kubeconfig = Some(kubeconfig.to_owned());
    }

    /// Gives its agents more flags, from the next one on.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
    }

    /// Gives its agents a flag with a value, in place of another value, from the next one on.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.flags.iter().position(|word| word == flag) {
            Some(place) => value.clone_into(&mut self.flags[place + 1]),
            None => self.add_flags(&[flag, value]),
        }
    }

    /// Leaves its agents these of root's capabilities (`net_admin`) and no others, from the next one on.
    pub fn limit_capabilities(&mut self, names: &[&str]) {
        self.capabilities = Some(names.iter().map(|&name| name.to_owned()).collect());
    }

    /// The arguments with which its agent runs.
    #[must_use]
    pub fn agent_arguments(&self, xdp: Xdp) -> Vec<String> {
        let source = match &self.kubeconfig {
            Some(kubeconfig) => vec!["kube".to_owned(), "--kubeconfig".to_owned(), kubeconfig.display().to_string()],
            None => vec![format!("dir:{}", self.manifests.display())],
        };
        let words = [
            "--node-name",
            &self.name,
            "--pod-interface",
            "veth*",
            "--xdp",
            xdp.as_str(),
            "--healthz-bind-address",
            "127.0.0.1:10256",
            "--metrics-bind-address",
            "127.0.0.1:10249",
            "--bpffs",
            &self.bpffs.display().to_string(),
            "--socket-lb",
            self.sockets.as_str(),
        ];
        let uplinks = self.uplinks.iter().flat_map(|uplink| ["--uplink".to_owned(), uplink.clone()]);
        let cgroup = self.cgroup.iter().flat_map(|path| ["--cgroup".to_owned(), path.display().to_string()]);
        let first = ["run", "--source"].map(str::to_owned).into_iter().chain(source);
        first.chain(words.map(str::to_owned)).chain(uplinks).chain(cgroup).chain(self.flags.iter().cloned()).collect()
    }

    /// Lets its agents take other devices for uplinks than `eth0`, from the next one on.
    pub fn set_uplinks(&mut self, uplinks: &[&str]) {
        self.uplinks = uplinks.iter().map(|&uplink| uplink.to_owned()).collect();
    }

    /// Lets its agents open another socket door, from the next one on.
    pub fn set_sockets(&mut self, sockets: Sockets) {
        self.sockets = sockets;
    }

    /// Starts its agent, in place of one that has ended.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent(&mut self, xdp: Xdp) -> Result<()> {
        let command = self.agent_command(&self.agent_arguments(xdp))?;
        self.agent = Some(Agent::start(&self.name, Arc::clone(&self.namespace), command, self.log.clone())?);
        Ok(())
    }

    /// The agent that was started last.
    ///
    /// # Panics
    /// When none was.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent has been started")
    }

    /// The agent that was started last, to be ended.
    ///
    /// # Panics
    /// When none was.
    pub fn agent_mut(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("an agent has been started")
    }

    /// Whether an agent was started.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    pub(super) fn try_agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// The agent's program with other arguments, inside the node.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn agent_command(&self, arguments: &[String]) -> Result<Command> {
        let agent = agent_binary()?;
        let mut command = match &self.capabilities {
            None => self.namespace.command(agent),
            Some(names) => {
                let bounds = names.iter().fold("-all".to_owned(), |bounds, name| format!("{bounds},+{name}"));
                let mut command = self.namespace.command("setpriv");
                command.args(["--no-new-privs", "--inh-caps", "-all", "--bounding-set", &bounds]).arg(agent);
                command
            }
        };
        command.args(arguments).env_remove("RUST_LOG").env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
        Ok(command)
    }

    /// What `lb-agent WORDS --bpffs ...` prints.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub fn lb_agent(&self, words: &str) -> Result<String> {
        let bpffs = self.bpffs.display().to_string();
        let arguments: Vec<String> = words.split_whitespace().chain(["--bpffs", &bpffs]).map(str::to_owned).collect();
        let output = self.agent_command(&arguments)?.output().context("can't start the agent")?;
        ensure!(output.status.success(), "lb-agent {words}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A pod.
pub struct Pod {
    name: String,
    node_number: u16,
    host: u16,
    servers: Vec<Box<dyn Any + Send + Sync>>,
    namespace: Namespace,
}

impl Pod {
    pub(super) fn new(name: &str, namespace: Namespace, node_number: u16, host: u16) -> Self {
        Self { name: name.to_owned(), node_number, host, servers: Vec::new(), namespace }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace, in which its interface is `eth0`.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The node's end of its link.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("veth-{}", self.name)
    }

    /// The node's device by which packets for it leave: its link, or the bridge of which that is a port.
    pub(super) fn way_from_node(&self) -> String {
        if self.host < FIRST_ROUTED { "cni0".to_owned() } else { self.interface() }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        let (number, host) = (self.node_number, self.host);
        family.pick(&format!("10.244.{number}.{host}"), &format!("fd00:244:{number}::{host}"))
    }

    /// The name of the node that it is on.
    #[must_use]
    pub fn node_name(&self) -> &'static str {
        name_of(self.node_number)
    }

    /// Takes over a server, a process or what else runs until it is dropped: it ends with the pod.
    pub fn run(&mut self, server: impl Any + Send + Sync) {
        self.servers.push(Box::new(server));
    }
}

const fn name_of(number: u16) -> &'static str {
    match number {
        1 => "node-a",
        2 => "node-b",
        _ => "node-c",
    }
}

/// EndpointSlices of both families for a Service with one port, TCP: these pods are ready. The names are the sample's.
pub(super) fn endpoint_slices(service: &str, port_name: &str, port: u16, pods: &[&Pod]) -> String {
    let slices = Family::BOTH.map(|family| {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.address(family)],
                    "nodeName": pod.node_name(),
                    "conditions": { "ready": true },
                    "targetRef": { "kind": "Pod", "name": pod.name },
                })
            })
            .collect();
        let (suffix, kind) = if family == Family::V4 { ("ipv4", "IPv4") } else { ("ipv6", "IPv6") };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{suffix}"),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": kind,
            "ports": [{ "name": port_name, "protocol": "TCP", "port": port }],
            "endpoints": endpoints,
        });
        format!("{slice:#}\n")
    });
    // JSON is YAML: two documents.
    slices.join("---\n")
}
