// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which devices get our programs, as what, and what the programs must know of each device. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    address::Address,
    config::{Interface, family_index, role},
};

use super::{
    net::{DEVICE, PEER},
    pattern::Pattern,
    state::{BRIDGE, Link, LocalAddress, NodeState, VETH, VRF, is_tunnel, leads_nowhere},
};
use crate::problem::Problem;

/// How devices are chosen: the flags `--uplink` and `--pod-interface`.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Names of the uplinks. Empty: every device that leads neither to pods or other containers nor nowhere.
    pub uplinks: Vec<String>,
    /// Patterns of the names of pods' devices.
    pub pods: Vec<Pattern>,
}

/// What a device's programs are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duty {
    /// Its [`role`].
    pub role: u16,
    /// Whether it is one of the [`Choice::main_uplinks`].
    pub is_main: bool,
}

/// The devices as they are to be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What there is to know of every device that packets may leave by, those with a role among them.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Uplinks that are so for a reason of their own: those that are named, else those with a default route or one of the node's
    /// internal addresses. Any other may be a disk array's, or wait to be the port of a bond, and is better not touched more than
    /// is needed.
    pub main_uplinks: BTreeSet<u32>,
}

impl Choice {
    /// What a device's programs are for; without a role where it has none, or is not there.
    #[must_use]
    pub fn duty(&self, ifindex: u32) -> Duty {
        let role = self.interfaces.get(&ifindex).map_or(0, |interface| interface.role);
        Duty { role, is_main: self.main_uplinks.contains(&ifindex) }
    }
}

/// What must be known of all devices before one gets its role.
struct Surroundings {
    main_uplinks: BTreeSet<u32>,
    /// Bridges with ports of pods, and with none that leads elsewhere: what crosses them has crossed, or will cross, a pod's device.
    pod_bridges: BTreeSet<u32>,
    /// Devices that others stand on.
    carriers: BTreeSet<u32>,
}

impl Selection {
    /// The device's [`role`], 0 for none. It follows from what there is now, never from what was before.
    ///
    /// The device of the net has its own, and with it the loopback device, and they have no other. Else nothing but Ethernet devices
    /// can have one. A device with a default route is an uplink even if its name looks like a
    /// pod's, and so is one with the node's own address. A tunnel to other nodes is an uplink in any case: what
    /// leaves by it has its address, to which the replies come; so is a macvlan on an uplink, to which frames for its own Ethernet
    /// address are left (VRRP's virtual routers). Of those that are no pod's and not named, replies to outside clients may leave by
    /// any.
    fn role(&self, node: &NodeState, ifindex: u32, link: &Link, around: &Surroundings) -> u16 {
        if link.is_loopback {
            return if net_device(node).is_some() { role::NET } else { 0 };
        }
        if link.name == DEVICE {
            return role::NET;
        }
        if !link.is_ethernet || link.name == PEER {
            return 0;
        }
        if around.main_uplinks.contains(&ifindex) || is_tunnel(&link.kind) {
            role::UPLINK
        } else if self.is_pods(link)
            || around.pod_bridges.contains(&link.controller) && is_containers(node, ifindex, link)
        {
            role::POD
        } else if around.pod_bridges.contains(&ifindex) || is_port(node, link) || leads_nowhere(&link.kind) {
            0
        } else if is_containers(node, ifindex, link) && !around.carriers.contains(&ifindex) {
            role::POD
        } else if self.uplinks.is_empty() || self.is_macvlan_on_uplink(node, link) {
            role::UPLINK
        } else {
            role::RETURN
        }
    }

    fn is_named(&self, link: &Link) -> bool {
        self.uplinks.contains(&link.name)
    }

    fn is_pods(&self, link: &Link) -> bool {
        self.pods.iter().any(|pattern| pattern.matches(&link.name))
    }

    fn is_macvlan_on_uplink(&self, node: &NodeState, link: &Link) -> bool {
        link.kind == MACVLAN && node.links().get(&link.lower).is_some_and(|lower| self.is_named(lower))
    }

