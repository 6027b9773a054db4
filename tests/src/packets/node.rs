// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node to test with: Services of every kind on [`Network`], the same for all protocols, IPv4 and IPv6.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::flow::{FlowState, protocol};

use super::{
    clock::clock,
    network::{LOOPBACK, MTU, NET, Network, POD, UPLINK},
};
use crate::reference::{Backend, Frontend, Interface, Net, Place, Policy, Setup, Version};

/// Idle ticks by flow state; short, so that tests can wait.
pub const TIMEOUTS: [u32; FlowState::COUNT] = [60, 80_000, 3_600, 3_601, 10, 30, 31, 11, 180];
/// Errors that may be sent in a tick.
pub const REJECTS_PER_TICK: u32 = 1000;

/// An address of each version.
pub type Both = [&'static str; 2];

/// A Service of one backend, or none. It stands at its port of [`CLUSTER_IP`] and at its NodePort.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Port of the ClusterIP; the NodePort is 30,000 more.
    pub port: u16,
    /// The backend; its port is 8080.
    pub backend: Option<Both>,
    /// What clients get where there is no backend.
    pub policy: Policy,
}

/// The ClusterIP of all Services.
pub const CLUSTER_IP: Both = ["10.96.0.1", "fd00:96::1"];
/// The backend's port.
pub const BACKEND_PORT: u16 = 8080;
/// This node, where NodePorts are.
pub const NODE: Both = ["192.0.2.1", "2001:db8:1::1"];
/// What the uplink's routes lead to.
pub const GATEWAY: Both = ["192.0.2.2", "2001:db8:1::2"];
/// What the second uplink's routes lead to.
pub const SECOND_GATEWAY: Both = ["198.51.100.2", "2001:db8:2::2"];
/// A client outside, behind the uplink.
pub const OUTSIDE: Both = ["203.0.113.7", "2001:db8:c::7"];
/// What the net gives to packets for backends here as their source.
pub const NET_SOURCE: Both = ["169.254.96.1", "fd96:ffff::1"];
/// A pod of this node that is a client.
pub const CALLER: Both = ["10.1.0.12", "fd00:1::12"];

/// Its backend is a pod of this node.
pub const HERE: Service = service(80, Some(["10.1.0.11", "fd00:1::11"]));
/// Its backend is on another node, back by the uplink.
pub const THERE: Service = service(81, Some(["10.2.0.21", "fd00:2::21"]));
/// Its backend is behind the second uplink, which takes no frames from XDP.
pub const ELSEWHERE: Service = service(82, Some(["10.3.0.31", "fd00:3::31"]));
/// The Ethernet address on the way to its backend is not known.
pub const UNRESOLVED: Service = service(83, Some(["10.4.0.41", "fd00:4::41"]));
/// There is no route to its backend.
pub const UNROUTED: Service = service(84, Some(["10.5.0.51", "fd00:5::51"]));
/// Its backend is behind a device without addresses.
pub const NAMELESS: Service = service(85, Some(["10.6.0.5", "fd00:6::5"]));
/// Its backend is the client itself.
pub const HAIRPIN: Service = service(86, Some(CALLER));
/// No endpoints.
pub const EMPTY: Service = service(87, None);
/// Endpoints, but none that its clients may use.
pub const LOCAL_ONLY: Service = Service { policy: Policy::Drop, ..service(88, None) };

/// All of them, by index of the Service port less one; so are their backends. Those of IPv6 come after.
pub const SERVICES: [Service; 9] = [HERE, THERE, ELSEWHERE, UNRESOLVED, UNROUTED, NAMELESS, HAIRPIN, EMPTY, LOCAL_ONLY];

const fn service(port: u16, backend: Option<Both>) -> Service {
    Service { port, backend, policy: Policy::Reject }
}

impl Service {
    /// At the ClusterIP.
    #[must_use]
    pub fn at_cluster_ip(&self, version: Version) -> SocketAddr {
        SocketAddr::new(pick(CLUSTER_IP, version), self.port)
    }

    /// At this node.
    #[must_use]
    pub fn at_node(&self, version: Version) -> SocketAddr {
        SocketAddr::new(pick(NODE, version), 30_000 + self.port)
    }

