// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flags of `lb-agent run`, and their defaults.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::ArgAction;
use lb_common::maps::capacity;

use super::values::{ClusterCidrs, Seconds, SourceSpec};
use crate::{
    dataplane::{SocketMode, XdpMode},
    diff::Capacities,
    hash_seed::HashSeed,
    node::{
        addresses::NodePortAddresses,
        net::{NetSources, ServiceRange},
        pattern::Pattern,
        ports::SourcePorts,
        roles::Selection,
    },
    source::SecretName,
    sync::NetOptions,
};

/// Flags of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Where Services, EndpointSlices and Nodes come from: `kube`, or `dir:PATH` for a directory of manifests
    #[arg(long, value_name = "kube|dir:PATH")]
    pub source: SourceSpec,
    /// kube-proxy's own configuration file (kubeproxy.config.k8s.io/v1alpha1). Flags beside it win; what it holds and
    /// means nothing here is named in the log. When it changes the agent ends, to be started anew; forwarding goes on
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Access to the Kubernetes API; default: $KUBECONFIG, else that of the pod
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this machine's Node object; default: the host name
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a comment here for the help of the whole command")]
    pub devices: DeviceArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "as above")]
    pub net: NetArgs,
    /// Directory of the pinned maps and programs, on a bpffs that is mounted there if none is; one per agent
    #[arg(long, value_name = "DIR", default_value = crate::dataplane::DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Whose connections are translated when they are made, so that their packets need no translation
    #[arg(long, value_enum, default_value_t = SocketMode::Host)]
    pub socket_lb: SocketMode,
    /// The cgroup v2 directory whose sockets these are; default: the root of the first cgroup v2 file system
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Local addresses that answer NodePorts: the words `primary`, `localhost` (by the socket door) and `all`, and ranges.
    /// `primary` alone includes localhost, ranges alone do not
    #[arg(long, value_name = "primary|localhost|all|CIDR,..", default_value = "primary")]
    pub nodeport_addresses: NodePortAddresses,
    /// Whether `spec.externalIPs` of Services are served. Who may edit a Service takes any address with it
    /// (CVE-2020-8554): give `false` unless your admission control forbids that
    #[arg(long, value_name = "true|false", default_value_t = true, action = ArgAction::Set)]
    pub external_ips: bool,
    /// Where to answer /healthz and /livez
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    /// Where to answer /metrics, /proxyMode, /configz, /flagz and /statusz
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 10249)))]
    pub metrics_bind_address: SocketAddr,
    /// Pass on the programs' own log, if they were built with one (`cargo xtask build-ebpf --log`)
    #[arg(long)]
    pub program_log: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "as above")]
    pub flows: FlowArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "as above")]
    pub capacities: CapacityArgs,
}

/// Flags about devices.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Devices by which clients come from outside; default: all Ethernet devices that neither lead to pods or other containers nor are
    /// ports of a bridge or bond. Tunnels to other nodes (VXLAN, Geneve) do in any case. By others replies leave, but nobody comes in
    #[arg(long, value_name = "IF,..", value_delimiter = ',')]
    pub uplink: Vec<String>,
    /// Names of the devices that lead to pods. So do veths whose other end is in another network namespace, unless they have a default
    /// route, the node's address, or another one that is not alone in its network (/32)
    #[arg(
        long,
        value_name = "GLOB,..",
        value_delimiter = ',',
        default_value = "veth*,cali*,lxc*,eni*,gke*,azv*,tap*,nk*,ve-*,antrea-gw*,cilium_*"
    )]
    pub pod_interface: Vec<Pattern>,
    /// How to use XDP on uplinks that are named, or have a default route or the node's address; TC serves on the others. `auto` takes
    /// what the driver offers and leaves veth to TC
    #[arg(long, value_enum, default_value_t = XdpMode::Auto)]
    pub xdp: XdpMode,
}

impl DeviceArgs {
    /// How devices are chosen.
    #[must_use]
    pub fn selection(&self) -> Selection {
        Selection { uplinks: self.uplink.clone(), pods: self.pod_interface.clone() }
    }
}

/// Flags about the net under the doors.
#[derive(Clone, Debug, clap::Args)]
pub struct NetArgs {
    /// A device of the agent's own, shunt0, to which ClusterIPs are routed: what no door has translated is served there, and
    /// what is for no Service goes no further. New, and not for every network yet: see docs/switching.md
    #[arg(long, value_enum, default_value_t = NetMode::Off)]
    pub net: NetMode,
    /// With --net auto: ranges whose addresses are Services' alone, beside those of ServiceCIDR objects (Kubernetes before 1.33 has
    /// none), such as a load balancer's pool. They are routed to shunt0 as a whole; ClusterIPs outside of all ranges are one by one
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    pub service_cidr: Vec<ServiceRange>,
    /// Addresses of nobody, one of each family, which backends on this node see as the client where shunt0 serves it
    #[arg(long, value_name = "IPV4,IPV6", default_value_t = NetSources::default())]
    pub net_sources: NetSources,
}