    /// [`Choice::main_uplinks`]
    fn main_uplinks(&self, node: &NodeState, internal: &[IpAddr]) -> BTreeSet<u32> {
        let links = node.links().iter();
        if self.uplinks.is_empty() {
            let own = links.filter(|&(&ifindex, link)| self.is_nodes(node, ifindex, link, internal));
            own.map(|(&ifindex, _)| ifindex).chain(node.default_devices().iter().copied()).collect()
        } else {
            links.filter(|(_, link)| self.is_named(link)).map(|(&ifindex, _)| ifindex).collect()
        }
    }

    /// Whether the node is reached by the device under one of its `internal` addresses. Some network plug-ins give such a one to
    /// the devices of pods, too: alone in its network, or as a second device that has it.
    fn is_nodes(&self, node: &NodeState, ifindex: u32, link: &Link, internal: &[IpAddr]) -> bool {
        if internal.is_empty() || is_port(node, link) || leads_nowhere(&link.kind) {
            return false;
        }
        let mut own = node.addresses(ifindex).iter().filter(|own| internal.contains(&own.ip));
        if self.is_pods(link) {
            own.any(|own| !own.is_secondary && !self.is_held_by_other(node, ifindex, own.ip))
        } else if is_containers(node, ifindex, link) {
            own.any(|own| !self.is_held_by_other(node, ifindex, own.ip))
        } else {
            own.next().is_some()
        }
    }

    /// Whether another device, not named like a pod's, has the address.
    fn is_held_by_other(&self, node: &NodeState, than: u32, ip: IpAddr) -> bool {
        let mut others = node.links().iter().filter(|&(&ifindex, link)| ifindex != than && !self.is_pods(link));
        others.any(|(&ifindex, _)| node.addresses(ifindex).iter().any(|own| own.ip == ip))
    }

    fn surroundings(&self, node: &NodeState, internal: &[IpAddr]) -> Surroundings {
        let mut pod_bridges: BTreeSet<u32> =
            node.links().values().filter(|link| self.is_pods(link)).map(|link| link.controller).collect();
        for (&ifindex, link) in node.links() {
            let leads_elsewhere = !self.is_pods(link)
                && !is_containers(node, ifindex, link)
                && !is_tunnel(&link.kind)
                && !leads_nowhere(&link.kind);
            if leads_elsewhere {
                pod_bridges.remove(&link.controller);
            }
        }
        // 0 stands for no controller. The device below a veth pair's end may be one of another network namespace.
        pod_bridges.remove(&0);
        let carriers = node.links().values().filter(|link| link.kind != VETH).map(|link| link.lower).collect();
        Surroundings { main_uplinks: self.main_uplinks(node, internal), pod_bridges, carriers }
    }

    /// Chooses the devices' roles. `internal` are the Node object's addresses.
    #[must_use]
    pub fn choose(&self, node: &NodeState, internal: &[IpAddr]) -> Choice {
        let around = self.surroundings(node, internal);
        let devices =
            node.links().iter().map(|(&ifindex, link)| (ifindex, link, self.role(node, ifindex, link, &around)));
        let interfaces = devices
            .filter(|(_, link, role)| !link.is_loopback || *role != 0)
            .map(|(ifindex, link, role)| {
                // Nothing is sent with an address of the net's devices.
                let own = if role == role::NET { &[] } else { node.addresses(ifindex) };
                let addresses = [true, false].map(|is_v4| first_address(own, is_v4));
                let bridge = if is_port_of(node, link, BRIDGE) { link.controller } else { 0 };
                (ifindex, Interface { addresses, mac: link.mac, role, bridge, pad: 0 })
            })
            .collect();
        Choice { interfaces, main_uplinks: around.main_uplinks }
    }

    /// Devices that can't serve as they should: named ones, and those with a default route.
    #[must_use]
    pub fn problems(&self, node: &NodeState) -> Vec<Problem> {
        let named = self.uplinks.iter().filter_map(|name| uplink_problem(node, name));
        named.chain(self.default_problems(node)).collect()
    }

    /// Named uplinks that can't serve as such now.
    #[must_use]
    pub fn first_mistake(&self, node: &NodeState) -> Option<Problem> {
        self.uplinks.iter().find_map(|name| uplink_problem(node, name))
    }

