// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random nodes and events, all from one number: whoever has the seed has the test. Packets are in [`super::arrival`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    network::{BARE, Network, POD, SECOND, UPLINK},
    node::{self, BACKEND_PORT, Both, CALLER, CLUSTER_IP, OUTSIDE, SERVICES, pick},
};
use crate::reference::{Backend, List, Policy, Prefix, Setup, Version};

/// Clients, both inside and outside, and some that are neither.
pub(super) const CLIENTS: [Both; 12] = [
    OUTSIDE,
    ["203.0.113.8", "2001:db8:c::8"],
    ["198.18.0.5", "2001:db8:d::5"],
    CALLER,
    ["10.1.0.11", "fd00:1::11"],
    ["10.2.0.21", "fd00:2::21"],
    ["192.0.2.1", "2001:db8:1::1"],
    ["224.0.0.9", "fe80::9"],
    ["255.255.255.255", "ff02::9"],
    ["127.0.0.1", "::1"],
    ["0.0.0.7", "::"],
    ["240.0.0.9", "::2"],
];
/// Numbers from a seed: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// A number below `end`, as even as a remainder is.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// True so many times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A node whose tables, policies, ports, addresses and devices are as they happen to be.
    pub fn setup(&mut self, network: &Network) -> Setup {
        let mut setup = node::setup(network);
        setup.seed = [self.number(), self.number()];
        setup.next_hop_generation = 1 + self.below(3) as u32;
        let first = 50_000 + self.below(1000) as u16;
        setup.source_ports = [Some(first..=first + self.pick(&[0, 6, 999])), None];
        if self.chance(50) {
            let second = 60_000 + self.below(1000) as u16;
            setup.source_ports[1] = Some(second..=second + self.pick(&[0, 3, 999]));
        }
        setup.rejects_per_tick = self.pick(&[0, 3, 1_000_000]);
        setup.timeouts = setup.timeouts.map(|_| self.pick(&[0, 3, 100_000]));
        if self.chance(10) {
            setup.node.clear();
        }
        for interface in setup.interfaces.values_mut() {
            interface.takes_xdp = self.chance(50);
            if self.chance(10) {
                interface.addresses.clear();
            }
        }
        if self.chance(10) {
            setup.interfaces.remove(&self.pick(&[UPLINK, SECOND, POD, BARE]));
        }
        self.net(&mut setup);
        self.policies(&mut setup);
        for index in 1..=2 * SERVICES.len() {
            self.change_tables(&mut setup, index as u32);
            self.change_rules(&mut setup, index as u32);
        }
        setup
    }

    /// Mostly there is one.
    fn net(&mut self, setup: &mut Setup) {
        setup.net = self.chance(80).then(node::net);
        if let Some(net) = &mut setup.net
            && self.chance(10)
        {
            net.sources.remove(&self.pick(&Version::BOTH));
        }
    }

    /// What holds for all Services.
    fn policies(&mut self, setup: &mut Setup) {
        setup.masquerades_all = self.chance(30);
        for version in Version::BOTH {
            if self.chance(50) {
                setup.guarded.insert(pick(CLUSTER_IP, version));
            }
            if self.chance(30) {
                let cidr = self.prefix(version);
                setup.cluster_cidrs.insert(version, cidr);
            }
        }
    }

    /// A network that some of the clients are in.
    fn prefix(&mut self, version: Version) -> Prefix {
        let (client, lens) = match pick(self.pick(&CLIENTS), version) {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, [1, 8, 24, 29, 32]),
            IpAddr::V6(v6) => (v6.to_bits(), [1, 16, 64, 125, 128]),
        };
        let len = self.pick(&lens);
        let first = client & (u128::MAX << (128 - len));
        let network = match version {
            Version::V4 => Ipv4Addr::from_bits((first >> 96) as u32).into(),
            Version::V6 => Ipv6Addr::from_bits(first).into(),
        };
        Prefix { network, len: len as u8 }
    }

    /// Gives a Service other rules: affinity, source ranges, resets; and its frontends other lists.
    fn change_rules(&mut self, setup: &mut Setup, service: u32) {
        let version = if service as usize > SERVICES.len() { Version::V6 } else { Version::V4 };
        let affinity = self.pick(&[None, None, Some(3), Some(100_000)]);
        let resets = self.chance(40);
        let ranges = (0..self.below(4)).map(|_| self.prefix(version)).collect();
        setup.source_ranges.insert(service, ranges);
        for frontend in setup.frontends.values_mut().filter(|frontend| frontend.service == service) {
            frontend.affinity = affinity;
            frontend.resets = resets;
            frontend.is_restricted = self.chance(15);
            frontend.lists = [0, 1].map(|_| self.pick(&[List::Cluster, List::Cluster, List::Local]));
        }
    }

    /// Gives a Service other tables, of its family's backends.
    fn change_tables(&mut self, setup: &mut Setup, service: u32) {
        let count = SERVICES.len() as u32;
        let offset = if service > count { count } else { 0 };
        let tables = [0, 1].map(|_| {
            let slots = self.pick(&[0, 1, 1, 7, 101]);
            let first = 1 + offset;
            let mut slots: Vec<u32> = (0..slots).map(|_| first + self.below(7) as u32).collect();
            if self.chance(2) {
                slots.fill(self.pick(&[60, 64, u32::MAX]));
            }
            slots
        });
        let policies =
            [self.pick(&[Policy::Reject, Policy::Drop]), self.pick(&[Policy::Reject, Policy::Drop, Policy::Pass])];
        for frontend in setup.frontends.values_mut().filter(|frontend| frontend.service == service) {
            frontend.tables.clone_from(&tables);
            frontend.policies = policies;
        }
    }

    /// A change that the agent might make.
    pub fn change(&mut self, setup: &mut Setup) {
        let index = 1 + self.below(2 * SERVICES.len());
        match self.below(8) {
            0 => setup.next_hop_generation += 1,
            1 => self.change_tables(setup, index as u32),
            2 => self.change_rules(setup, index as u32),
            7 => self.net(setup),
            3..5 => {
                let generation = setup.backends[index].generation + 1;
                setup.backends[index] = Backend::free(generation);
            }
            _ => {
                let version = if index > SERVICES.len() { Version::V6 } else { Version::V4 };
                let address = pick(self.pick(&SERVICES).backend.unwrap_or(CALLER), version);
                let is_local = self.chance(50);
                node::add_backend(setup, index as u32, (address, BACKEND_PORT), is_local);
                setup.backends[index].is_listed = [self.chance(90), self.chance(50)];
            }
        }
    }
}
