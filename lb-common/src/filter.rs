// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The filter that lets other traffic go: which packets may be of a Service, by address, port and protocol.
//!
//! ```text
//!  ingress: destination known? -no-> not ours          (traffic of others: one look)
//!              | a ClusterIP ----------------> ours    (all of its ports are spoken for)
//!              | a frontend's address, port ---> ours
//!              | a NodePort, or a source port -> ours
//!              +-------------------------------> not ours  (ssh, the kubelet, overlays)
//!  egress:  source known as a backend's? its port, too? -> ours
//!  from a pod to a backend itself: a connection begins, or UDP -> looked at; a direct flow's client -> ours
//! ```
//!
//! Bits are hashed: one that is set by chance costs a look at the flow table that finds nothing. Packets without ports (later fragments,
//! ICMP) go by the address alone.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::{
    address::Address,
    flow::protocol,
    hash::{FILTER_BITS, FILTER_PORT_BITS, filter_bit, filter_port_bit},
};

/// Devices that the filter tells apart: an index is the kernel's next number, and begins anew in each network namespace.
pub const DEVICE_BITS: u32 = 1 << 12;
/// Addresses of nodes that it tells apart.
pub const NODE_CELLS: u32 = 1 << 12;
/// Protocols that have ports: TCP, UDP, SCTP.
const PROTOCOLS: usize = 3;

/// The element of the filter map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Filter {
    /// Destinations at ingress: two bits for each address, [`KNOWN`] and [`WHOLE`].
    pub destinations: [u64; 2 * FILTER_BITS as usize / 64],
    /// Frontends at addresses of their own, with port and protocol.
    pub frontends: [u64; FILTER_PORT_BITS as usize / 64],
    /// NodePorts, and the ports for source translation: exactly, by protocol.
    pub node_ports: [[u64; 65_536 / 64]; PROTOCOLS],
    /// Sources at egress: the backends' addresses.
    pub sources: [u64; FILTER_BITS as usize / 64],
    /// Backends, with port and protocol.
    pub backends: [u64; FILTER_PORT_BITS as usize / 64],
    /// The node's own addresses, as far as they are told apart: from there it sends, too.
    pub nodes: [u64; NODE_CELLS as usize / 64],
    /// Devices that lead to pods of this node, by index.
    pub pods: [u64; DEVICE_BITS as usize / 64],
    /// Clients, with port and protocol, of flows to a backend itself that got another source port, because a Service's flow has
    /// theirs. Set by the programs, and never cleared.
    pub directs: [u64; FILTER_PORT_BITS as usize / 64],
}

/// Something of ours is at the address: a frontend, or this node.
pub const KNOWN: u64 = 1;
/// All ports of the address are ours: a ClusterIP.
pub const WHOLE: u64 = 2;

/// Which table of [`Filter::node_ports`] a protocol has; that of others is not asked.
#[inline(always)]
#[must_use]
pub const fn protocol_index(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => 0,
        protocol::UDP => 1,
        _ => 2,
    }
}

/// Whether a bit is set.
#[inline(always)]
#[must_use]
const fn has<const N: usize>(words: &[u64; N], bit: u32) -> bool {
    words[(bit >> 6) as usize & (N - 1)] >> (bit & 63) & 1 != 0
}

impl Filter {
    /// What is known of a destination whose hash is `cell` ([`filter_bit`]): [`KNOWN`], [`WHOLE`] or neither.
    #[inline(always)]
    #[must_use]
    pub const fn destination(&self, cell: u32) -> u64 {
        self.destinations[(cell >> 5) as usize & (self.destinations.len() - 1)] >> (2 * (cell & 31)) & 3
    }

    /// Whether a packet to a destination that is [`KNOWN`] may be ours by its port. `bit` is [`filter_port_bit`].
    #[inline(always)]
    #[must_use]
    pub const fn has_port(&self, bit: u32, port_be: u16, protocol: u8) -> bool {
        has(&self.frontends, bit) || has(&self.node_ports[protocol_index(protocol)], u16::from_be(port_be) as u32)
    }

    /// Whether a source may be a backend's: the address alone.
    #[inline(always)]
    #[must_use]
    pub const fn has_source(&self, cell: u32) -> bool {
        has(&self.sources, cell)
    }

    /// Whether it may be with its port.
    #[inline(always)]
    #[must_use]
    pub const fn has_backend(&self, bit: u32) -> bool {
        has(&self.backends, bit)
    }

    /// Whether an address may be this node's own. `cell` is [`filter_bit`].
    #[inline(always)]
    #[must_use]
    pub const fn is_node(&self, cell: u32) -> bool {
        has(&self.nodes, cell & (NODE_CELLS - 1))
    }

    /// Whether a device may lead to a pod.
    #[inline(always)]
    #[must_use]
    pub const fn is_pods(&self, ifindex: u32) -> bool {
        has(&self.pods, ifindex & (DEVICE_BITS - 1))
    }

    /// Whether a client, of which this is [`filter_port_bit`], may have a direct flow.
    #[inline(always)]
    #[must_use]
    pub const fn has_direct(&self, bit: u32) -> bool {
        has(&self.directs, bit)
    }

    /// Whether a word of the filter is one that the programs set.
    #[must_use]
    pub const fn is_programs(word: usize) -> bool {
        word >= offset_of!(Self, directs) / 8 && word < size_of::<Self>() / 8
    }

    /// Lets packets pass.
    pub fn add(&mut self, concern: Concern) {
        let words: &mut [u64] = bytemuck::cast_slice_mut(core::slice::from_mut(self));
        for (word, bits) in concern.bits() {
            words[word] |= bits;
        }
    }
}