    /// Devices without Ethernet headers (tun, PPP, WireGuard) through which a default route leads.
    fn default_problems(&self, node: &NodeState) -> impl Iterator<Item = Problem> {
        let devices = node.default_devices().iter().filter_map(|ifindex| node.links().get(ifindex));
        let not_served = devices.filter(|link| self.uplinks.is_empty() && !link.is_ethernet && !link.is_loopback);
        not_served.map(|link| {
            Problem::new(
                format!("device {}", link.name),
                "has a default route, but no Ethernet header: NodePorts, load-balancer and external addresses do not \
                 answer who comes by it",
                "let clients come by an Ethernet device, or by a process on this node that passes them on; --uplink with \
                 the names of those devices says that this is known",
            )
        })
    }
}

/// The device of the net, and its index.
#[must_use]
pub fn net_device(node: &NodeState) -> Option<(u32, &Link)> {
    let mut links = node.links().iter().map(|(&ifindex, link)| (ifindex, link));
    links.find(|(_, link)| link.name == DEVICE)
}

/// The driver of devices that stand on another one, with an Ethernet address of their own.
const MACVLAN: &str = "macvlan";

/// Whether frames cross the device on their way to or from its controller, which is the one that has the addresses. A VRF's
/// members keep theirs.
fn is_port(node: &NodeState, link: &Link) -> bool {
    node.links().contains_key(&link.controller) && !is_port_of(node, link, VRF)
}

fn is_port_of(node: &NodeState, link: &Link, kind: &str) -> bool {
    node.links().get(&link.controller).is_some_and(|controller| controller.kind == kind)
}

/// Whether it is one end of a veth pair whose other one is a container's: in another network namespace, while this one is in no
/// network that others could be in, too.
fn is_containers(node: &NodeState, ifindex: u32, link: &Link) -> bool {
    let is_in_network = node.addresses(ifindex).iter().any(|own| own.is_global && !own.is_secondary);
    link.kind == VETH && link.is_peer_elsewhere && !is_in_network
}

fn uplink_problem(node: &NodeState, name: &str) -> Option<Problem> {
    let subject = format!("uplink {name}");
    match node.links().values().find(|link| link.name == name) {
        Some(link) if link.is_loopback || !link.is_ethernet => {
            Some(Problem::new(subject, "is not an Ethernet device", "name the Ethernet device below it in --uplink"))
        }
        Some(_) => None,
        None => {
            let names: Vec<&str> = node.links().values().map(|link| link.name.as_str()).collect();
            Some(Problem::new(
                subject,
                "no such device",
                format!("create it or change --uplink; there are: {}", names.join(", ")),
            ))
        }
    }
}

/// The address of a family that packets sent by the device carry; unspecified where it has none that is good beyond its
/// link.
fn first_address(addresses: &[LocalAddress], is_v4: bool) -> Address {
    first_global(addresses, is_v4).map_or(Address::UNSPECIFIED, Address::from)
}

/// A global address of a family, primary ones before secondary ones. In IPv4 it is the first; in IPv6 the lowest, as the kernel lists
/// the newest first, and reports them as they come.
pub(super) fn first_global(addresses: &[LocalAddress], is_v4: bool) -> Option<IpAddr> {
    let fit = addresses.iter().filter(|own| own.is_global && own.ip.is_ipv4() == is_v4);
    let key = |own: &&LocalAddress| (own.is_secondary, if is_v4 { IpAddr::from([0; 4]) } else { own.ip });
    fit.min_by_key(key).map(|own| own.ip)
}

