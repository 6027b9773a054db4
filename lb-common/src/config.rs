// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the programs must know of this node and of the agent's flags, in a memory-mapped array of one element. Times in it are
//! in ticks ([`crate::clock::Clock`]).

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, flow::FlowState, hash};

/// Index of a family in arrays of two.
#[inline(always)]
#[must_use]
pub const fn family_index(is_v4: bool) -> usize {
    if is_v4 { 0 } else { 1 }
}

/// Index of the loopback device, the first of every network namespace.
pub const LOOPBACK: u32 = 1;

/// The least [`Config::next_hop_generation`]: 0 marks a next hop that is nobody's or is being written, and with
/// [`config_flags::POLICY_ROUTING`] those that only the agent reads are of the generation before.
pub const FIRST_GENERATION: u32 = 2;

/// The element of the configuration map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Key of the flow hash; the same on all nodes of a cluster.
    pub seed: [u64; 2],
    /// Key of the flow table's hash; this node's own, and the same for as long as its table lives.
    pub table_key: [u64; 2],
    /// Counts changes of routes, neighbours and links: a cached next hop of another generation is looked up again. Never below
    /// [`FIRST_GENERATION`].
    pub next_hop_generation: u32,
    /// The ranges of ports for source translation.
    pub source_ports: [PortRange; 2],
    /// The node's primary addresses, IPv4 and IPv6: source of ICMP errors, and of translated packets that leave by a
    /// device without an address.
    pub node_addresses: [Address; 2],
    /// Idle time in ticks after which a flow of each [`FlowState`] counts as gone.
    pub timeouts: [u32; FlowState::COUNT],
    /// ICMP errors that each CPU may send in a tick.
    pub rejects_per_tick: u32,
    /// Where the pods of the cluster are, IPv4 and IPv6 (`--cluster-cidr`): sources in it that come by an uplink are pods
    /// of other nodes, and so internal clients.
    pub cluster_cidrs: [Cidr; 2],
    /// [`config_flags`].
    pub flags: u32,
    /// The net under the doors.
    pub net: Net,
}

/// The net: a device of our own to which the addresses of Services are routed, so that packets for them that no door has translated
/// meet a program there. All zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Net {
    /// Index of the device; 0 where there is none.
    pub ifindex: u32,
    /// Its Ethernet address twice, as destination and source, as they stand at the start of a frame that arrives by it.
    pub macs: [u32; 3],
    /// Addresses of nobody that are routed to the device, IPv4 and IPv6: the source of packets to backends here, whose replies
    /// come back by it.
    pub sources: [Address; 2],
}

impl Net {
    /// Whether there is one.
    #[inline(always)]
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.ifindex != 0
    }
}

/// A range of ports, host byte order; empty where the last one is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    /// Number of ports.
    #[inline(always)]
    #[must_use]
    pub const fn len(self) -> u32 {
        if self.last == 0 { 0 } else { (self.last.wrapping_sub(self.first)) as u32 + 1 }
    }

    /// Whether it has none.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Config {
    /// The source port at a point of both ranges, which are run together; a point is any number, spread evenly.
    #[inline(always)]
    #[must_use]
    pub const fn source_port(&self, point: u32) -> u16 {
        let [first, second] = self.source_ports;
        let offset = hash::scale((point as u64) << 32, first.len() + second.len());
        // Wrapping, in place of a branch: what lies beyond the first range's end begins the second.
        if offset < first.len() {
            first.first.wrapping_add(offset as u16)
        } else {
            second.first.wrapping_add((offset - first.len()) as u16)
        }
    }
}

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// Clients from outside are translated also where the backend is a pod of this node (`--masquerade-all`).
    pub const MASQUERADE_ALL: u32 = 1;
    /// NodePorts do not answer at localhost (`--nodeport-addresses` with ranges that leave it out).
    pub const NO_LOCALHOST: u32 = 2;
    /// The way to a destination is not the same for all packets (`ip rule from`, `iif` and others): none is cached.
    pub const POLICY_ROUTING: u32 = 4;
    /// Conntrack can be asked whether a packet answers what this node has sent ([`crate::conntrack`]).
    pub const ASKS_CONNTRACK: u32 = 8;

    const ALL: [u32; 4] = [MASQUERADE_ALL, NO_LOCALHOST, POLICY_ROUTING, ASKS_CONNTRACK];
    const _: () = {
        let (mut seen, mut number) = (0, 0);
        while number < ALL.len() {
            assert!(ALL[number].is_power_of_two() && seen & ALL[number] == 0, "each flag has a bit of its own");
            seen |= ALL[number];
            number += 1;
        }
    };
}