/// The flag `--net`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum NetMode {
    /// Where the kernel has such a device
    Auto,
    /// Not at all: what is there of it is taken away
    #[default]
    Off,
}

impl NetArgs {
    /// What the net should be.
    #[must_use]
    pub fn options(&self) -> NetOptions {
        NetOptions {
            is_off: self.net == NetMode::Off,
            ranges: self.service_cidr.iter().map(|range| range.0).collect(),
            sources: self.net_sources,
        }
    }
}

/// Flags about flows.
#[derive(Clone, Debug, clap::Args)]
pub struct FlowArgs {
    /// Ports for source translation, one range or two: processes of the node may listen on them, but not connect from them
    #[arg(long, value_name = "FIRST-LAST,..", default_value = "10240-29999,61000-65535")]
    pub source_ports: SourcePorts,
    /// Translate the source of every client from outside, also where the backend is a pod of this node, which then sees the node
    /// instead. These packets pass no FORWARD rules of netfilter; pods' do, and so keep their addresses
    #[arg(long)]
    pub masquerade_all: bool,
    /// Where all pods of the cluster are, one range of each family: those of other nodes then count as clients inside
    #[arg(long, value_name = "CIDR,..")]
    pub cluster_cidr: Option<ClusterCidrs>,
    /// Key of the flow hash, 32 hex digits: the same on all nodes, and secret, so that nobody can aim at a backend. Everybody
    /// on the node can read a command line: use --hash-seed-file or --hash-seed-secret
    #[arg(long, value_name = "HEX32", conflicts_with = "hash_seed_file")]
    pub hash_seed: Option<HashSeed>,
    /// File with the key of the flow hash. Default: with --source dir:PATH the file `hash-seed` in PATH if there is one, with
    /// --source kube the Secret below; else the key in use, at first a random one
    #[arg(long, value_name = "FILE")]
    pub hash_seed_file: Option<PathBuf>,
    /// With --source kube: the Secret whose `hash-seed` is the key of the flow hash; an agent that finds it without one makes
    /// one
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/shunt-hash-seed")]
    pub hash_seed_secret: SecretName,
    /// Idle time of a TCP connection that the client has not confirmed
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub tcp_timeout_half_open: Seconds,
    /// Idle time of an established TCP connection
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub tcp_timeout_established: Seconds,
    /// Idle time of a TCP connection after both FINs, or an RST
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub tcp_timeout_closing: Seconds,
    /// Idle time of a TCP connection that one side has closed
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub tcp_timeout_close_wait: Seconds,
    /// Idle time of UDP without a reply, and of a question and its answer, as conntrack's nf_conntrack_udp_timeout
    #[arg(long, value_name = "TIME", default_value = "30s", alias = "udp-timeout-unreplied")]
    pub udp_timeout: Seconds,
    /// Idle time of UDP both ways for longer than 2 s, as conntrack's nf_conntrack_udp_timeout_stream
    #[arg(long, value_name = "TIME", default_value = "180s", alias = "udp-timeout-replied")]
    pub udp_stream_timeout: Seconds,
    /// ICMP errors that each CPU may send in a second to clients of Services without endpoints
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub reject_rate: u32,
}