/// First address of each family among those of the Node object, else of the uplinks; what [`family_index`] says is where.
#[must_use]
pub fn primary_addresses(
    node: &NodeState,
    interfaces: &BTreeMap<u32, Interface>,
    internal: &[IpAddr],
) -> [Option<IpAddr>; 2] {
    // Those with a default route first.
    let mut uplinks: Vec<u32> =
        interfaces.iter().filter(|(_, own)| own.role & role::UPLINK != 0).map(|(&ifindex, _)| ifindex).collect();
    uplinks.sort_by_key(|ifindex| !node.is_default_device(*ifindex));
    let mut primary = [None; 2];
    for is_v4 in [true, false] {
        let own = internal.iter().copied().find(|ip| ip.is_ipv4() == is_v4);
        primary[family_index(is_v4)] =
            own.or_else(|| uplinks.iter().find_map(|ifindex| first_global(node.addresses(*ifindex), is_v4)));
    }
    primary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::state::Change;

    fn node(devices: &[(u32, &str, &[&str])]) -> NodeState {
        let mut node = NodeState::default();
        for &(ifindex, name, addresses) in devices {
            let is_loopback = name == "lo";
            let link =
                Link { name: name.into(), is_ethernet: !is_loopback, is_loopback, is_up: true, ..Link::default() };
            node.apply(Change::Link { ifindex, link });
            for ip in addresses {
                let ip: IpAddr = ip.parse().unwrap();
                let is_global = !ip.to_string().starts_with("fe80");
                node.apply(Change::Address { ifindex, address: LocalAddress { ip, is_global, is_secondary: false } });
            }
        }
        node
    }

    fn selection(uplinks: &[&str]) -> Selection {
        Selection {
            uplinks: uplinks.iter().map(ToString::to_string).collect(),
            pods: vec!["veth*".parse().unwrap(), "gke*".parse().unwrap()],
        }
    }

    fn roles(selection: &Selection, node: &NodeState) -> Vec<(u32, u16)> {
        selection.choose(node, &[]).interfaces.iter().map(|(&ifindex, interface)| (ifindex, interface.role)).collect()
    }

    fn change(node: &mut NodeState, ifindex: u32, change: impl FnOnce(&mut Link)) {
        let mut link = node.links()[&ifindex].clone();
        change(&mut link);
        node.apply(Change::Link { ifindex, link });
    }

    #[test]
    fn pitfall_31_uplinks_are_all_that_lead_outside() {
        let mut node = node(&[
            (1, "lo", &["127.0.0.1", "192.0.2.1"]),
            (2, "eth0", &["192.0.2.1"]),
            (3, "eth1", &["198.51.100.1"]),
            (4, "eth2", &[]),
            (5, "veth0", &[]),
            (6, "gke0", &["192.0.2.1"]),
            (7, "veth-up", &[]),
            (8, "tun0", &["10.8.0.2"]),
        ]);
        change(&mut node, 8, |link| link.is_ethernet = false);
        node.apply(Change::DefaultDevices([7].into()));
        let (up, pod) = (role::UPLINK, role::POD);
        let expected = [(2, up), (3, up), (4, up), (5, pod), (6, pod), (7, up), (8, 0)];
        assert_eq!(roles(&selection(&[]), &node), expected);
        // By what is there now, whatever was before.
        node.apply(Change::DefaultDevices([2].into()));
        assert_eq!(roles(&selection(&[]), &node)[5], (7, pod));
    }

    #[test]
    fn the_nets_device_and_the_loopback_device_have_its_role_and_no_other() {
        let mut node = node(&[(1, "lo", &["127.0.0.1", "192.0.2.1"]), (2, "eth0", &["192.0.2.1"])]);
        assert_eq!(roles(&selection(&[]), &node), [(2, role::UPLINK)]);
        for kind in ["dummy", "netkit", "ifb", VETH] {
            for (ifindex, name) in [(7, "shunt0"), (8, "shunt0-peer")] {
                let (name, kind, lower) = (name.into(), kind.into(), 15 - ifindex);
                let link = Link { name, kind, lower, is_ethernet: true, is_up: true, ..Link::default() };
                node.apply(Change::Link { ifindex, link });
            }
            // Nor because of what others have done with it.
            let address = LocalAddress { ip: "192.0.2.1".parse().unwrap(), is_global: true, is_secondary: false };
            node.apply(Change::Address { ifindex: 7, address });
            node.apply(Change::DefaultDevices([2, 7].into()));
            for names in [&[] as &[&str], &["eth0"], &["eth0", "shunt0"]] {
                let expected = [(1, role::NET), (2, role::UPLINK), (7, role::NET), (8, 0)];
                assert_eq!(roles(&selection(names), &node), expected, "{kind} {names:?}");
            }
            let interfaces = selection(&[]).choose(&node, &["192.0.2.1".parse().unwrap()]).interfaces;
            assert_eq!([interfaces[&1], interfaces[&7]].map(|own| own.addresses), [[Address::UNSPECIFIED; 2]; 2]);
            assert_eq!(net_device(&node).map(|(ifindex, _)| ifindex), Some(7));
            assert!(node.held_addresses().is_empty());
        }
    }

    #[test]
    fn pitfall_31_replies_leave_by_those_that_are_not_named() {
        let mut node =
            node(&[(2, "eth0", &["192.0.2.1"]), (3, "veth-up", &[]), (4, "veth1", &[]), (5, "vrrp.51", &[])]);
        node.apply(Change::DefaultDevices([2].into()));
        change(&mut node, 5, |link| (link.kind, link.lower) = (MACVLAN.into(), 3));
        let expected = [(2, role::RETURN), (3, role::UPLINK), (4, role::POD), (5, role::UPLINK)];
        assert_eq!(roles(&selection(&["veth-up"]), &node), expected);
        change(&mut node, 5, |link| link.lower = 2);
        assert_eq!(roles(&selection(&["veth-up"]), &node)[3], (5, role::RETURN));
    }

    /// What crosses them is served where it comes from or goes to.
    #[test]
    fn ports_bridges_of_pods_and_what_leads_nowhere_have_no_role() {
        let names = ["br0", "eth0", "cni0", "veth1", "bond0", "eth1", "vrf0", "eth2", "kube-ipvs0"];
        let devices: Vec<_> = (2..).zip(names).map(|(ifindex, name)| (ifindex, name, &[][..])).collect();
        let mut node = node(&devices);
        for (ifindex, kind) in [(2, "bridge"), (4, "bridge"), (6, "bond"), (8, "vrf"), (10, "dummy")] {
            change(&mut node, ifindex, |link| link.kind = kind.into());
        }
        for (ifindex, controller) in [(3, 2), (5, 4), (7, 6), (9, 8)] {
            change(&mut node, ifindex, |link| link.controller = controller);
        }
        let (up, pod) = (role::UPLINK, role::POD);
        let expected = [(2, up), (3, 0), (4, 0), (5, pod), (6, up), (7, 0), (8, 0), (9, up), (10, 0)];
        assert_eq!(roles(&selection(&[]), &node), expected);
    }

    fn roles_at(selection: &Selection, node: &NodeState, internal: &str) -> Vec<(u32, u16)> {
        let interfaces = selection.choose(node, &[internal.parse().unwrap()]).interfaces;
        interfaces.iter().map(|(&ifindex, interface)| (ifindex, interface.role)).collect()
    }

    /// A bridge of machines, virtual ones and the network's, one of which had a device named like a pod's: it served nobody.
    #[test]
    fn a_bridge_that_leads_elsewhere_too_is_not_the_pods() {
        let mut node = node(&[(2, "vmbr1", &["192.0.2.1"]), (3, "eth1", &[]), (4, "veth100", &[])]);
        change(&mut node, 2, |link| link.kind = BRIDGE.into());
        for ifindex in [3, 4] {
            change(&mut node, ifindex, |link| link.controller = 2);
        }
        let expected = [(2, role::UPLINK), (3, 0), (4, role::POD)];
        assert_eq!(roles(&selection(&[]), &node), expected);
        // Nor is one by which the node itself is reached.
        node.apply(Change::LinkGone { ifindex: 3 });
        assert_eq!(roles(&selection(&[]), &node), [(2, 0), (4, role::POD)]);
        assert_eq!(roles_at(&selection(&[]), &node, "192.0.2.1"), [(2, role::UPLINK), (4, role::POD)]);
    }

    /// Frames of other nodes' pods, or a device that only gives a bridge its address.
    #[test]
    fn tunnels_and_dummies_leave_a_bridge_to_its_pods() {
        let mut node = node(&[(2, "cni0", &[]), (3, "veth1", &[]), (4, "vx", &[]), (5, "dummy0", &[])]);
        for (ifindex, kind, controller) in [(2, BRIDGE, 0), (3, VETH, 2), (4, "vxlan", 2), (5, "dummy", 2)] {
            change(&mut node, ifindex, |link| (link.kind, link.controller) = (kind.into(), controller));
        }
        assert_eq!(roles(&selection(&[]), &node), [(2, 0), (3, role::POD), (4, role::UPLINK), (5, 0)]);
    }

    #[test]
    fn the_nodes_own_address_makes_an_uplink_without_a_default_route() {
        let mut node = node(&[(2, "veth-up", &["192.0.2.1"]), (3, "gke1", &[])]);
        node.apply(Change::DefaultDevices([2].into()));
        let expected = [(2, role::UPLINK), (3, role::POD)];
        assert_eq!(roles_at(&selection(&[]), &node, "192.0.2.1"), expected);
        node.apply(Change::DefaultDevices(BTreeSet::new()));
        let ip = "192.0.2.1".parse().unwrap();
        node.apply(Change::Address { ifindex: 3, address: LocalAddress { ip, is_global: true, is_secondary: true } });
        assert_eq!(roles_at(&selection(&[]), &node, "192.0.2.1"), expected, "its route went for a moment");
        // A pod's device that has the address of another one.
        node.apply(Change::Link {
            ifindex: 4,
            link: Link { name: "eth0".into(), is_ethernet: true, ..Link::default() },
        });
        node.apply(Change::Address { ifindex: 4, address: LocalAddress { ip, is_global: true, is_secondary: false } });
        assert_eq!(roles_at(&selection(&[]), &node, "192.0.2.1")[0], (2, role::POD));
    }

    #[test]
    fn main_uplinks_are_named_or_lead_by_default_or_have_the_nodes_address() {
        let mut node = node(&[(2, "eth0", &["192.0.2.1"]), (3, "eth1", &["198.51.100.1"]), (4, "eth2", &[])]);
        let internal = ["198.51.100.1".parse().unwrap()];
        node.apply(Change::DefaultDevices([2].into()));
        assert_eq!(selection(&[]).main_uplinks(&node, &internal), [2, 3].into());
        assert_eq!(selection(&["eth2"]).main_uplinks(&node, &internal), [4].into());
    }

    /// Names that no pattern has: their pods were clients from outside, whose packets no NetworkPolicy sees.
    #[test]
    fn a_veth_into_another_namespace_is_a_containers() {
        let node = || {
            let mut node = node(&[(2, "vlan7a1", &[]), (3, "eth1", &[])]);
            change(&mut node, 2, |link| (link.kind, link.is_peer_elsewhere) = (VETH.into(), true));
            node
        };
        let role_of = |node: &NodeState| roles(&selection(&[]), node)[0].1;
        assert_eq!(role_of(&node()), role::POD);
        assert_eq!(roles(&selection(&["eth1"]), &node()), [(2, role::POD), (3, role::UPLINK)]);
        let with = |is_secondary| {
            let mut node = node();
            let ip = "192.0.2.1".parse().unwrap();
            node.apply(Change::Address { ifindex: 2, address: LocalAddress { ip, is_global: true, is_secondary } });
            node
        };
        assert_eq!(role_of(&with(true)), role::POD, "a gateway's address, alone in its network");
        assert_eq!(roles_at(&selection(&[]), &with(true), "192.0.2.1")[0].1, role::UPLINK);
        assert_eq!(role_of(&with(false)), role::UPLINK, "a card of a node that is a container itself");
        let mut by_default = node();
        by_default.apply(Change::DefaultDevices([2].into()));
        assert_eq!(role_of(&by_default), role::UPLINK);
        let mut below = node();
        change(&mut below, 3, |link| (link.kind, link.lower) = ("vlan".into(), 2));
        assert_eq!(role_of(&below), role::UPLINK, "a VLAN stands on it");
        let mut port = node();
        change(&mut port, 3, |link| link.kind = "bond".into());
        change(&mut port, 2, |link| link.controller = 3);
        assert_eq!(role_of(&port), 0);
    }

    #[test]
    fn n7_a_default_route_without_ethernet_is_told() {
        let mut node = node(&[(2, "eth0", &["192.0.2.1"]), (8, "ppp0", &[])]);
        change(&mut node, 8, |link| link.is_ethernet = false);
        assert_eq!(selection(&[]).problems(&node), []);
        node.apply(Change::DefaultDevices([8].into()));
        let told = selection(&[]).problems(&node);
        assert!(
            told[0].to_string().starts_with("device ppp0: has a default route, but no Ethernet header"),
            "{told:?}"
        );
        assert_eq!(selection(&["eth0"]).problems(&node), []);
    }

    /// The outside clients of a backend on another node, to which a tunnel leads, had no answer.
    #[test]
    fn tunnels_are_uplinks_whatever_is_named() {
        let mut node = node(&[(2, "eth0", &["192.0.2.1"])]);
        let link = Link { name: "flannel.1".into(), kind: "vxlan".into(), is_ethernet: true, ..Link::default() };
        node.apply(Change::Link { ifindex: 3, link });
        for uplinks in [&["eth0"][..], &[]] {
            assert_eq!(roles(&selection(uplinks), &node), [(2, role::UPLINK), (3, role::UPLINK)]);
        }
    }

    #[test]
    fn a_missing_uplink_is_named_with_what_there_is() {
        let node = node(&[(1, "lo", &[]), (2, "eth0", &[])]);
        let problems = selection(&["eth0", "eth7", "lo"]).problems(&node);
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "uplink eth7: no such device; create it or change --uplink; there are: lo, eth0",
                "uplink lo: is not an Ethernet device; name the Ethernet device below it in --uplink",
            ]
        );
    }

    #[test]
    fn an_interface_knows_its_first_global_addresses() {
        let node = node(&[(2, "eth0", &["fe80::1", "fd00::1", "192.0.2.1", "192.0.2.2"])]);
        let interface = selection(&["eth0"]).choose(&node, &[]).interfaces[&2];
        assert_eq!(interface.addresses.map(IpAddr::from).map(|ip| ip.to_string()), ["192.0.2.1", "fd00::1"]);
    }

    /// A list has the newest IPv6 address first, reports the oldest: after a restart the source was another one.
    #[test]
    fn n3_an_ipv6_address_does_not_depend_on_the_order() {
        for order in [["fd00::1", "fd00::2"], ["fd00::2", "fd00::1"]] {
            let node = node(&[(2, "eth0", &order)]);
            let interface = selection(&["eth0"]).choose(&node, &[]).interfaces[&2];
            assert_eq!(IpAddr::from(interface.addresses[1]).to_string(), "fd00::1");
        }
    }

    #[test]
    fn n9_a_bridges_port_knows_who_routes_for_it() {
        let mut node = node(&[(2, "vrf0", &[]), (3, "cni0", &[]), (4, "veth1", &[]), (5, "veth2", &[])]);
        change(&mut node, 2, |link| link.kind = VRF.into());
        change(&mut node, 3, |link| (link.kind, link.controller) = (BRIDGE.into(), 2));
        change(&mut node, 4, |link| link.controller = 3);
        let interfaces = selection(&[]).choose(&node, &[]).interfaces;
        assert_eq!([2, 3, 4, 5].map(|ifindex| interfaces[&ifindex].bridge), [0, 0, 3, 0]);
    }

    #[test]
    fn primary_addresses_are_the_node_objects_else_the_uplinks() {
        let mut node = node(&[(2, "eth0", &["192.0.2.1", "fd00::1"]), (3, "cni0", &["10.0.0.1"])]);
        let interfaces = selection(&["eth0"]).choose(&node, &[]).interfaces;
        let internal: [IpAddr; 1] = ["203.0.113.5".parse().unwrap()];
        let expected = ["203.0.113.5", "fd00::1"].map(|ip| Some(ip.parse().unwrap()));
        assert_eq!(primary_addresses(&node, &interfaces, &internal), expected);
        let interfaces = selection(&[]).choose(&node, &[]).interfaces;
        let of = |node: &NodeState| primary_addresses(node, &interfaces, &[])[0].unwrap().to_string();
        assert_eq!(of(&node), "192.0.2.1");
        node.apply(Change::DefaultDevices([3].into()));
        assert_eq!(of(&node), "10.0.0.1", "that with the default route");
    }
}
