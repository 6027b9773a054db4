// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random nodes, packets and events, all from one number: whoever has the seed has the test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::flow::{protocol, tcp_flags};

use super::{
    build::Segment,
    network::{BARE, Network, POD, SECOND, UPLINK},
    node::{self, BACKEND_PORT, Both, CALLER, CLUSTER_IP, NODE, OUTSIDE, SERVICES, pick},
};
use crate::reference::{Arrival, Backend, Door, List, Model, Policy, Prefix, Setup, Tuple, Version};

/// Clients, both inside and outside, and some that are neither.
const CLIENTS: [Both; 8] = [
    OUTSIDE,
    ["203.0.113.8", "2001:db8:c::8"],
    ["198.18.0.5", "2001:db8:d::5"],
    CALLER,
    ["10.1.0.11", "fd00:1::11"],
    ["10.2.0.21", "fd00:2::21"],
    ["192.0.2.1", "2001:db8:1::1"],
    ["224.0.0.9", "fe80::9"],
];
/// Destinations beside those of Services.
const STRANGERS: [Both; 5] = [
    OUTSIDE,
    CALLER,
    ["10.1.0.1", "fd00:1::1"],
    ["255.255.255.255", "ff02::1"],
    // As a destination in a packet, nobody's.
    ["0.0.0.0", "::ffff:10.96.0.1"],
];
const FLAGS: [u8; 8] = [
    tcp_flags::SYN,
    tcp_flags::SYN,
    tcp_flags::ACK,
    tcp_flags::ACK,
    tcp_flags::SYN | tcp_flags::ACK,
    tcp_flags::FIN | tcp_flags::ACK,
    tcp_flags::RST,
    0,
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
        setup.source_ports = first..=first + self.pick(&[0, 6, 999]);
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
        self.policies(&mut setup);
        for index in 1..=2 * SERVICES.len() {
            self.change_tables(&mut setup, index as u32);
            self.change_rules(&mut setup, index as u32);
        }
        setup
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
        let policies = [0, 1].map(|_| self.pick(&[Policy::Reject, Policy::Drop]));
        for frontend in setup.frontends.values_mut().filter(|frontend| frontend.service == service) {
            frontend.tables.clone_from(&tables);
            frontend.policies = policies;
        }
    }

    /// A change that the agent might make.
    pub fn change(&mut self, setup: &mut Setup) {
        let index = 1 + self.below(2 * SERVICES.len());
        match self.below(7) {
            0 => setup.next_hop_generation += 1,
            1 => self.change_tables(setup, index as u32),
            2 => self.change_rules(setup, index as u32),
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

    /// A packet that may be of a flow of the model's or may begin one; or anything at all.
    pub fn arrival(&mut self, model: &Model) -> Arrival {
        let (tuple, door) = self.flow(model).unwrap_or_else(|| (self.tuple(), self.pick(&Door::IN)));
        let door = if self.chance(5) { self.pick(&Door::ALL) } else { door };
        let mut frame = self.segment(tuple).build();
        self.damage(&mut frame);
        Arrival { door, ifindex: self.pick(&[UPLINK, UPLINK, SECOND, POD, POD, BARE]), frame, is_trace: self.chance(3) }
    }

    /// The tuple of a flow that exists, and a door that it may go by.
    fn flow(&mut self, model: &Model) -> Option<(Tuple, Door)> {
        let flows = &model.flows.0;
        if flows.is_empty() || self.chance(40) {
            return None;
        }
        let (&tuple, entry) = flows.iter().nth(self.below(flows.len()))?;
        let is_at_egress = entry.is_reply && !entry.is_snat;
        Some((tuple, if is_at_egress { Door::Egress } else { self.pick(&Door::IN) }))
    }

    /// A client and where it goes.
    fn tuple(&mut self) -> Tuple {
        let version = self.pick(&Version::BOTH);
        let protocol = self.pick(&[protocol::TCP, protocol::UDP]);
        let port = 40_000 + self.below(4) as u16;
        let service = self.pick(&SERVICES);
        let dst = match self.below(20) {
            0..10 => service.at_node(version),
            10..18 => service.at_cluster_ip(version),
            18 => SocketAddr::new(pick(self.pick(&STRANGERS), version), service.port),
            _ => SocketAddr::new(pick(self.pick(&[CLUSTER_IP, NODE]), version), self.pick(&[0, 22, 80, 50_001])),
        };
        Tuple { src: SocketAddr::new(pick(self.pick(&CLIENTS), version), port), dst, protocol }
    }

    fn segment(&mut self, tuple: Tuple) -> Segment {
        let segment = match tuple.protocol {
            protocol::TCP => Segment::tcp(tuple.src, tuple.dst, self.pick(&FLAGS)),
            _ => Segment::udp(tuple.src, tuple.dst),
        };
        let len = if self.chance(90) { self.below(12) } else { self.below(1400) };
        let payload: Vec<u8> = (0..len).map(|_| self.number() as u8).collect();
        segment.acknowledging(self.number() as u32).payload(&payload).ttl(self.pick(&[64, 64, 64, 64, 255, 2, 1, 0]))
    }

    /// Leaves most frames as they are.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        const IP: usize = 14;
        let is_v4 = frame[12] == 0x08;
        match self.below(40) {
            0 => frame.truncate(IP + self.below(frame.len() - IP)),
            // In the headers, mostly.
            1..4 => {
                for _ in 0..=self.below(3) {
                    let at = self.below(frame.len().min(80));
                    frame[at] = self.number() as u8;
                }
            }
            4 => frame.extend_from_slice(&[0xa5; 30][..self.below(30)]),
            5 if is_v4 => frame[IP] = self.pick(&[0x44, 0x46, 0x4f, 0x55]),
            5 => frame[IP + 6] = self.pick(&[0, 43, 44, 51, 60, 58, 132]),
            6 if is_v4 => frame[IP + 6 + self.below(2)] |= 1 << self.below(8),
            // No UDP checksum; of TCP the upper half of the window and the urgent pointer.
            7 if is_v4 => frame[IP + 20 + 6..][..2].fill(0),
            7 => frame[IP + 40 + 6..][..2].fill(0),
            _ => {}
        }
    }
}
