// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which local addresses answer NodePorts (rules 28 and 29). Pure.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lb_common::address::Address;

use super::state::NodeState;

/// The flag `--nodeport-addresses`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's primary address of each family.
    #[default]
    Primary,
    /// Every local address, those that come later too.
    All,
    /// Local addresses in these ranges; all of a family that has no range here.
    Ranges(Vec<IpNet>),
}

/// `--nodeport-addresses` could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a CIDR such as 192.0.2.0/24; give CIDRs separated by commas, or `primary`, or `all`")]
pub struct NodePortAddressesError {
    text: String,
}

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            ranges => ranges
                .split(',')
                .map(|range| range.trim().parse().map_err(|_| NodePortAddressesError { text: range.trim().into() }))
                .collect::<Result<_, _>>()
                .map(Self::Ranges),
        }
    }
}

impl NodePortAddresses {
    /// The addresses that answer NodePorts now. Those of the loopback network never do here: they are the socket door's.
    #[must_use]
    pub fn select(&self, node: &NodeState, primary: [Option<IpAddr>; 2]) -> BTreeSet<Address> {
        match self {
            Self::Primary => primary.into_iter().flatten().map(Address::from).collect(),
            Self::All => local_addresses(node).map(Address::from).collect(),
            Self::Ranges(ranges) => {
                local_addresses(node).filter(|ip| is_in_ranges(ranges, *ip)).map(Address::from).collect()
            }
        }
    }
}

/// Every address by which other machines reach this one.
pub fn local_addresses(node: &NodeState) -> impl Iterator<Item = IpAddr> + '_ {
    node.all_addresses().map(|own| own.ip).filter(|ip| !ip.is_loopback())
}

fn is_in_ranges(ranges: &[IpNet], ip: IpAddr) -> bool {
    let mut of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == ip.is_ipv4()).peekable();
    of_family.peek().is_none() || of_family.any(|range| range.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::state::{Change, LocalAddress};

    fn selected(flag: &str) -> Vec<String> {
        let mut node = NodeState::default();
        let own = [(1, "127.0.0.1"), (1, "::1"), (2, "192.0.2.1"), (2, "fd00::1"), (3, "10.0.0.1"), (3, "fe80::1")];
        for (ifindex, ip) in own {
            let address = LocalAddress { ip: ip.parse().unwrap(), is_global: true, is_secondary: false };
            node.apply(Change::Address { ifindex, address });
        }
        let primary = [Some("192.0.2.1".parse().unwrap()), None];
        let addresses: NodePortAddresses = flag.parse().unwrap();
        addresses.select(&node, primary).into_iter().map(|address| IpAddr::from(address).to_string()).collect()
    }

    fn sorted(mut texts: Vec<String>) -> Vec<String> {
        texts.sort();
        texts
    }

    #[test]
    fn rule_28_primary_all_and_ranges() {
        assert_eq!(selected("primary"), ["192.0.2.1"]);
        assert_eq!(sorted(selected("all")), ["10.0.0.1", "192.0.2.1", "fd00::1", "fe80::1"]);
        assert_eq!(sorted(selected("10.0.0.0/8, fd00::/8")), ["10.0.0.1", "fd00::1"]);
        assert_eq!(sorted(selected("10.0.0.0/8,::/0")), ["10.0.0.1", "fd00::1", "fe80::1"]);
    }

    #[test]
    fn rule_28_a_family_without_a_range_is_all_of_it() {
        assert_eq!(sorted(selected("10.0.0.0/8")), ["10.0.0.1", "fd00::1", "fe80::1"]);
    }

    #[test]
    fn rule_29_addresses_that_come_later_answer_too() {
        let mut node = NodeState::default();
        for ip in ["192.0.2.1", "198.51.100.1"] {
            let address = LocalAddress { ip: ip.parse().unwrap(), is_global: true, is_secondary: false };
            node.apply(Change::Address { ifindex: 2, address });
            assert!(NodePortAddresses::All.select(&node, [None, None]).contains(&Address::from(address.ip)));
        }
        node.apply(Change::AddressGone { ifindex: 2, ip: "192.0.2.1".parse().unwrap() });
        assert_eq!(NodePortAddresses::All.select(&node, [None, None]).len(), 1);
    }

    #[test]
    fn what_is_no_range_is_named() {
        let error = "10.0.0.0/8,primary".parse::<NodePortAddresses>().unwrap_err();
        assert!(error.to_string().starts_with("\"primary\" is not a CIDR"), "{error}");
    }
}
