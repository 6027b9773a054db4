// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's devices, addresses and neighbours, kept from a stream of changes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::net::DEVICE;

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name; may change while the index stays.
    pub name: String,
    /// The kernel's name of its driver, `veth` or `bridge`; empty for a physical device.
    pub kind: String,
    /// Ethernet address; zero where it has none.
    pub mac: [u8; 6],
    /// Whether its frames begin with an Ethernet header: the programs parse nothing else.
    pub is_ethernet: bool,
    /// Whether it is a loopback device, which leads nowhere.
    pub is_loopback: bool,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Longest IP packet that it sends, in bytes. Flows keep that of their way.
    pub mtu: u32,
    /// Index of the device of which it is a port (a bridge, a bond) or a member (a VRF); 0 for none.
    pub controller: u32,
    /// Index of the device that it stands on, as a VLAN or a macvlan does; 0 for none. A veth's is that of its other end.
    pub lower: u32,
    /// Whether that one is in another network namespace.
    pub is_peer_elsewhere: bool,
}

/// The devices that hold every ClusterIP where kube-proxy in IPVS mode, or kube-router, serves or has served.
const IPVS_DEVICES: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// The driver of bridges.
pub const BRIDGE: &str = "bridge";
/// The driver of veth pairs.
pub const VETH: &str = "veth";
/// The driver of VRFs.
pub const VRF: &str = "vrf";

/// Whether that is the driver of a device that wraps Ethernet frames into packets for other machines.
#[must_use]
pub fn is_tunnel(kind: &str) -> bool {
    matches!(kind, "vxlan" | "geneve" | "gretap" | "ip6gretap")
}

/// Whether no machine is behind a device of this driver.
#[must_use]
pub fn leads_nowhere(kind: &str) -> bool {
    can_hold(kind) || matches!(kind, "nlmon" | VRF)
}

/// Whether that is the driver of a device that leads nowhere, so that who has an address on it answers at it on this node.
fn can_hold(kind: &str) -> bool {
    matches!(kind, "dummy" | "ifb")
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// Whether it may be used beyond its link.
    pub is_global: bool,
    /// Whether new traffic should rather be sent from another one: secondary, temporary, deprecated, or in no network but its own
    /// (`/32`, as VRRP has it).
    pub is_secondary: bool,
}

/// What the kernel knows of a neighbour's Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The address.
    pub mac: [u8; 6],
    /// Whether the kernel has learned it by asking, and may ask again: it was neither fixed by somebody, nor is it somebody
    /// else's to keep true.
    pub is_learned: bool,
}

/// One thing that the kernel reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device is there, new or changed.
    Link {
        /// Its index.
        ifindex: u32,
        /// What it looks like now.
        link: Link,
    },
    /// A device has gone, with all that hung on it.
    LinkGone {
        /// Its index.
        ifindex: u32,
    },
    /// A device has an address, new or changed.
    Address {
        /// The device's index.
        ifindex: u32,
        /// The address.
        address: LocalAddress,
    },
    /// A device has lost an address.
    AddressGone {
        /// The device's index.
        ifindex: u32,
        /// The address.
        ip: IpAddr,
    },
    /// Default routes of the main table lead through these devices, and no others.
    DefaultDevices(BTreeSet<u32>),
    /// Some route or next-hop object came, changed or went.
    Routes {
        /// Whether default routes of the main table must be looked at anew.
        may_be_default: bool,
    },
    /// Some routing rule came or went.
    Rules,
    /// Whether routing rules make the way to a destination depend on more than that.
    PolicyRouting(bool),
    /// A neighbour's Ethernet address is known, or no longer known.
    Neighbour {
        /// The device's index.
        ifindex: u32,
        /// The neighbour's address.
        ip: IpAddr,
        /// Its Ethernet address.
        neighbour: Option<Neighbour>,
    },
    /// A TC qdisc or filter has gone: it may have been ours.
    FiltersGone,
    /// Reports were lost: this is all there is.
    Resync(NodeState),
}

/// What a change means for the rest of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Devices, their roles or addresses may be different now.
    pub devices: bool,
    /// Cached next hops may be wrong now.
    pub next_hops: bool,
}

