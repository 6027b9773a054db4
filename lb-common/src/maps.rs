// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Names and default capacities of all maps, and the layout version that their pins carry.

use crate::flow::{Entry, table::WAYS};

/// Goes into the path of every pin: re-using a pinned map checks nothing, so maps of another layout must not be found.
/// Raise it with every change of a key, a value or their meaning.
pub const LAYOUT_VERSION: u32 = 6;

/// Configuration: array of one [`crate::config::Config`], memory-mapped.
pub const CONFIG: &str = "CONFIG";
/// Hash: [`crate::frontend::FrontendKey`] -> [`crate::frontend::Frontend`].
pub const FRONTENDS: &str = "FRONTENDS";
/// Array of [`crate::frontend::Backend`], memory-mapped. Index 0 is nobody's ([`crate::frontend::NO_BACKEND`]).
pub const BACKENDS: &str = "BACKENDS";
/// Array of [`Chunk`], memory-mapped: all Maglev tables.
pub const TABLES: &str = "TABLES";
/// Array of [`FlowSet<V4>`], memory-mapped: the flow table of IPv4. The number of sets is a power of two.
pub const FLOWS_V4: &str = "FLOWS_V4";
/// Array of [`FlowSet<V6>`], memory-mapped: that of IPv6.
pub const FLOWS_V6: &str = "FLOWS_V6";
/// Array of [`crate::flow::next_hop::NextHop`], memory-mapped: ways to destinations in IPv4.
pub const NEXT_HOPS_V4: &str = "NEXT_HOPS_V4";
/// The same in IPv6.
pub const NEXT_HOPS_V6: &str = "NEXT_HOPS_V6";
/// Per-CPU array, by [`crate::flow::Evicted`]: flows that were alive, and had to yield their place.
pub const EVICTIONS: &str = "EVICTIONS";
/// Array of one [`crate::filter::Filter`], memory-mapped: which packets concern us at all.
pub const FILTER: &str = "FILTER";
/// Hash: [`crate::address::Address`] -> `u32` (0): local addresses that answer NodePorts.
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
/// LRU hash: [`crate::frontend::AffinityKey`] -> [`crate::frontend::Affinity`].
pub const AFFINITY: &str = "AFFINITY";
/// LRU hash: [`crate::fragment::FragmentKey`] -> [`crate::fragment::Fragment`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// Longest-prefix trie: [`crate::frontend::SourceRange`] -> `u32` (0).
pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
/// Hash: ifindex -> [`crate::config::Interface`].
pub const INTERFACES: &str = "INTERFACES";
/// Hash: index of a Service port -> [`ServiceName`]. For people and restarts; no program reads it.
pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
/// Per-CPU array, by [`crate::verdict::Reason`].
pub const REASONS: &str = "REASONS";
/// Array of [`crate::counters::BackendCounters`], memory-mapped: those of each CPU side by side, by backend. (A per-CPU array
/// takes the kernel an allocation for every element, a tenth of a second for all, and the agent a system call.)
pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
/// Array of [`crate::counters::ServiceCounters`], memory-mapped: those of each CPU side by side, by Service port.
pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
/// Per-CPU array of one [`crate::counters::RejectBudget`].
pub const REJECT_BUDGET: &str = "REJECT_BUDGET";
/// Array of one [`crate::trace::TraceRecord`].
pub const TRACE: &str = "TRACE";
/// Program array: where the XDP programs go on, by [`tail`].
pub const XDP_PROGRAMS: &str = "XDP_PROGRAMS";
/// Program array: where the TC programs go on, by [`tail`].
pub const TC_PROGRAMS: &str = "TC_PROGRAMS";
/// LRU hash: cookie of a connected socket (`u64`) -> [`crate::socket::SocketEntry`].
pub const SOCKETS: &str = "SOCKETS";
/// LRU hash: [`crate::socket::TalkKey`] -> [`crate::socket::TalkEntry`].
pub const TALKS: &str = "TALKS";
/// Per-CPU array of one [`crate::conntrack::Question`].
pub const CONNTRACK: &str = "CONNTRACK";

