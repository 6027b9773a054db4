// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's routing, as far as packets are forwarded by it.

use std::{collections::BTreeMap, net::IpAddr};

/// A network: an address, and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The network's first address.
    pub network: IpAddr,
    /// Bits of it that count.
    pub len: u8,
}

impl Prefix {
    /// Whether an address lies in it.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        let first_difference = (bits(address) ^ bits(self.network)).leading_zeros();
        address.is_ipv4() == self.network.is_ipv4() && first_difference >= u32::from(self.len)
    }
}

/// A route to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network's address.
    pub network: IpAddr,
    /// Bits of it that count.
    pub prefix_len: u8,
    /// The device; `None` where nothing is forwarded: an address of our own, a broadcast.
    pub device: Option<u32>,
    /// The neighbour to send to; `None` is the destination itself.
    pub gateway: Option<IpAddr>,
}

/// How a packet would leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a device, to a neighbour whose Ethernet address is known.
    Known {
        /// The device.
        ifindex: u32,
        /// The neighbour.
        neighbour: [u8; 6],
    },
    /// By a device, to a neighbour that must be asked first.
    Unresolved {
        /// The device.
        ifindex: u32,
    },
    /// Not at all.
    Nowhere,
}

/// The way of the longest prefix that matches.
pub(super) fn way_to(routes: &[Route], neighbours: &BTreeMap<(u32, IpAddr), [u8; 6]>, destination: IpAddr) -> Way {
    let matching = routes.iter().filter(|route| matches(route, destination));
    let Some(route) = matching.max_by_key(|route| route.prefix_len) else { return Way::Nowhere };
    let Some(ifindex) = route.device else { return Way::Nowhere };
    match neighbours.get(&(ifindex, route.gateway.unwrap_or(destination))) {
        Some(&neighbour) => Way::Known { ifindex, neighbour },
        None => Way::Unresolved { ifindex },
    }
}

fn matches(route: &Route, destination: IpAddr) -> bool {
    Prefix { network: route.network, len: route.prefix_len }.contains(destination)
}

/// An address, its first bit foremost.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