/// An address range as mask and value, in packet byte order. All zero matches nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Cidr {
    /// First address.
    pub address: Address,
    /// Mask of the prefix; for IPv4 in the v4-mapped form.
    pub mask: Address,
}

impl Cidr {
    /// Whether an address lies in the range.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, address: &Address) -> bool {
        let (value, mask, first) = (address.words_be(), self.mask.words_be(), self.address.words_be());
        !self.mask.is_unspecified()
            && value[0] & mask[0] == first[0]
            && value[1] & mask[1] == first[1]
            && value[2] & mask[2] == first[2]
            && value[3] & mask[3] == first[3]
    }
}

/// Bits of [`Interface::role`].
pub mod role {
    /// Leads to one or more pods of this node: its senders are internal clients.
    pub const POD: u16 = 1;
    /// Leads outside.
    pub const UPLINK: u16 = 2;
    /// Runs our XDP program natively, so that frames can be redirected to it.
    pub const XDP: u16 = 4;
    /// Runs our programs so that packets of flows that are there are translated wherever they cross the machine; nothing is
    /// decided for new ones.
    pub const RETURN: u16 = 8;
    /// Runs the programs of the net: its own device, and the loopback device.
    pub const NET: u16 = 16;
}

/// A network device, by its index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// An address of each family, IPv4 and IPv6; unspecified where it has none.
    pub addresses: [Address; 2],
    /// Ethernet address.
    pub mac: [u8; 6],
    /// [`role`].
    pub role: u16,
    /// Index of the bridge of which it is a port, which routes what comes by it; 0 for none.
    pub bridge: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Config>() == 232);
const _: () = assert!(size_of::<Interface>() == 48);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_contains_its_own() {
        let address = |text: &str| Address::from(text.parse::<core::net::IpAddr>().unwrap());
        let cidr = Cidr { address: address("10.244.0.0"), mask: address("::ffff:255.255.0.0") };
        let mut mask = *cidr.mask.words_be();
        mask[..3].fill(u32::MAX);
        let cidr = Cidr { mask: Address::from_words_be(mask), ..cidr };
        assert!(cidr.contains(&address("10.244.255.1")));
        assert!(!cidr.contains(&address("10.245.0.1")));
        assert!(!cidr.contains(&address("fd00::1")));
        assert!(!Cidr::default().contains(&Address::UNSPECIFIED));
    }

    #[test]
    fn both_ranges_of_source_ports_are_used_evenly() {
        let ranges = [(10_240, 29_999), (61_000, 65_535)].map(|(first, last)| PortRange { first, last });
        let config = Config { source_ports: ranges, ..Config::default() };
        let count = ranges[0].len() + ranges[1].len();
        assert_eq!(count, 24_296);
        let mut used = std::vec![0_u32; 65_536];
        for point in 0..4 * u64::from(count) {
            let point = (point << 32) / (4 * u64::from(count));
            used[usize::from(config.source_port(point as u32))] += 1;
        }
        for (port, &times) in used.iter().enumerate() {
            let is_ours = ranges.iter().any(|range| (range.first..=range.last).contains(&(port as u16)));
            assert!(if is_ours { (3..=5).contains(&times) } else { times == 0 }, "{port}: {times}");
        }
        let one = Config { source_ports: [PortRange { first: 61_000, last: 65_535 }, PortRange::default()], ..config };
        assert_eq!((one.source_port(0), one.source_port(u32::MAX)), (61_000, 65_535));
    }
}
