// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which local addresses answer NodePorts (rules 28 and 29). Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::address::Address;

use super::state::NodeState;

/// The flag `--nodeport-addresses`: words and ranges, mixed at will (rule 84).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The node's primary address of each family.
    has_primary: bool,
    /// Local addresses in these ranges.
    ranges: Vec<IpNet>,
}

/// `--nodeport-addresses` could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is neither a CIDR such as 192.0.2.0/24 nor one of the words `primary`, `localhost` and `all`; give these, separated by commas"
)]
pub struct NodePortAddressesError {
    text: String,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self { has_primary: true, ranges: Vec::new() }
    }
}

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut own = Self { has_primary: false, ranges: Vec::new() };
        for text in text.split(',').map(str::trim) {
            match text {
                "primary" => own.has_primary = true,
                "localhost" => own.ranges.extend(LOCALHOST),
                "all" => own.ranges.extend(ALL),
                range => own.ranges.push(range.parse().map_err(|_| NodePortAddressesError { text: range.into() })?),
            }
        }
        Ok(own)
    }
}

const LOCALHOST: [IpNet; 2] = [v4(Ipv4Addr::LOCALHOST, 8), IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128))];
const ALL: [IpNet; 2] = [v4(Ipv4Addr::UNSPECIFIED, 0), IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0))];

const fn v4(address: Ipv4Addr, prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, prefix_len))
}

impl NodePortAddresses {
    /// The addresses that answer NodePorts now. Those of the loopback network never do here: they are the socket door's.
    #[must_use]
    pub fn select(&self, node: &NodeState, primary: [Option<IpAddr>; 2]) -> BTreeSet<Address> {
        let primary = primary.into_iter().flatten().filter(|_| self.has_primary);
        let others = local_addresses(node).filter(|ip| self.is_in_ranges(*ip));
        primary.chain(others).map(Address::from).collect()
    }

    /// Whether every local address answers, those that come later too.
    #[must_use]
    pub fn are_all(&self) -> bool {
        ALL.iter().all(|range| self.ranges.contains(range))
    }

    /// Whether the node's own processes reach NodePorts at localhost: ranges without it shut it out (rules 30 and 84).
    #[must_use]
    pub fn have_localhost(&self) -> bool {
        let is_held = |ip: &IpAddr| self.ranges.iter().any(|range| range.contains(ip));
        self.ranges.is_empty() || LOCALHOST.map(|range| range.addr()).iter().any(is_held)
    }

    /// A family without a range is all of it, unless the primary addresses are named.
    fn is_in_ranges(&self, ip: IpAddr) -> bool {
        let mut of_family = self.ranges.iter().filter(|range| range.addr().is_ipv4() == ip.is_ipv4()).peekable();
        if of_family.peek().is_none() { !self.has_primary } else { of_family.any(|range| range.contains(&ip)) }
    }
}

/// Every address by which other machines reach this one.
pub fn local_addresses(node: &NodeState) -> impl Iterator<Item = IpAddr> + '_ {
    node.all_addresses().map(|own| own.ip).filter(|ip| !ip.is_loopback())
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
        let (mut node, all) = (NodeState::default(), "all".parse::<NodePortAddresses>().unwrap());
        for ip in ["192.0.2.1", "198.51.100.1"] {
            let address = LocalAddress { ip: ip.parse().unwrap(), is_global: true, is_secondary: false };
            node.apply(Change::Address { ifindex: 2, address });
            assert!(all.select(&node, [None, None]).contains(&Address::from(address.ip)));
        }
        node.apply(Change::AddressGone { ifindex: 2, ip: "192.0.2.1".parse().unwrap() });
        assert_eq!(all.select(&node, [None, None]).len(), 1);
    }

    #[test]
    fn rule_84_words_and_ranges_are_mixed() {
        assert_eq!(sorted(selected("primary,10.0.0.0/8")), ["10.0.0.1", "192.0.2.1"]);
        assert_eq!(sorted(selected("primary,primary")), ["192.0.2.1"]);
        assert_eq!(sorted(selected("primary,all")), ["10.0.0.1", "192.0.2.1", "fd00::1", "fe80::1"]);
        assert_eq!(sorted(selected("localhost, primary")), ["192.0.2.1"]);
        assert_eq!(selected("localhost"), [""; 0], "the socket door's");
        assert_eq!(sorted(selected("localhost,fd00::/8")), ["fd00::1"]);
        let is_all = |flag: &str| flag.parse::<NodePortAddresses>().unwrap().are_all();
        for (flag, expected) in [("all", true), ("::/0,0.0.0.0/0", true), ("primary,all", true), ("0.0.0.0/0", false)] {
            assert_eq!(is_all(flag), expected, "{flag}");
        }
    }

    #[test]
    fn rules_30_and_84_localhost_answers_unless_ranges_leave_it_out() {
        for (flag, expected) in [
            ("primary", true),
            ("all", true),
            ("localhost", true),
            ("192.0.2.0/24,localhost", true),
            ("127.0.0.1/32", true),
            ("192.0.2.0/24", false),
            ("primary,192.0.2.0/24", false),
        ] {
            assert_eq!(flag.parse::<NodePortAddresses>().unwrap().have_localhost(), expected, "{flag}");
        }
    }

    #[test]
    fn what_is_no_range_is_named() {
        let error = "10.0.0.0/8,primarily".parse::<NodePortAddresses>().unwrap_err();
        assert!(error.to_string().starts_with("\"primarily\" is neither a CIDR"), "{error}");
    }
}
