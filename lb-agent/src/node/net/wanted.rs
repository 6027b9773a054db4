// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the net should be, from what the node and the sources say. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{NetSources, host};

/// What is wanted of the net.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// That it stays as it is: nobody knows yet.
    #[default]
    Unknown,
    /// Nothing of it. In its place `blackhole` routes keep what is for nobody's address in these ranges from leaving by the default route;
    /// `None` while nobody knows of the ranges: then those that are there stay.
    Off(Option<BTreeSet<IpNet>>),
    /// All of it.
    On {
        /// The device's.
        mtu: u32,
        /// The routes to it; those that are there stay, as long as nobody knows.
        routes: Option<Arc<Routes>>,
        /// Another number says that something may have been lost.
        hint: u64,
    },
}

/// What is routed to the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Ranges, and the source of what this node sends there by itself.
    pub ranges: BTreeMap<IpNet, Option<IpAddr>>,
    /// Whether there may be more ranges, which nobody can tell now: those that are there stay.
    pub are_more: bool,
}

impl Routes {
    /// Families of which there are routes: whether it is IPv4.
    #[must_use]
    pub fn families(&self) -> BTreeSet<bool> {
        self.ranges.keys().map(|range| range.addr().is_ipv4()).collect()
    }
}

/// What routes follow from.
pub struct Addresses<'a> {
    /// Ranges from which ClusterIPs are allocated; `None` where they can't be read.
    pub service_ranges: Option<BTreeSet<IpNet>>,
    /// Those that a flag gives besides.
    pub given_ranges: &'a [IpNet],
    /// Addresses of this node.
    pub local: &'a BTreeSet<IpAddr>,
    /// Addresses that may be the source of what this node sends, IPv4 and IPv6.
    pub own: [Option<IpAddr>; 2],
    /// The families that this node has, IPv4 and IPv6.
    pub families: [bool; 2],
    /// See [`NetSources`].
    pub sources: NetSources,
}

impl Addresses<'_> {
    /// The routes that follow, for ClusterIPs outside of the ranges, too.
    ///
    /// Other frontends have none of their own: external IPs may be those of machines, and those of load balancers as well (k3s's). With a
    /// route to the device, all that comes from there would be dropped by `rp_filter`, whatever it is.
    #[must_use]
    pub fn routes(&self, cluster_ips: impl Iterator<Item = IpAddr>) -> Routes {
        let known: BTreeSet<IpNet> = self.ranges().collect();
        let others: BTreeSet<IpAddr> = cluster_ips.filter(|ip| self.needs_route(ip)).collect();
        let others = others.into_iter().chain(self.sources.addresses()).map(host);
        let index = |range: &IpNet| usize::from(!range.addr().is_ipv4());
        let ranges = known.into_iter().chain(others).filter(|range| self.families[index(range)]);
        Routes {
            ranges: ranges.map(|range| (range, self.own[index(&range)])).collect(),
            are_more: self.service_ranges.is_none(),
        }
    }

    fn needs_route(&self, ip: &IpAddr) -> bool {
        let is_somebodys = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
        is_somebodys && !self.ranges().any(|range| range.contains(ip)) && !self.local.contains(ip)
    }

    fn ranges(&self) -> impl Iterator<Item = IpNet> {
        self.service_ranges.iter().flatten().chain(self.given_ranges).copied()
    }
}