/// Flags about the sizes of maps.
#[derive(Clone, Debug, clap::Args)]
pub struct CapacityArgs {
    /// Frontends: addresses times ports
    #[arg(long, value_name = "N", default_value_t = capacity::FRONTENDS)]
    pub max_frontends: u32,
    /// Backends of all Service ports together
    #[arg(long, value_name = "N", default_value_t = capacity::BACKENDS)]
    pub max_backends: u32,
    /// Slots of all lookup tables together; a table takes about 100 for each backend
    #[arg(long, value_name = "N", default_value_t = capacity::TABLE_SLOTS)]
    pub max_table_slots: u32,
    /// Flow entries of each family, rounded up to a power of two from 8 on; a flow takes two. Of more than that, the new ones take the
    /// places of flows that are over, that have only begun, or that are idle
    #[arg(long, value_name = "N", default_value_t = capacity::FLOWS)]
    pub max_flows: u32,
    /// Of earlier versions, which kept flows that had only begun apart
    #[arg(long, value_name = "N", hide = true)]
    pub max_young_flows: Option<u32>,
    /// Service ports, each family's counted
    #[arg(long, value_name = "N", default_value_t = capacity::SERVICES)]
    pub max_services: u32,
    /// Source ranges of all Service ports together
    #[arg(long, value_name = "N", default_value_t = capacity::SOURCE_RANGES)]
    pub max_source_ranges: u32,
    /// Clients of Services with session affinity; of more than that, the longest idle are forgotten
    #[arg(long, value_name = "N", default_value_t = capacity::AFFINITY)]
    pub max_affinity: u32,
    /// Datagrams in fragments that are under way; of more than that, the oldest lose their later fragments
    #[arg(long, value_name = "N", default_value_t = capacity::FRAGMENTS)]
    pub max_fragments: u32,
    /// Devices of this node that have an address, or lead to pods or outside
    #[arg(long, value_name = "N", default_value_t = capacity::INTERFACES)]
    pub max_interfaces: u32,
    /// Local addresses that answer NodePorts
    #[arg(long, value_name = "N", default_value_t = capacity::NODE_ADDRESSES)]
    pub max_node_addresses: u32,
    /// Open sockets that are connected to backends by the socket door; of more than that, the oldest are shown the backend's
    /// address, and stay open when it goes. As many entries for UDP without a connection, of which a socket and a Service take
    /// two
    #[arg(long, value_name = "N", default_value_t = capacity::SOCKETS)]
    pub max_sockets: u32,
    /// Memory that all maps together may take, in MiB: more is refused at the start
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub max_map_memory: u32,
}

impl CapacityArgs {
    /// The capacities of the maps. `families` are those of which the node has addresses.
    #[must_use]
    pub fn capacities(&self, families: [bool; 2]) -> Capacities {
        Capacities {
            frontends: self.max_frontends,
            backends: self.max_backends,
            table_slots: self.max_table_slots,
            flows: self.max_flows,
            families,
            services: self.max_services,
            source_ranges: self.max_source_ranges,
            affinity: self.max_affinity,
            fragments: self.max_fragments,
            interfaces: self.max_interfaces,
            node_addresses: self.max_node_addresses,
            sockets: self.max_sockets,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let cli = Cli::try_parse_from(["lb-agent", "run"].iter().chain(args))?;
        match cli.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_source_is_all_that_is_needed() {
        let args = run(&["--source", "dir:/etc/shunt"]).unwrap();
        assert_eq!(args.source, SourceSpec::Dir("/etc/shunt".into()));
        assert_eq!(args.nodeport_addresses, NodePortAddresses::default());
        assert!(args.external_ips);
        assert_eq!(args.flows.tcp_timeout_established, Seconds(86_400));
        assert_eq!(args.devices.pod_interface.len(), 11);
        assert!(run(&[]).is_err());
    }

    #[test]
    fn the_net_is_there_where_it_is_wanted() {
        let options = |flags: &[&str]| run(&[&["--source", "kube"], flags].concat()).map(|args| args.net.options());
        assert!(options(&[]).unwrap().is_off);
        assert_eq!(options(&["--net", "auto"]).unwrap(), NetOptions::default());
        let flags =
            ["--net", "off", "--service-cidr", "10.96.0.0/12,fd00:96::/108", "--net-sources", "192.0.2.9,fd00::9"];
        let given = options(&flags).unwrap();
        assert!(given.is_off);
        assert_eq!(given.ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.0/12", "fd00:96::/108"]);
        assert_eq!(given.sources.to_string(), "192.0.2.9,fd00::9");
    }

    #[test]
    fn flags_of_earlier_versions_are_taken() {
        let args = run(&[
            "--source",
            "kube",
            "--udp-timeout-unreplied",
            "20s",
            "--udp-timeout-replied",
            "120s",
            "--max-young-flows",
            "8",
        ]);
        let args = args.unwrap();
        assert_eq!([args.flows.udp_timeout, args.flows.udp_stream_timeout], [Seconds(20), Seconds(120)]);
        assert_eq!(args.capacities.max_young_flows, Some(8));
    }

    #[test]
    fn bad_values_say_what_is_wanted() {
        for (args, wanted) in [
            (["--source", "file:x"], "dir:PATH"),
            (["--hash-seed", "12"], "32 hex digits"),
            (["--udp-stream-timeout", "3"], "90s"),
            (["--source-ports", "9"], "61000-65535"),
            (["--service-cidr", "0.0.0.0/0"], "10.96.0.0/12"),
            (["--net-sources", "192.0.2.9"], "169.254.96.1"),
            (["--net", "on"], "auto"),
        ] {
            let text = run(&args).unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }
}
