// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which devices get our programs, as what, and what the programs must know of each device. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    address::Address,
    config::{Interface, family_index, role},
};

use super::{
    pattern::Pattern,
    state::{Link, LocalAddress, NodeState, is_tunnel},
};
use crate::problem::Problem;

/// How devices are chosen: the flags `--uplink` and `--pod-interface`.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Names of the uplinks. Empty: devices with a default route, and those that carry the node's own addresses.
    pub uplinks: Vec<String>,
    /// Patterns of the names of pods' devices.
    pub pods: Vec<Pattern>,
}

impl Selection {
    /// The device's [`role`], 0 for none.
    ///
    /// Nothing but Ethernet devices can have one. A device that leads outside is an uplink even if its name looks like a
    /// pod's; but a pod's device that carries the node's own address, as those of some network plug-ins do, is a pod's.
    /// A tunnel to other nodes is an uplink in any case: what leaves by it has its address, to which the replies come.
    #[must_use]
    pub fn role(&self, node: &NodeState, ifindex: u32, link: &Link, internal: &[IpAddr]) -> u16 {
        if link.is_loopback || !link.is_ethernet {
            return 0;
        }
        let is_named = self.uplinks.contains(&link.name);
        let is_found = self.uplinks.is_empty() && node.is_outward_device(ifindex);
        if is_named || is_found || is_tunnel(&link.kind) {
            role::UPLINK
        } else if self.pods.iter().any(|pattern| pattern.matches(&link.name)) {
            role::POD
        } else if self.uplinks.is_empty() && node.addresses(ifindex).iter().any(|own| internal.contains(&own.ip)) {
            role::UPLINK
        } else {
            0
        }
    }

    /// Devices that are uplinks for no other reason than the node's own addresses.
    #[must_use]
    pub fn uplinks_by_address(&self, node: &NodeState, internal: &[IpAddr]) -> Vec<u32> {
        let is_found = |ifindex: u32, link: &Link| {
            self.role(node, ifindex, link, internal) == role::UPLINK && self.role(node, ifindex, link, &[]) == 0
        };
        let found = node.links().iter().filter(|&(&ifindex, link)| is_found(ifindex, link));
        found.map(|(&ifindex, _)| ifindex).collect()
    }

    /// What there is to know of every device that packets may leave by, those with a role among them.
    #[must_use]
    pub fn interfaces(&self, node: &NodeState, internal: &[IpAddr]) -> BTreeMap<u32, Interface> {
        let devices = node.links().iter().filter(|(_, link)| !link.is_loopback);
        devices
            .map(|(&ifindex, link)| {
                let addresses = [true, false].map(|is_v4| first_address(node.addresses(ifindex), is_v4));
                let role = self.role(node, ifindex, link, internal);
                (ifindex, Interface { addresses, mac: link.mac, role })
            })
            .collect()
    }

    /// Named uplinks that can't serve as such now.
    #[must_use]
    pub fn problems(&self, node: &NodeState) -> Vec<Problem> {
        self.uplinks.iter().filter_map(|name| uplink_problem(node, name)).collect()
    }
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

/// The first global address of a family, primary ones before secondary ones.
pub(super) fn first_global(addresses: &[LocalAddress], is_v4: bool) -> Option<IpAddr> {
    let fit = || addresses.iter().filter(move |own| own.is_global && own.ip.is_ipv4() == is_v4);
    fit().find(|own| !own.is_secondary).or_else(|| fit().next()).map(|own| own.ip)
}

/// First address of each family among those of the Node object, else of the uplinks; what [`family_index`] says is where.
#[must_use]
pub fn primary_addresses(
    node: &NodeState,
    interfaces: &BTreeMap<u32, Interface>,
    internal: &[IpAddr],
) -> [Option<IpAddr>; 2] {
    let uplinks = || interfaces.iter().filter(|(_, interface)| interface.role & role::UPLINK != 0);
    let mut primary = [None; 2];
    for is_v4 in [true, false] {
        let own = internal.iter().copied().find(|ip| ip.is_ipv4() == is_v4);
        primary[family_index(is_v4)] =
            own.or_else(|| uplinks().find_map(|(&ifindex, _)| first_global(node.addresses(ifindex), is_v4)));
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

    fn roles(selection: &Selection, node: &NodeState, internal: &[IpAddr]) -> Vec<(u32, u16)> {
        selection.interfaces(node, internal).iter().map(|(&ifindex, interface)| (ifindex, interface.role)).collect()
    }

    #[test]
    fn uplinks_are_those_with_default_routes_or_the_nodes_addresses() {
        let mut node = node(&[
            (1, "lo", &["127.0.0.1", "192.0.2.1"]),
            (2, "eth0", &["192.0.2.1"]),
            (3, "eth1", &["198.51.100.1"]),
            (4, "eth2", &[]),
            (5, "veth0", &[]),
            (6, "gke0", &["192.0.2.1"]),
            (7, "veth-up", &[]),
        ]);
        node.apply(Change::DefaultRoute { ifindexes: vec![3, 7] });
        let internal = ["192.0.2.1".parse().unwrap()];
        let expected =
            [(2, role::UPLINK), (3, role::UPLINK), (4, 0), (5, role::POD), (6, role::POD), (7, role::UPLINK)];
        assert_eq!(roles(&selection(&[]), &node, &internal), expected);
    }

    #[test]
    fn named_uplinks_are_the_only_ones() {
        let mut node = node(&[(2, "eth0", &["192.0.2.1"]), (3, "veth-up", &[]), (4, "veth1", &[])]);
        node.apply(Change::DefaultRoute { ifindexes: vec![2] });
        let internal = ["192.0.2.1".parse().unwrap()];
        assert_eq!(roles(&selection(&["veth-up"]), &node, &internal), [(2, 0), (3, role::UPLINK), (4, role::POD)]);
    }

    /// The outside clients of a backend on another node, to which a tunnel leads, had no answer.
    #[test]
    fn tunnels_are_uplinks_whatever_is_named() {
        let mut node = node(&[(2, "eth0", &["192.0.2.1"])]);
        let link = Link { name: "flannel.1".into(), kind: "vxlan".into(), is_ethernet: true, ..Link::default() };
        node.apply(Change::Link { ifindex: 3, link: link.clone() });
        for uplinks in [&["eth0"][..], &[]] {
            assert_eq!(selection(uplinks).role(&node, 3, &link, &[]), role::UPLINK);
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
        let interface = selection(&["eth0"]).interfaces(&node, &[])[&2];
        assert_eq!(interface.addresses.map(IpAddr::from).map(|ip| ip.to_string()), ["192.0.2.1", "fd00::1"]);
    }

    #[test]
    fn primary_addresses_are_the_node_objects_else_the_uplinks() {
        let node = node(&[(2, "eth0", &["192.0.2.1", "fd00::1"]), (3, "cni0", &["10.0.0.1"])]);
        let interfaces = selection(&["eth0"]).interfaces(&node, &[]);
        let internal: [IpAddr; 1] = ["203.0.113.5".parse().unwrap()];
        let expected = ["203.0.113.5", "fd00::1"].map(|ip| Some(ip.parse().unwrap()));
        assert_eq!(primary_addresses(&node, &interfaces, &internal), expected);
    }
}
