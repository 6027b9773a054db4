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
    /// Nothing of it.
    Off,
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
    /// Addresses of Services.
    pub frontends: BTreeSet<IpAddr>,
    /// Addresses of this node, and those of endpoints: whoever is there has more than Services at them, and a route to the
    /// device would swallow that.
    pub machines: &'a dyn Fn(&IpAddr) -> bool,
    /// Addresses that may be the source of what this node sends, IPv4 and IPv6.
    pub own: [Option<IpAddr>; 2],
    /// The families that this node has, IPv4 and IPv6.
    pub families: [bool; 2],
    /// See [`NetSources`].
    pub sources: NetSources,
}

impl Addresses<'_> {
    /// The routes that follow.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let known: BTreeSet<IpNet> = self.ranges().collect();
        let others = self.frontends.iter().copied().filter(|ip| self.needs_route(ip)).chain(self.sources.addresses());
        let others: Vec<IpNet> = others.map(host).collect();
        let index = |range: &IpNet| usize::from(!range.addr().is_ipv4());
        let ranges = known.into_iter().chain(others).filter(|range| self.families[index(range)]);
        Routes {
            ranges: ranges.map(|range| (range, self.own[index(&range)])).collect(),
            are_more: self.service_ranges.is_none(),
        }
    }

    /// Forgets the frontends that need no route of their own: on most clusters nearly all.
    pub fn keep_outside(&mut self) {
        let mut frontends = std::mem::take(&mut self.frontends);
        frontends.retain(|ip| self.needs_route(ip));
        self.frontends = frontends;
    }

    fn needs_route(&self, ip: &IpAddr) -> bool {
        let is_somebodys = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
        is_somebodys && !self.ranges().any(|range| range.contains(ip)) && !(self.machines)(ip)
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

    fn ips<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
        texts.into_iter().map(|text| text.parse().unwrap()).collect()
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn texts(routes: &Routes) -> Vec<String> {
        let source = |source: &Option<IpAddr>| source.map_or_else(String::new, |ip| format!(" src {ip}"));
        routes.ranges.iter().map(|(range, own)| format!("{range}{}", source(own))).collect()
    }

    fn addresses() -> Addresses<'static> {
        Addresses {
            service_ranges: Some(nets(&["10.96.0.0/12", "fd00:96::/108"])),
            given_ranges: &[],
            frontends: ips(["10.96.0.1", "fd00:96::1"]),
            machines: &|_| false,
            own: [Some("192.0.2.1".parse().unwrap()), Some("fd00::1".parse().unwrap())],
            families: [true; 2],
            sources: NetSources::default(),
        }
    }

    const SOURCES: [&str; 2] = ["169.254.96.1/32 src 192.0.2.1", "fd96:ffff::1/128 src fd00::1"];

    #[test]
    fn ranges_and_sources_are_routed_with_the_nodes_address_as_source() {
        let routed = texts(&addresses().routes());
        assert_eq!(routed, ["10.96.0.0/12 src 192.0.2.1", SOURCES[0], "fd00:96::/108 src fd00::1", SOURCES[1]]);
        let [_, v6] = addresses().own;
        let routed = texts(&Addresses { own: [None, v6], ..addresses() }.routes());
        assert_eq!(routed[..2], ["10.96.0.0/12", "169.254.96.1/32"]);
        let routed = texts(&Addresses { families: [true, false], ..addresses() }.routes());
        assert_eq!(routed, ["10.96.0.0/12 src 192.0.2.1", SOURCES[0]]);
    }

    #[test]
    fn frontends_outside_of_all_ranges_have_routes_of_their_own() {
        let frontends = || ips(["10.96.0.1", "198.51.100.7", "fd00:7::7", "0.0.0.0", "::", "127.0.0.1"]);
        let routed = texts(&Addresses { frontends: frontends(), ..addresses() }.routes());
        assert!(routed.contains(&"198.51.100.7/32 src 192.0.2.1".into()), "{routed:?}");
        assert!(routed.contains(&"fd00:7::7/128 src fd00::1".into()), "{routed:?}");
        assert_eq!(routed.len(), 6, "{routed:?}");
        let given_ranges = &["198.51.100.0/24".parse().unwrap()];
        let (service_ranges, own) = (Some(BTreeSet::new()), [None; 2]);
        let routed = Addresses { service_ranges, given_ranges, frontends: frontends(), own, ..addresses() }.routes();
        let expected = ["10.96.0.1/32", "169.254.96.1/32", "198.51.100.0/24", "fd00:7::7/128", "fd96:ffff::1/128"];
        assert_eq!(texts(&routed), expected);
    }

    /// A load balancer without addresses of its own (k3s's) takes those of nodes, and so do people for external IPs.
    #[test]
    fn a_frontend_at_the_address_of_a_machine_is_not_routed_away_from_it() {
        let machines = |ip: &IpAddr| ips(["192.0.2.1", "192.0.2.2"]).contains(ip);
        let frontends = ips(["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        let routed = texts(&Addresses { frontends, machines: &machines, ..addresses() }.routes());
        let of_nodes: Vec<_> = routed.iter().filter(|text| text.starts_with("192.0.2.")).collect();
        assert_eq!(of_nodes, ["192.0.2.3/32 src 192.0.2.1"]);
    }

    #[test]
    fn ranges_that_may_not_be_read_may_be_there() {
        let routes = Addresses { service_ranges: None, ..addresses() }.routes();
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
