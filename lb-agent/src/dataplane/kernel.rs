// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this kernel has of what the programs and the agent can use, found at the start; and what it costs to do without.
//!
//! The oldest that is meant to serve is Linux 5.14. What is asked here is used where it is there, and replaced where it isn't.

use std::fmt;

use aya::util::KernelVersion;
use lb_common::maps::globals;
use nix::net::if_::if_nametoindex;

use super::{doors::Door, sys};

/// What not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `BPF_F_IPV6` of `bpf_l4_csum_replace`.
    Ipv6Checksum,
    /// `BPF_FIB_LOOKUP_SRC`.
    RoutedSource,
    /// Links of TC programs.
    TcLinks,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ipv6Checksum, Self::RoutedSource, Self::TcLinks];

    /// The kernel that brought it, and what serves in its place at what cost.
    const fn story(self) -> (&'static str, &'static str) {
        match self {
            Self::Ipv6Checksum => (
                "6.16",
                "no BPF_F_IPV6: translated IPv6 packets of devices that sum up whole packets may be summed up once more, \
                 and the kernel may log `hw csum failure`",
            ),
            Self::RoutedSource => (
                "6.7",
                "no BPF_FIB_LOOKUP_SRC: a translated source is an address of the device, whatever network the next hop is in and \
                 whatever `src` the route has",
            ),
            Self::TcLinks => {
                ("6.6", "no TC links: filters of a clsact qdisc serve; other filters of priority 1 may run before them")
            }
        }
    }

    fn is_there(self) -> bool {
        match self {
            // No question would tell: old kernels pass over flags that they don't know.
            Self::Ipv6Checksum => KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 16, 0)),
            // Programs ask each time, and do without where the kernel refuses.
            Self::RoutedSource => KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 7, 0)),
            Self::TcLinks => {
                let (attach_type, _) = Door::TcIngress.attach();
                if_nametoindex("lo").is_ok_and(|loopback| sys::count_attached(loopback, attach_type).is_ok())
            }
        }
    }
}

/// A lack, for whoever reads the log.
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (since, cost) = self.story();
        write!(f, "{cost} (Linux has it since {since})")
    }
}

/// What this kernel has not got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks(Vec<Feature>);

impl Lacks {
    /// Asks the kernel.
    #[must_use]
    pub fn find() -> Self {
        Self(Feature::ALL.into_iter().filter(|feature| !feature.is_there()).collect())
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = Feature> {
        self.0.iter().copied()
    }

    /// What the programs are told of the kernel, by the names of their globals; what each means stands there.
    #[must_use]
    pub fn globals(&self) -> [(&'static str, u64); 1] {
        const BPF_F_IPV6: u64 = 1 << 7;
        [(globals::L4_CSUM_V6_FLAGS, if self.0.contains(&Feature::Ipv6Checksum) { 0 } else { BPF_F_IPV6 })]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_what_they_must_do_without() {
        assert_eq!(Lacks::default().globals().map(|(_, value)| value), [128]);
        assert_eq!(Lacks(Feature::ALL.to_vec()).globals().map(|(_, value)| value), [0]);
    }

    #[test]
    fn a_lack_says_what_it_costs_and_which_kernel_has_more() {
        assert!(Feature::TcLinks.to_string().ends_with("may run before them (Linux has it since 6.6)"));
    }
}
