// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the programs must know of this node and of the agent's flags, in a memory-mapped array of one element.
//!
//! **Time** on the packet path is counted in ticks of 2^30 nanoseconds (1.074 s) of `CLOCK_MONOTONIC`: a shift, where
//! seconds would cost a division.

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, flow::FlowState};

/// Nanoseconds to ticks: `ns >> TICK_SHIFT`.
pub const TICK_SHIFT: u32 = 30;

/// Seconds in ticks, rounded up.
#[must_use]
pub const fn ticks(seconds: u32) -> u32 {
    (seconds as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT) as u32
}

/// Ticks from `then` to `now`. Negative where `then` is of another CPU, which saw a tick begin that had not begun yet when this
/// one looked at the clock.
#[inline(always)]
#[must_use]
pub const fn elapsed(now: u32, then: u32) -> i64 {
    (now.wrapping_sub(then) as i32) as i64
}

/// Index of a family in arrays of two.
#[inline(always)]
#[must_use]
pub const fn family_index(is_v4: bool) -> usize {
    if is_v4 { 0 } else { 1 }
}

/// The element of the configuration map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Key of the flow hash; the same on all nodes of a cluster.
    pub seed: [u64; 2],
    /// Counts changes of routes, neighbours and links: a cached next hop of another generation is looked up again.
    /// Never 0, which marks a flow without a next hop.
    pub next_hop_generation: u32,
    /// First port of the range reserved for source translation, host byte order.
    pub source_port_first: u16,
    /// Last port of that range.
    pub source_port_last: u16,
    /// The node's primary addresses, IPv4 and IPv6: source of ICMP errors, and of translated packets that leave by a
    /// device without an address.
    pub node_addresses: [Address; 2],
    /// Idle time in ticks after which a flow of each [`FlowState`] counts as gone.
    pub timeouts: [u32; FlowState::COUNT],
    /// ICMP errors that each CPU may send in a tick.
    pub rejects_per_tick: u32,
    /// Where the pods of the cluster are, IPv4 and IPv6 (`--cluster-cidr`): sources in it that come by an uplink are pods
    /// of other nodes, and so internal clients.
    pub cluster_cidrs: [Cidr; 2],
    /// [`config_flags`].
    pub flags: u32,
}

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// Every source is translated where the backend is not on the node itself (`--masquerade-all`).
    pub const MASQUERADE_ALL: u32 = 1;
    /// NodePorts do not answer at localhost (`--nodeport-addresses` with ranges that leave it out).
    pub const NO_LOCALHOST: u32 = 2;
}

/// An address range as mask and value, in packet byte order. All zero matches nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Cidr {
    /// First address.
    pub address: Address,
    /// Mask of the prefix; for IPv4 in the v4-mapped form.
    pub mask: Address,
}

impl Cidr {
    /// Whether an address lies in the range.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, address: &Address) -> bool {
        let (value, mask, first) = (address.words_be(), self.mask.words_be(), self.address.words_be());
        !self.mask.is_unspecified()
            && value[0] & mask[0] == first[0]
            && value[1] & mask[1] == first[1]
            && value[2] & mask[2] == first[2]
            && value[3] & mask[3] == first[3]
    }
}

/// Bits of [`Interface::role`].
pub mod role {
    /// Leads to one or more pods of this node: its senders are internal clients.
    pub const POD: u16 = 1;
    /// Leads outside.
    pub const UPLINK: u16 = 2;
    /// Runs our XDP program natively, so that frames can be redirected to it.
    pub const XDP: u16 = 4;
}

/// A network device, by its index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// First address of each family, IPv4 and IPv6; unspecified where it has none.
    pub addresses: [Address; 2],
    /// Ethernet address.
    pub mac: [u8; 6],
    /// [`role`].
    pub role: u16,
}

const _: () = assert!(size_of::<Config>() == 160);
const _: () = assert!(size_of::<Interface>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_contains_its_own() {
        let address = |text: &str| Address::from(text.parse::<core::net::IpAddr>().unwrap());
        let cidr = Cidr { address: address("10.244.0.0"), mask: address("::ffff:255.255.0.0") };
        let mut mask = *cidr.mask.words_be();
        mask[..3].fill(u32::MAX);
        let cidr = Cidr { mask: Address::from_words_be(mask), ..cidr };
        assert!(cidr.contains(&address("10.244.255.1")));
        assert!(!cidr.contains(&address("10.245.0.1")));
        assert!(!cidr.contains(&address("fd00::1")));
        assert!(!Cidr::default().contains(&Address::UNSPECIFIED));
    }

    #[test]
    fn a_tick_that_another_cpu_saw_earlier_is_no_age() {
        assert_eq!(elapsed(7, 5), 2);
        assert_eq!(elapsed(7, 8), -1);
        assert_eq!(elapsed(0, u32::MAX), 1);
        assert_eq!(elapsed(u32::MAX, 0), -1);
    }

    #[test]
    fn a_time_out_is_never_shorter_than_asked() {
        assert_eq!(ticks(0), 0);
        assert_eq!(ticks(1), 1);
        assert_eq!(ticks(10), 10);
        assert_eq!(ticks(86_400), 80_467);
    }
}