/// All maps that are pinned and adopted by the next agent. Scratch space is not among them.
pub const PINNED: [&str; 26] = [
    CONFIG,
    FRONTENDS,
    BACKENDS,
    TABLES,
    FLOWS_V4,
    FLOWS_V6,
    NEXT_HOPS_V4,
    NEXT_HOPS_V6,
    EVICTIONS,
    FILTER,
    NODE_ADDRESSES,
    AFFINITY,
    FRAGMENTS,
    SOURCE_RANGES,
    INTERFACES,
    SERVICE_NAMES,
    REASONS,
    BACKEND_COUNTERS,
    SERVICE_COUNTERS,
    REJECT_BUDGET,
    TRACE,
    XDP_PROGRAMS,
    TC_PROGRAMS,
    SOCKETS,
    TALKS,
    CONNTRACK,
];

/// Names of the programs.
pub mod programs {
    /// XDP door of uplinks.
    pub const XDP: &str = "shunt_xdp";
    /// TC door, packets that arrive.
    pub const TC_INGRESS: &str = "shunt_tc_ingress";
    /// TC door, packets that leave.
    pub const TC_EGRESS: &str = "shunt_tc_egress";
    /// XDP door, packets that are not plain.
    pub const XDP_RARE: &str = "shunt_xdp_rare";
    /// TC door, packets that arrive and are not plain.
    pub const TC_INGRESS_RARE: &str = "shunt_tc_ingress_rare";
    /// TC door, packets that leave and are not plain.
    pub const TC_EGRESS_RARE: &str = "shunt_tc_egress_rare";
    /// TC: turns a refused packet into the answer to it.
    pub const TC_ANSWER: &str = "shunt_tc_answer";
    /// The net, packets that leave by its device or by the loopback device.
    pub const NET: &str = "shunt_net";
    /// The net, packets that are not plain.
    pub const NET_RARE: &str = "shunt_net_rare";
    /// The net, packets that arrive by its device.
    pub const NET_ARRIVAL: &str = "shunt_net_arrival";
    /// Socket door: a socket connects.
    pub const CONNECT4: &str = "shunt_connect4";
    /// The same, IPv6.
    pub const CONNECT6: &str = "shunt_connect6";
    /// Socket door: a UDP socket sends to an address.
    pub const SENDMSG4: &str = "shunt_sendmsg4";
    /// The same, IPv6.
    pub const SENDMSG6: &str = "shunt_sendmsg6";
    /// Socket door: a UDP socket is told who sent a datagram.
    pub const RECVMSG4: &str = "shunt_recvmsg4";
    /// The same, IPv6.
    pub const RECVMSG6: &str = "shunt_recvmsg6";
    /// Socket door: an application asks for its peer.
    pub const GETPEERNAME4: &str = "shunt_getpeername4";
    /// The same, IPv6.
    pub const GETPEERNAME6: &str = "shunt_getpeername6";
    /// Socket door: a socket is closed.
    pub const SOCK_RELEASE: &str = "shunt_sock_release";
    /// No door: tells the agent which tick it is, by a test run.
    pub const CLOCK: &str = "shunt_clock";

    /// Where programs go on: map, index and program.
    pub const TAILS: [(&str, u32, &str); 5] = [
        (super::XDP_PROGRAMS, super::tail::XDP_RARE, XDP_RARE),
        (super::TC_PROGRAMS, super::tail::TC_INGRESS_RARE, TC_INGRESS_RARE),
        (super::TC_PROGRAMS, super::tail::TC_EGRESS_RARE, TC_EGRESS_RARE),
        (super::TC_PROGRAMS, super::tail::TC_ANSWER, TC_ANSWER),
        (super::TC_PROGRAMS, super::tail::NET_RARE, NET_RARE),
    ];
}

/// Indices into the program arrays, of which each holds programs of one type.
pub mod tail {
    /// [`super::programs::XDP_RARE`].
    pub const XDP_RARE: u32 = 0;
    /// The agent's program that asks conntrack, for XDP.
    pub const XDP_CONNTRACK: u32 = 1;
    /// [`super::programs::TC_INGRESS_RARE`].
    pub const TC_INGRESS_RARE: u32 = 0;
    /// [`super::programs::TC_EGRESS_RARE`].
    pub const TC_EGRESS_RARE: u32 = 1;
    /// [`super::programs::TC_ANSWER`].
    pub const TC_ANSWER: u32 = 2;
    /// The agent's program that asks conntrack, for TC.
    pub const TC_CONNTRACK: u32 = 3;
    /// [`super::programs::NET_RARE`].
    pub const NET_RARE: u32 = 4;
    /// Length of the longer array.
    pub const COUNT: u32 = 5;
}