impl Effect {
    const NONE: Self = Self { devices: false, next_hops: false };
    const BOTH: Self = Self { devices: true, next_hops: true };

    /// The effect of two changes.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { devices: self.devices || other.devices, next_hops: self.next_hops || other.next_hops }
    }
}

/// The machine as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    links: BTreeMap<u32, Link>,
    /// In the kernel's order: a device's first address is its primary one.
    addresses: BTreeMap<u32, Vec<LocalAddress>>,
    /// Devices through which a default route of the main table leads now.
    default_devices: BTreeSet<u32>,
    is_policy_routed: bool,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
}

impl NodeState {
    /// All devices, by index.
    #[must_use]
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// A device's addresses, its primary one first.
    #[must_use]
    pub fn addresses(&self, ifindex: u32) -> &[LocalAddress] {
        self.addresses.get(&ifindex).map_or(&[], Vec::as_slice)
    }

    /// Every address of every device.
    pub fn all_addresses(&self) -> impl Iterator<Item = LocalAddress> + '_ {
        self.addresses.values().flatten().copied()
    }

    /// Addresses on devices that lead nowhere: somebody on this node answers there, as NodeLocal DNSCache does at the ClusterIP
    /// of the cluster's DNS. What proxies that use IPVS have left behind is not meant.
    #[must_use]
    pub fn held_addresses(&self) -> BTreeMap<IpAddr, String> {
        let holds = |link: &Link| can_hold(&link.kind) && !IPVS_DEVICES.contains(&&*link.name) && link.name != DEVICE;
        let links = self.links.iter().filter(|(_, link)| holds(link));
        links
            .flat_map(|(ifindex, link)| self.addresses(*ifindex).iter().map(|own| (own.ip, link.name.clone())))
            .collect()
    }

    /// Whether there are addresses of each family, IPv4 and IPv6, that are good beyond their link. As long as there is none at all,
    /// either may come.
    #[must_use]
    pub fn families(&self) -> [bool; 2] {
        let families =
            [true, false].map(|is_v4| self.all_addresses().any(|own| own.is_global && own.ip.is_ipv4() == is_v4));
        if families == [false; 2] { [true; 2] } else { families }
    }

    /// Whether routing rules make the way to a destination depend on more than that.
    #[must_use]
    pub const fn is_policy_routed(&self) -> bool {
        self.is_policy_routed
    }

    /// Devices through which default routes of the main table lead.
    #[must_use]
    pub const fn default_devices(&self) -> &BTreeSet<u32> {
        &self.default_devices
    }

    /// Whether a default route of the main table leads through the device.
    #[must_use]
    pub fn is_default_device(&self, ifindex: u32) -> bool {
        self.default_devices.contains(&ifindex)
    }

    /// The neighbours with one of these Ethernet addresses, each of a device, that the kernel can be made to ask again.
    pub fn learned_neighbours(&self, at: &BTreeSet<(u32, [u8; 6])>) -> impl Iterator<Item = (u32, IpAddr)> {
        let learned = self.neighbours.iter().filter(|(_, neighbour)| neighbour.is_learned);
        learned.filter(|((ifindex, _), neighbour)| at.contains(&(*ifindex, neighbour.mac))).map(|(&key, _)| key)
    }

    /// Takes in what the kernel reported.
    pub fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Link { ifindex, link } => self.apply_link(ifindex, link),
            Change::LinkGone { ifindex } => self.remove_link(ifindex),
            Change::Address { ifindex, address } => self.apply_address(ifindex, address),
            Change::AddressGone { ifindex, ip } => self.remove_address(ifindex, ip),
            Change::DefaultDevices(ifindexes) => {
                let former = std::mem::replace(&mut self.default_devices, ifindexes);
                Effect { devices: former != self.default_devices, next_hops: true }
            }
            Change::FiltersGone => Effect::NONE,
            Change::Routes { .. } | Change::Rules => Effect { devices: false, next_hops: true },
            Change::PolicyRouting(is_policy_routed) => {
                self.is_policy_routed = is_policy_routed;
                Effect { devices: false, next_hops: true }
            }
            Change::Neighbour { ifindex, ip, neighbour } => self.apply_neighbour(ifindex, ip, neighbour),
            Change::Resync(state) => {
                *self = state;
                Effect::BOTH
            }
        }
    }

    fn apply_link(&mut self, ifindex: u32, link: Link) -> Effect {
        match self.links.insert(ifindex, link.clone()) {
            None => Effect { devices: true, next_hops: false },
            Some(former) if former == link => Effect::NONE,
            Some(_) => Effect::BOTH,
        }
    }

    fn remove_link(&mut self, ifindex: u32) -> Effect {
        self.addresses.remove(&ifindex);
        self.default_devices.remove(&ifindex);
        self.neighbours.retain(|(device, _), _| *device != ifindex);
        if self.links.remove(&ifindex).is_some() { Effect::BOTH } else { Effect::NONE }
    }

    fn apply_address(&mut self, ifindex: u32, address: LocalAddress) -> Effect {
        let addresses = self.addresses.entry(ifindex).or_default();
        match addresses.iter_mut().find(|known| known.ip == address.ip) {
            Some(known) if *known == address => return Effect::NONE,
            Some(known) => *known = address,
            None => addresses.push(address),
        }
        Effect::BOTH
    }

    fn remove_address(&mut self, ifindex: u32, ip: IpAddr) -> Effect {
        let Some(addresses) = self.addresses.get_mut(&ifindex) else { return Effect::NONE };
        addresses.retain(|known| known.ip != ip);
        if addresses.is_empty() {
            self.addresses.remove(&ifindex);
        }
        Effect::BOTH
    }

    /// A neighbour that is new can't be anybody's cached next hop yet, and one that was merely confirmed still is: the
    /// kernel reports every such step, and following them all would make the caches useless.
    fn apply_neighbour(&mut self, ifindex: u32, ip: IpAddr, neighbour: Option<Neighbour>) -> Effect {
        let former = match neighbour {
            Some(neighbour) => self.neighbours.insert((ifindex, ip), neighbour),
            None => self.neighbours.remove(&(ifindex, ip)),
        };
        let has_moved = former.is_some_and(|former| neighbour.is_none_or(|now| now.mac != former.mac));
        Effect { devices: false, next_hops: has_moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str) -> Link {
        Link { name: name.into(), is_ethernet: true, is_up: true, ..Link::default() }
    }

    fn address(ip: &str) -> LocalAddress {
        LocalAddress { ip: ip.parse().unwrap(), is_global: true, is_secondary: false }
    }

    #[test]
    fn a_link_that_goes_takes_its_addresses_along() {
        let mut state = NodeState::default();
        state.apply(Change::Link { ifindex: 2, link: link("eth0") });
        state.apply(Change::Address { ifindex: 2, address: address("192.0.2.1") });
        state.apply(Change::DefaultDevices(BTreeSet::from([2])));
        assert_eq!(state.apply(Change::LinkGone { ifindex: 2 }), Effect::BOTH);
        assert_eq!(state, NodeState::default());
        assert_eq!(state.apply(Change::LinkGone { ifindex: 2 }), Effect::NONE);
    }

    #[test]
    fn a_node_has_the_families_of_its_addresses_and_either_as_long_as_it_has_none() {
        let mut state = NodeState::default();
        let mut with = |ip: &str, is_global| {
            let address = LocalAddress { ip: ip.parse().unwrap(), is_global, is_secondary: false };
            state.apply(Change::Address { ifindex: 2, address });
            state.families()
        };
        assert_eq!(with("fe80::1", false), [true, true]);
        assert_eq!(with("192.0.2.1", true), [true, false]);
        assert_eq!(with("fd00::1", true), [true, true]);
    }

    #[test]
    fn addresses_are_held_by_devices_that_lead_nowhere() {
        let mut state = NodeState::default();
        for (ifindex, name, kind, ip) in [
            (2, "eth0", "", "192.0.2.1"),
            (3, "nodelocaldns", "dummy", "10.96.0.10"),
            (4, "kube-ipvs0", "dummy", "10.96.0.11"),
            (5, "veth5", "veth", "10.96.0.12"),
            (6, "kube-dummy-if", "dummy", "10.96.0.13"),
        ] {
            state.apply(Change::Link { ifindex, link: Link { kind: kind.into(), ..link(name) } });
            state.apply(Change::Address { ifindex, address: address(ip) });
        }
        assert_eq!(state.held_addresses(), [("10.96.0.10".parse().unwrap(), "nodelocaldns".into())].into());
        state.apply(Change::LinkGone { ifindex: 3 });
        assert!(state.held_addresses().is_empty());
    }

    #[test]
    fn repeated_reports_have_no_effect() {
        let mut state = NodeState::default();
        for expected in [Effect { devices: true, next_hops: false }, Effect::NONE] {
            assert_eq!(state.apply(Change::Link { ifindex: 2, link: link("eth0") }), expected);
        }
        for expected in [Effect::BOTH, Effect::NONE] {
            assert_eq!(state.apply(Change::Address { ifindex: 2, address: address("fd00::1") }), expected);
        }
    }

    #[test]
    fn another_mtu_spoils_next_hops() {
        let mut state = NodeState::default();
        for mtu in [1500, 1400] {
            let link = Link { mtu, ..link("eth0") };
            let is_new = state.links().is_empty();
            assert_eq!(state.apply(Change::Link { ifindex: 2, link: link.clone() }).next_hops, !is_new);
            assert_eq!(state.apply(Change::Link { ifindex: 2, link }), Effect::NONE);
        }
    }

    #[test]
    fn only_a_neighbour_that_moved_or_went_spoils_next_hops() {
        let mut state = NodeState::default();
        let ip: IpAddr = "192.0.2.9".parse().unwrap();
        let spoils = |state: &mut NodeState, mac: Option<[u8; 6]>| {
            let neighbour = mac.map(|mac| Neighbour { mac, is_learned: true });
            state.apply(Change::Neighbour { ifindex: 2, ip, neighbour }).next_hops
        };
        assert!(!spoils(&mut state, Some([1; 6])), "new");
        assert!(!spoils(&mut state, Some([1; 6])), "confirmed");
        assert!(spoils(&mut state, Some([2; 6])), "moved");
        assert!(spoils(&mut state, None), "gone");
        assert!(!spoils(&mut state, None), "still gone");
    }

    #[test]
    fn pitfall_27_only_neighbours_in_use_that_were_learned_are_asked_again() {
        let mut state = NodeState::default();
        for (ifindex, ip, mac, is_learned) in [
            (2, "192.0.2.9", 9, true),
            (2, "fd00::9", 9, true),
            (2, "192.0.2.10", 10, true),
            (2, "192.0.2.11", 9, false),
            (3, "192.0.2.9", 9, true),
        ] {
            let neighbour = Some(Neighbour { mac: [mac; 6], is_learned });
            state.apply(Change::Neighbour { ifindex, ip: ip.parse().unwrap(), neighbour });
        }
        let asked: Vec<_> = state.learned_neighbours(&BTreeSet::from([(2, [9; 6]), (3, [1; 6])])).collect();
        let expected = ["192.0.2.9", "fd00::9"].map(|ip| (2, ip.parse().unwrap()));
        assert_eq!(asked, expected);
    }

    #[test]
    fn a_resync_forgets_what_has_gone() {
        let mut state = NodeState::default();
        state.apply(Change::Link { ifindex: 2, link: link("eth0") });
        state.apply(Change::DefaultDevices(BTreeSet::from([2])));
        let mut now = NodeState::default();
        now.apply(Change::Link { ifindex: 3, link: link("eth1") });
        assert_eq!(state.apply(Change::Resync(now.clone())), Effect::BOTH);
        assert_eq!(state, now);
    }

    /// A role must not depend on the order of events: after a restart it would be another one.
    #[test]
    fn a_device_without_its_default_route_is_as_before() {
        let mut state = NodeState::default();
        for (ifindexes, devices) in [(vec![2], true), (vec![2], false), (vec![], true)] {
            let change = Change::DefaultDevices(ifindexes.iter().copied().collect());
            assert_eq!(state.apply(change), Effect { devices, next_hops: true });
            assert_eq!(state.is_default_device(2), !ifindexes.is_empty());
        }
    }
}
