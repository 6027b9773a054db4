// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs go by: Services, backends, devices, routes, settings. The agent's and the kernel's part, in plain types.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use lb_common::{
    address::Address,
    filter::NODE_CELLS,
    flow::{FlowState, protocol},
    hash,
};

use super::{
    flow::{NextHop, Tuple},
    route::{Prefix, Route, Way, way_to},
};

/// IP version 4 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At an address of its own.
    Address(IpAddr),
    /// At each of the node's addresses that answer NodePorts.
    Node(Version),
}

impl Place {
    /// An address of its own.
    pub(super) const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Node(_) => None,
        }
    }
}

/// What becomes of new flows for which there is no backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// An ICMP error.
    #[default]
    Reject,
    /// Silence.
    Drop,
    /// None of our business; for clients outside only.
    Pass,
}

/// Endpoints that may be used: those of the whole cluster, or those on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum List {
    /// The cluster's.
    #[default]
    Cluster,
    /// This node's.
    Local,
}

/// What a new flow gets, for internal clients and external ones: index 0 and 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Index of the Service port.
    pub service: u32,
    /// Slots of the lookup tables: each the index of a backend. Empty where no backend may be used.
    pub tables: [Vec<u32>; 2],
    /// For when they are empty.
    pub policies: [Policy; 2],
    /// What the tables are made of.
    pub lists: [List; 2],
    /// Idle ticks for which a client stays with its backend, at all frontends of the Service port; `None` for no affinity.
    pub affinity: Option<u32>,
    /// Only clients in the Service port's source ranges are let in.
    pub is_restricted: bool,
    /// TCP connections are reset when their backend goes.
    pub resets: bool,
}

/// A backend index: in use, or free. One that was never used is generation 0 and free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address and port; `None` where the index is free.
    pub address: Option<(IpAddr, u16)>,
    /// How often the index was freed.
    pub generation: u32,
    /// On this node.
    pub is_local: bool,
    /// In the cluster list and in the local list.
    pub is_listed: [bool; 2],
    /// Index of the Service port.
    pub service: u32,
}

impl Backend {
    /// A free index.
    #[must_use]
    pub const fn free(generation: u32) -> Self {
        Self { address: None, generation, is_local: false, is_listed: [false; 2], service: 0 }
    }

    /// Whether it is in a list.
    pub(super) const fn is_in(&self, list: List) -> bool {
        match list {
            List::Cluster => self.is_listed[0],
            List::Local => self.is_listed[1],
        }
    }
}

/// What the agent says about a device. Addresses are what its programs take as sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The device's first address of each version.
    pub addresses: BTreeMap<Version, IpAddr>,
    /// Leads to pods of this node: its senders are internal clients.
    pub is_pod: bool,
    /// Replies cross it, and nothing new comes in.
    pub only_returns: bool,
    /// Takes frames that XDP redirects.
    pub takes_xdp: bool,
    /// What leaves by it meets the net, and no other door.
    pub is_nets: bool,
}

/// A device to which the addresses of Services are routed, so that what no door has translated meets a program there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// The device.
    pub ifindex: u32,
    /// Addresses of nobody that are routed to it, for packets to backends here: their replies come back by it.
    pub sources: BTreeMap<Version, IpAddr>,
}

/// Everything that decisions depend on, but the flow table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Key of the flow hash.
    pub seed: [u64; 2],
    /// Jiffies in a second.
    pub second: u32,
    /// Ports for source translation: one range, and another where there is one.
    pub source_ports: [Option<RangeInclusive<u16>>; 2],
    /// The node's own addresses, for ICMP errors and as sources where the device has none.
    pub node: BTreeMap<Version, IpAddr>,
    /// Idle ticks by flow state.
    pub timeouts: [u32; FlowState::COUNT],
    /// Budget of ICMP errors.
    pub rejects_per_tick: u32,
    /// Counts changes of routes and neighbours.
    pub next_hop_generation: u32,
    /// MTU of all ways, in bytes.
    pub mtu: u16,
    /// By place, port and protocol.
    pub frontends: BTreeMap<(Place, u16, u8), Frontend>,
    /// ClusterIPs whose undefined ports are refused.
    pub guarded: BTreeSet<IpAddr>,
    /// Who is let in where a frontend is restricted, by Service port.
    pub source_ranges: BTreeMap<u32, BTreeSet<Prefix>>,
    /// Where the cluster's pods are: clients from there are internal, whatever device they come by.
    pub cluster_cidrs: BTreeMap<Version, Prefix>,
    /// Every source is translated, where packets can be forwarded at all.
    pub masquerades_all: bool,
    /// By index; index 0 is never used, and there are none beyond the last.
    pub backends: Vec<Backend>,
    /// The node's addresses that answer NodePorts.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// By index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The net under the doors, where there is one.
    pub net: Option<Net>,
    /// Where replies to what the net has forwarded come in: clients, with protocol. The programs have let them pass the filter.
    pub passing: BTreeSet<(SocketAddr, u8)>,
    /// The node's own addresses, to which NodePorts and replies to translated sources come. That packets to frontends concern Shunt goes
    /// without saying.
    pub ingress_filter: BTreeSet<IpAddr>,
    /// Backends that there are or were: packets that leave from there concern it.
    pub egress_filter: BTreeSet<(IpAddr, u16)>,
    /// The kernel's routes.
    pub routes: Vec<Route>,
    /// Ethernet addresses of neighbours, by device and address.
    pub neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// Ethernet addresses of the devices themselves.
    pub devices: BTreeMap<u32, [u8; 6]>,
    /// The node's sockets that are connected, by the packets that they wait for.
    pub sockets: BTreeSet<Tuple>,
}

