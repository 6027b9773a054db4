// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may use the load-balancer addresses of a Service (rule 35).

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use crate::model::{
    fault::{Bad, Faults, Field},
    value::parse_cidr,
};

/// `spec.loadBalancerSourceRanges`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    ranges: BTreeSet<IpNet>,
    /// Whether some could not be read. Nobody knows of which family they were meant to be: none is open to everybody then.
    has_unreadable: bool,
}

impl SourceRanges {
    /// Reads them. Where one can't be read, the last good ones stay, unless they admit everybody: whoever writes ranges wants to
    /// shut somebody out.
    pub(super) fn parse(spec: &core::ServiceSpec, last_good: Option<&Self>, faults: &mut Faults) -> Self {
        let last_good = last_good.filter(|good| !good.is_empty());
        let mut bad = Vec::new();
        let mut own = Self::default();
        for text in spec.load_balancer_source_ranges.iter().flatten() {
            match parse_cidr(text) {
                Some(range) => drop(own.ranges.insert(range)),
                None => {
                    own.has_unreadable = true;
                    bad.push(format!("spec.loadBalancerSourceRanges: \"{text}\" is not a CIDR"));
                }
            }
        }
        for cause in bad {
            let (stopgap_text, remedy) = (", and admits nobody".into(), "give CIDRs such as 192.0.2.0/24".into());
            own =
                faults.hold(Field::SourceRanges, Bad { cause, stopgap: own, stopgap_text, remedy }, last_good.cloned());
        }
        own
    }

    /// Whether there is none, so that nothing depends on the node's addresses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.has_unreadable
    }

    /// The sources that are admitted to load-balancer addresses of a family; `None` where everybody is: without any range
    /// of this family, and with one that holds all of it.
    ///
    /// Where a range holds one of the node's own addresses, the load-balancer addresses are admitted too: what this node
    /// sends to one of them may have it as its source.
    #[must_use]
    pub fn admitted(&self, is_v4: bool, node: &[IpAddr], load_balancer_ips: &[IpAddr]) -> Option<BTreeSet<IpNet>> {
        let of_family = |ip: &IpAddr| ip.is_ipv4() == is_v4;
        let mut admitted: BTreeSet<_> = self.ranges.iter().filter(|range| of_family(&range.addr())).copied().collect();
        let is_open = admitted.is_empty() && !self.has_unreadable;
        if is_open || admitted.iter().any(|range| range.prefix_len() == 0) {
            return None;
        }
        if node.iter().any(|ip| admitted.iter().any(|range| range.contains(ip))) {
            admitted.extend(load_balancer_ips.iter().filter(|ip| of_family(ip)).map(|&ip| IpNet::from(ip)));
        }
        Some(admitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builders::service;

    const LOAD_BALANCER: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

    /// Who is admitted in IPv4 and in IPv6, on a node with an address of each.
    fn admitted(ranges: &[&str]) -> [Option<Vec<String>>; 2] {
        let spec = service("web").source_ranges(ranges).0.spec.unwrap();
        let ranges = SourceRanges::parse(&spec, None, &mut Faults::new(String::new()));
        let node = ["172.16.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let vips = LOAD_BALANCER.map(|ip| ip.parse().unwrap());
        [true, false].map(|is_v4| {
            let admitted = ranges.admitted(is_v4, &node, &vips);
            admitted.map(|ranges| ranges.iter().map(ToString::to_string).collect())
        })
    }

    fn only(ranges: &[&str]) -> Option<Vec<String>> {
        Some(ranges.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn rule_35_white_space_is_trimmed_and_families_are_apart() {
        let both = [" 198.51.100.0/24", "203.0.113.7/32\t", "2001:db8:1::/48 "];
        assert_eq!(admitted(&both), [only(&["198.51.100.0/24", "203.0.113.7/32"]), only(&["2001:db8:1::/48"])]);
    }

    #[test]
    fn rule_35_ranges_of_the_other_family_restrict_nobody() {
        assert_eq!(admitted(&["198.51.100.0/24"]), [only(&["198.51.100.0/24"]), None]);
        assert_eq!(admitted(&["2001:db8:1::/48"]), [None, only(&["2001:db8:1::/48"])]);
        assert_eq!(admitted(&[]), [None, None]);
    }

    #[test]
    fn rule_35_a_range_of_everything_restricts_nobody_in_its_family() {
        let ranges = ["198.51.100.0/24", "0.0.0.0/0", "2001:db8:1::/48"];
        assert_eq!(admitted(&ranges), [None, only(&["2001:db8:1::/48"])]);
    }

    #[test]
    fn rule_35_the_nodes_own_range_admits_the_load_balancers_address() {
        assert_eq!(admitted(&["172.16.0.0/24"])[0], only(&["172.16.0.0/24", "192.0.2.9/32"]));
        assert_eq!(admitted(&["fd00::/8"])[1], only(&["2001:db8::9/128", "fd00::/8"]));
    }

    #[test]
    fn rule_35_what_can_not_be_read_opens_no_family() {
        assert_eq!(admitted(&["198.51.100.0/24", "2001:db8"]), [only(&["198.51.100.0/24"]), only(&[])]);
    }
}