/// Packets that concern us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Those to an address of this node, by NodePorts and source ports.
    Node(Address),
    /// All those to a ClusterIP.
    ClusterIp(Address),
    /// Those to a frontend at an address of its own: port in network byte order, protocol.
    Frontend(Address, u16, u8),
    /// Those to a NodePort or a port for source translation at the node's addresses: port in host byte order, protocol.
    NodePort(u16, u8),
    /// Those from a backend: port in network byte order, protocol.
    Backend(Address, u16, u8),
    /// Those of pods to a backend itself, that come by a device.
    PodDevice(u32),
}

impl Concern {
    /// Which bits of which 64-bit words of the filter let them pass. For whoever writes the map while programs read it.
    pub fn bits(self) -> impl Iterator<Item = (usize, u64)> {
        let destination = |address: &Address, what: u64| {
            let cell = filter_bit(address.words_be());
            (offset_of!(Filter, destinations) / 8 + (cell >> 5) as usize, what << (2 * (cell & 31)))
        };
        let bit = |start: usize, bit: u32| (start / 8 + (bit >> 6) as usize, 1 << (bit & 63));
        let [first, second] = match self {
            Self::Node(address) => {
                let cell = filter_bit(address.words_be()) & (NODE_CELLS - 1);
                [Some(destination(&address, KNOWN)), Some(bit(offset_of!(Filter, nodes), cell))]
            }
            Self::ClusterIp(address) => [Some(destination(&address, KNOWN | WHOLE)), None],
            Self::Frontend(address, port_be, protocol) => [
                Some(destination(&address, KNOWN)),
                Some(bit(offset_of!(Filter, frontends), filter_port_bit(address.words_be(), port_be, protocol))),
            ],
            Self::NodePort(port, protocol) => {
                let start = offset_of!(Filter, node_ports) + protocol_index(protocol) * (65_536 / 8);
                [Some(bit(start, u32::from(port))), None]
            }
            Self::Backend(address, port_be, protocol) => [
                Some(bit(offset_of!(Filter, sources), filter_bit(address.words_be()))),
                Some(bit(offset_of!(Filter, backends), filter_port_bit(address.words_be(), port_be, protocol))),
            ],
            Self::PodDevice(ifindex) => [Some(bit(offset_of!(Filter, pods), ifindex & (DEVICE_BITS - 1))), None],
        };
        first.into_iter().chain(second)
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;
    use std::boxed::Box;

    use super::*;

    fn empty() -> Box<Filter> {
        bytemuck::allocation::zeroed_box()
    }

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().unwrap())
    }

    fn concerns(filter: &Filter, to: &str, port: u16, protocol: u8) -> bool {
        let to = address(to);
        match filter.destination(filter_bit(to.words_be())) {
            0 => false,
            known => {
                known & WHOLE != 0
                    || filter.has_port(filter_port_bit(to.words_be(), port.to_be(), protocol), port.to_be(), protocol)
            }
        }
    }

    #[test]
    fn only_ports_of_services_are_ours() {
        let mut filter = empty();
        for concern in [
            Concern::ClusterIp(address("10.96.0.1")),
            Concern::Frontend(address("10.96.0.1"), 443_u16.to_be(), protocol::TCP),
            Concern::Frontend(address("203.0.113.1"), 80_u16.to_be(), protocol::TCP),
            Concern::Node(address("192.0.2.1")),
            Concern::NodePort(30_080, protocol::TCP),
        ] {
            filter.add(concern);
        }
        for (to, port, protocol, is_ours) in [
            ("10.96.0.1", 443, protocol::TCP, true),
            ("10.96.0.1", 22, protocol::UDP, true),
            ("203.0.113.1", 80, protocol::TCP, true),
            ("203.0.113.1", 80, protocol::UDP, false),
            ("203.0.113.1", 22, protocol::TCP, false),
            ("192.0.2.1", 30_080, protocol::TCP, true),
            ("192.0.2.1", 22, protocol::TCP, false),
            ("192.0.2.1", 8_472, protocol::UDP, false),
            ("198.51.100.1", 30_080, protocol::TCP, false),
        ] {
            assert_eq!(concerns(&filter, to, port, protocol), is_ours, "{to}:{port}/{protocol}");
        }
    }

    #[test]
    fn the_nodes_own_addresses_and_the_devices_of_its_pods_are_known() {
        let mut filter = empty();
        filter.add(Concern::Node(address("192.0.2.1")));
        filter.add(Concern::Frontend(address("203.0.113.1"), 80_u16.to_be(), protocol::TCP));
        let is_node = |of: &str| filter.is_node(filter_bit(address(of).words_be()));
        assert!(is_node("192.0.2.1") && !is_node("203.0.113.1"));
        filter.add(Concern::PodDevice(7));
        assert!(filter.is_pods(7) && !filter.is_pods(8));
        let programs: std::vec::Vec<_> =
            (0..size_of::<Filter>() / 8).filter(|&word| Filter::is_programs(word)).collect();
        assert_eq!(programs.len(), FILTER_PORT_BITS as usize / 64, "those of direct flows");
    }

    #[test]
    fn a_backend_is_known_with_its_port() {
        let mut filter = empty();
        filter.add(Concern::Backend(address("fd00::7"), 8_080_u16.to_be(), protocol::TCP));
        let bit = |port: u16| filter_port_bit(address("fd00::7").words_be(), port.to_be(), protocol::TCP);
        assert!(filter.has_source(filter_bit(address("fd00::7").words_be())));
        assert!(filter.has_backend(bit(8_080)) && !filter.has_backend(bit(8_081)));
    }
}