/// Slots in one element of the table array: elements of a memory-mapped array are rounded up to 8 bytes, so a lone
/// 4-byte slot would waste half of the memory.
pub const SLOTS_PER_CHUNK: u32 = 16;

/// Sixteen slots, each the index of a backend.
pub type Chunk = [u32; SLOTS_PER_CHUNK as usize];

/// One set of the flow table.
pub type FlowSet<F> = [Entry<F>; WAYS as usize];

/// Longest name of a Service port: namespace, name and port name are DNS labels of at most 63 bytes (RFC 1123), with two
/// separators; rounded up.
pub const SERVICE_NAME_LEN: usize = 192;

/// `namespace/name:port`, zero-padded, for people and for an agent that starts on existing maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ServiceName {
    /// UTF-8, zero-padded.
    pub text: [u8; SERVICE_NAME_LEN],
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub ip_version: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Default capacities; each is a flag of the agent. A full map is an error that names the flag.
pub mod capacity {
    /// Frontends: addresses times ports.
    pub const FRONTENDS: u32 = 131_072;
    /// Backends of all Service ports together.
    pub const BACKENDS: u32 = 131_072;
    /// Slots of all Maglev tables together: 32 MiB. 10,000 Services of three endpoints take half of them; a change needs
    /// room for a second table, and the first one rests before its room is free.
    pub const TABLE_SLOTS: u32 = 8 * 1024 * 1024;
    /// Flow entries per family, a power of two; a flow takes two. 32 MiB for IPv4, 64 MiB for IPv6.
    pub const FLOWS: u32 = 524_288;
    /// Service ports, per family.
    pub const SERVICES: u32 = 65_536;
    /// Local addresses that answer NodePorts.
    pub const NODE_ADDRESSES: u32 = 1_024;
    /// Clients of Services with session affinity.
    pub const AFFINITY: u32 = 65_536;
    /// Datagrams in fragments that are under way.
    pub const FRAGMENTS: u32 = 8_192;
    /// Source ranges of all Services.
    pub const SOURCE_RANGES: u32 = 16_384;
    /// Network devices.
    pub const INTERFACES: u32 = 4_096;
    /// Sockets that the socket door has connected to backends, and as many entries of those that send without a connection.
    pub const SOCKETS: u32 = 65_536;
}

/// Names of the programs' constants, which the agent sets as it loads them.
pub mod globals {
    /// Jiffies in a second ([`crate::clock::Clock::hz`]).
    pub const HZ: &str = "HZ";
    /// [`crate::clock::Clock::shift`].
    pub const TICK_SHIFT: &str = "TICK_SHIFT";
    /// First half of [`crate::config::Config::table_key`].
    pub const TABLE_KEY_0: &str = "TABLE_KEY_0";
    /// Second half of it.
    pub const TABLE_KEY_1: &str = "TABLE_KEY_1";
    /// Number of sets of [`super::FLOWS_V4`], less one.
    pub const FLOW_MASK_V4: &str = "FLOW_MASK_V4";
    /// The same of [`super::FLOWS_V6`].
    pub const FLOW_MASK_V6: &str = "FLOW_MASK_V6";
    /// Flags that `bpf_l4_csum_replace` wants for IPv6 addresses beside the pseudo-header's.
    pub const L4_CSUM_V6_FLAGS: &str = "L4_CSUM_V6_FLAGS";
    /// How many elements of [`super::BACKEND_COUNTERS`] each CPU has.
    pub const BACKENDS_A_CPU: &str = "BACKENDS_A_CPU";
    /// How many elements of [`super::SERVICE_COUNTERS`] each CPU has.
    pub const SERVICES_A_CPU: &str = "SERVICES_A_CPU";
    /// [`crate::socket::socket_mode`].
    pub const SOCKET_MODE: &str = "SOCKET_MODE";
    /// Cookie of the node's own network namespace.
    pub const NODE_NAMESPACE: &str = "NODE_NAMESPACE";
    /// 1 where a socket program can name its error.
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
}