/// The MTU of the device: what fits everywhere. IPv6 needs 1280.
#[must_use]
pub fn mtu(of_devices: impl Iterator<Item = u32>) -> u32 {
    const LEAST: u32 = 1280;
    const USUAL: u32 = 1500;
    of_devices.filter(|mtu| *mtu > 0).min().unwrap_or(USUAL).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn texts(routes: &Routes) -> Vec<String> {
        let source = |source: &Option<IpAddr>| source.map_or_else(String::new, |ip| format!(" src {ip}"));
        routes.ranges.iter().map(|(range, own)| format!("{range}{}", source(own))).collect()
    }

    const NOBODY: &BTreeSet<IpAddr> = &BTreeSet::new();

    fn addresses() -> Addresses<'static> {
        Addresses {
            service_ranges: Some(nets(&["10.96.0.0/12", "fd00:96::/108"])),
            given_ranges: &[],
            local: NOBODY,
            own: [Some("192.0.2.1".parse().unwrap()), Some("fd00::1".parse().unwrap())],
            families: [true; 2],
            sources: NetSources::default(),
        }
    }

    /// The routes, with these ClusterIPs.
    fn routed(addresses: &Addresses<'_>, all: &[&str]) -> Vec<String> {
        texts(&addresses.routes(all.iter().map(|text| text.parse().unwrap())))
    }

    const SOURCES: [&str; 2] = ["169.254.96.1/32 src 192.0.2.1", "fd96:ffff::1/128 src fd00::1"];

    #[test]
    fn ranges_and_sources_are_routed_with_the_nodes_address_as_source() {
        let services = ["10.96.0.1", "fd00:96::1"];
        let all = routed(&addresses(), &services);
        assert_eq!(all, ["10.96.0.0/12 src 192.0.2.1", SOURCES[0], "fd00:96::/108 src fd00::1", SOURCES[1]]);
        let [_, v6] = addresses().own;
        let all = routed(&Addresses { own: [None, v6], ..addresses() }, &services);
        assert_eq!(all[..2], ["10.96.0.0/12", "169.254.96.1/32"]);
        let all = routed(&Addresses { families: [true, false], ..addresses() }, &services);
        assert_eq!(all, ["10.96.0.0/12 src 192.0.2.1", SOURCES[0]]);
    }

    #[test]
    fn cluster_ips_outside_of_all_ranges_have_routes_of_their_own() {
        let services = ["10.96.0.1", "198.51.100.7", "fd00:7::7", "0.0.0.0", "::", "127.0.0.1"];
        let all = routed(&addresses(), &services);
        assert!(all.contains(&"198.51.100.7/32 src 192.0.2.1".into()), "{all:?}");
        assert!(all.contains(&"fd00:7::7/128 src fd00::1".into()), "{all:?}");
        assert_eq!(all.len(), 6, "{all:?}");
        let given_ranges = &["198.51.100.0/24".parse().unwrap()];
        let (service_ranges, own) = (Some(BTreeSet::new()), [None; 2]);
        let all = routed(&Addresses { service_ranges, given_ranges, own, ..addresses() }, &services);
        let expected = ["10.96.0.1/32", "169.254.96.1/32", "198.51.100.0/24", "fd00:7::7/128", "fd96:ffff::1/128"];
        assert_eq!(all, expected);
    }

    #[test]
    fn what_this_node_holds_is_not_routed_away_from_it() {
        let local = BTreeSet::from(["10.96.0.10".parse().unwrap()]);
        let addresses = Addresses { local: &local, service_ranges: None, ..addresses() };
        let expected = ["10.96.0.1/32 src 192.0.2.1", SOURCES[0], SOURCES[1]];
        assert_eq!(routed(&addresses, &["10.96.0.1", "10.96.0.10"]), expected);
    }

    #[test]
    fn ranges_that_may_not_be_read_may_be_there() {
        let addresses = Addresses { service_ranges: None, ..addresses() };
        let routes = addresses.routes(["10.96.0.1".parse().unwrap()].into_iter());
        assert!(routes.are_more);
        assert_eq!(texts(&routes)[0], "10.96.0.1/32 src 192.0.2.1");
        assert_eq!(routes.families(), [true, false].into());
    }

    #[test]
    fn the_mtu_is_the_least_that_ipv6_allows() {
        assert_eq!(mtu([1500, 1400, 0].into_iter()), 1400);
        assert_eq!(mtu([9000, 65_536].into_iter()), 9000);
        assert_eq!(mtu([1000].into_iter()), 1280);
        assert_eq!(mtu([].into_iter()), 1500);
    }
}