impl Setup {
    /// A backend, if the index is one.
    pub(super) fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.get(index as usize)
    }

    /// A port for source translation, by any number: both ranges are run together.
    pub(super) fn source_port(&self, point: u32) -> u16 {
        let ports = || self.source_ports.iter().flatten().flat_map(Clone::clone);
        let count =
            self.source_ports.iter().flatten().map(|range| u64::from(range.end() - range.start()) + 1).sum::<u64>();
        let place = (u64::from(point) * count) >> 32;
        ports().nth(usize::try_from(place).expect("a small number")).expect("below the number of ports")
    }

    /// Whether a port is one for source translation.
    #[must_use]
    pub fn is_source_port(&self, port: u16) -> bool {
        self.source_ports.iter().flatten().any(|range| range.contains(&port))
    }

    /// Whether the filter lets a destination pass by its address. It is a bit per hash of an address, so it may say yes to a stranger
    /// too: the agent and the programs agree on that hash, and so must we.
    pub(super) fn filters_in(&self, destination: IpAddr) -> bool {
        let frontends = self.frontends.keys().filter_map(|(place, ..)| place.address());
        let clients = self.passing.iter().map(|(client, _)| client.ip());
        let known = self.ingress_filter.iter().chain(&self.guarded).copied().chain(frontends).chain(clients);
        let cell = cell(destination);
        known.into_iter().any(|known| self::cell(known) == cell)
    }

    /// Whether all ports of a destination are taken for a ClusterIP's.
    pub(super) fn is_guarded(&self, destination: IpAddr) -> bool {
        self.guarded.iter().any(|&guarded| cell(guarded) == cell(destination))
    }

    /// Whether an address is taken for this node's: the filter says that it may be, and the kernel forwards nothing there. (It says the
    /// same of an address without a route.)
    pub(super) fn is_taken_for_own(&self, address: IpAddr) -> bool {
        let cell = |address| cell(address) & (NODE_CELLS - 1);
        let may_be_own = self.ingress_filter.iter().any(|&own| cell(own) == cell(address));
        may_be_own && self.way_to(address) == Way::Nowhere
    }

    /// Whether it does by its port: any of a ClusterIP's, a frontend's own, a NodePort, a source port.
    pub(super) fn filters_in_port(&self, destination: SocketAddr, protocol: u8) -> bool {
        let bit = port_bit(destination, protocol);
        let is_frontend = |(&(place, port, of), _): (&(Place, u16, u8), &Frontend)| match place {
            Place::Address(address) => port_bit(SocketAddr::new(address, port), of) == bit,
            Place::Node(_) => (port, of) == (destination.port(), protocol),
        };
        self.is_guarded(destination.ip())
            || self.frontends.iter().any(is_frontend)
            || self.passing.iter().any(|&(client, of)| port_bit(client, of) == bit)
            || self.is_source_port(destination.port())
    }

    /// Whether it lets a packet that leaves pass by its source address.
    pub(super) fn filters_out(&self, source: IpAddr) -> bool {
        let cell = cell(source);
        self.egress_filter.iter().any(|&(known, _)| self::cell(known) == cell)
    }

    /// Whether it does by its source port.
    pub(super) fn filters_out_port(&self, source: SocketAddr, protocol: u8) -> bool {
        let bit = port_bit(source, protocol);
        self.egress_filter.iter().any(|&known| ALL_PROTOCOLS.iter().any(|&of| port_bit(known.into(), of) == bit))
    }

    /// The next hop to a destination, if the neighbour is known.
    #[must_use]
    pub fn next_hop_to(&self, destination: IpAddr) -> Option<NextHop> {
        let Way::Known { ifindex, neighbour } = self.way_to(destination) else { return None };
        let addresses = [neighbour, self.devices[&ifindex]].concat().try_into().expect("twice six bytes");
        Some(NextHop { ifindex, generation: self.next_hop_generation, addresses })
    }

    /// Whether a device leads to pods of this node.
    pub(super) fn is_pods(&self, ifindex: u32) -> bool {
        self.interfaces.get(&ifindex).is_some_and(|interface| interface.is_pod)
    }

    /// Whether an address is one of those that only the net's packets come from.
    pub(super) fn is_net_source(&self, address: IpAddr) -> bool {
        self.net.as_ref().is_some_and(|net| net.sources.get(&Version::of(address)) == Some(&address))
    }

    /// Whether packets that leave by a device are answered by ones that a door sees: it leads out of this node, and has programs.
    pub(super) fn has_door_outside(&self, ifindex: u32) -> bool {
        self.interfaces.get(&ifindex).is_some_and(|device| !device.is_pod && !device.is_nets)
    }

    /// Whether new packets from clients outside come by a device.
    pub(super) fn is_uplink(&self, ifindex: u32) -> bool {
        self.has_door_outside(ifindex) && !self.interfaces[&ifindex].only_returns
    }

    /// Both Ethernet addresses of what arrives by the net's device.
    pub(super) fn net_addresses(&self) -> Option<[u8; 12]> {
        let own = self.devices[&self.net.as_ref()?.ifindex];
        Some([own, own].concat().try_into().expect("twice six bytes"))
    }

    /// How the kernel would send to a destination.
    pub(super) fn way_to(&self, destination: IpAddr) -> Way {
        way_to(&self.routes, &self.neighbours, destination)
    }
}

/// Those that have ports.
const ALL_PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// Where the filter has an address.
fn cell(address: IpAddr) -> u32 {
    hash::filter_bit(Address::from(address).words_be())
}

/// Where it has one with port and protocol.
fn port_bit(end: SocketAddr, protocol: u8) -> u32 {
    hash::filter_port_bit(Address::from(end.ip()).words_be(), end.port().to_be(), protocol)
}