    /// Its backend.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn backend(&self, version: Version) -> SocketAddr {
        SocketAddr::new(pick(self.backend.expect("a backend"), version), BACKEND_PORT)
    }

    /// Index of the Service port, and of its backend.
    ///
    /// # Panics
    /// When it is not one of [`SERVICES`].
    #[must_use]
    pub fn index(&self, version: Version) -> u32 {
        let place = SERVICES.iter().position(|service| service.port == self.port).expect("one of SERVICES");
        1 + place as u32 + if version == Version::V4 { 0 } else { SERVICES.len() as u32 }
    }
}

/// The address of a version.
///
/// # Panics
/// When the text is no address.
#[must_use]
pub fn pick(both: Both, version: Version) -> IpAddr {
    both[usize::from(version == Version::V6)].parse().expect("an address")
}

/// This node with all [`SERVICES`].
///
/// # Panics
/// Never: the addresses above are addresses.
#[must_use]
pub fn setup(network: &Network) -> Setup {
    let mut setup = empty(network);
    for version in Version::BOTH {
        for service in SERVICES {
            let index = service.index(version);
            if let Some(address) = service.backend {
                let address = pick(address, version);
                let is_local = matches!(service.port, port if port == HERE.port || port == HAIRPIN.port);
                add_backend(&mut setup, index, (address, BACKEND_PORT), is_local);
            }
            let slots = service.backend.map_or_else(Vec::new, |_| vec![index; 7]);
            let frontend = Frontend {
                service: index,
                tables: [slots.clone(), slots],
                policies: [service.policy; 2],
                ..Frontend::default()
            };
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                let cluster_ip = Place::Address(pick(CLUSTER_IP, version));
                setup.frontends.insert((cluster_ip, service.port, protocol), frontend.clone());
                setup.frontends.insert((Place::Node(version), 30_000 + service.port, protocol), frontend.clone());
            }
        }
        setup.node_port_addresses.insert(pick(NODE, version));
    }
    setup
}

/// Puts a backend at an index.
pub fn add_backend(setup: &mut Setup, index: u32, address: (IpAddr, u16), is_local: bool) {
    let generation = setup.backends[index as usize].generation;
    let is_listed = [true, is_local];
    setup.backends[index as usize] =
        Backend { address: Some(address), generation, is_local, is_listed, service: index };
    setup.egress_filter.insert(address);
}

/// Changes all frontends of a Service port.
pub fn change_frontends(setup: &mut Setup, index: u32, change: impl Fn(&mut Frontend)) {
    setup.frontends.values_mut().filter(|frontend| frontend.service == index).for_each(change);
}

/// The net of this node.
#[must_use]
pub fn net() -> Net {
    Net { ifindex: NET, sources: Version::BOTH.map(|version| (version, pick(NET_SOURCE, version))).into() }
}

/// This node without Services.
#[must_use]
pub fn empty(network: &Network) -> Setup {
    let interface = |(&index, addresses): (&u32, &BTreeMap<Version, IpAddr>)| {
        let (is_pod, takes_xdp, is_nets) = (index == POD, index == UPLINK, index == NET);
        (index, Interface { addresses: addresses.clone(), is_pod, only_returns: false, takes_xdp, is_nets })
    };
    let loopback = (LOOPBACK, Interface { is_nets: true, ..Interface::default() });
    Setup {
        seed: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
        second: clock().hz(),
        source_ports: [Some(50_000..=50_999), None],
        node: network.addresses[&UPLINK].clone(),
        timeouts: TIMEOUTS,
        rejects_per_tick: REJECTS_PER_TICK,
        next_hop_generation: 1,
        mtu: MTU,
        frontends: BTreeMap::new(),
        guarded: [].into(),
        source_ranges: BTreeMap::new(),
        cluster_cidrs: BTreeMap::new(),
        masquerades_all: false,
        backends: vec![Backend::free(0); super::maps::BACKENDS as usize],
        node_port_addresses: [].into(),
        interfaces: network.addresses.iter().map(interface).chain([loopback]).collect(),
        net: Some(net()),
        passing: [].into(),
        ingress_filter: network.addresses.values().flat_map(BTreeMap::values).copied().collect(),
        egress_filter: [].into(),
        routes: network.routes.clone(),
        neighbours: network.neighbours.clone(),
        devices: network.devices.clone(),
        sockets: [].into(),
    }
}
