// SPDX-License-Identifier: MIT OR Apache-2.0
//! The filter that lets other traffic go, as the map holds it or shall hold it. What its bits mean is
//! [`lb_common::filter`]'s business.

use std::fmt;

use lb_common::{
    filter::{self, Concern},
    frontend::FrontendKey,
};

use super::FrontendText;

/// The filter, in the layout of the map.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter(Box<filter::Filter>);

impl Filter {
    /// From the words of the map; missing ones are zero.
    #[must_use]
    pub fn from_words(words: impl Iterator<Item = u64>) -> Self {
        let mut own = Self::default();
        own.words_mut().iter_mut().zip(words).for_each(|(to, from)| *to = from);
        own
    }

    /// The words of the map.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        bytemuck::cast_slice(std::slice::from_ref(&*self.0))
    }

    fn words_mut(&mut self) -> &mut [u64] {
        bytemuck::cast_slice_mut(std::slice::from_mut(&mut *self.0))
    }

    /// Whether packets pass.
    #[must_use]
    pub fn contains(&self, concern: Concern) -> bool {
        concern.bits().all(|bits| self.has(bits))
    }

    /// Whether these bits of a word are set.
    #[must_use]
    pub fn has(&self, (word, bits): (usize, u64)) -> bool {
        self.words()[word] & bits == bits
    }

    /// Lets packets pass.
    pub fn insert(&mut self, concern: Concern) {
        self.0.add(concern);
    }

    /// Number of bits set in the part for packets that arrive, and in the one for those that leave: of addresses, and of
    /// addresses with ports. (The part for NodePorts has a bit for every port there is, so that none is in another's place.)
    #[must_use]
    pub fn counts(&self) -> [u32; 4] {
        let own = &*self.0;
        [&own.destinations[..], &own.frontends, &own.sources, &own.backends]
            .map(|words| words.iter().map(|word| word.count_ones()).sum())
    }
}

/// What lets packets to a frontend pass.
#[must_use]
pub fn concern_of(key: &FrontendKey) -> Concern {
    let port = u16::from_be(key.port_be);
    if *key == FrontendKey::any_port(key.address) {
        Concern::ClusterIp(key.address)
    } else if key.is_node_port() {
        Concern::NodePort(port, key.protocol)
    } else {
        Concern::Frontend(key.address, key.port_be, key.protocol)
    }
}

/// Whose packets they are, for people.
pub struct ConcernText<'a>(pub &'a Concern);

impl fmt::Display for ConcernText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 {
            Concern::Node(address) | Concern::ClusterIp(address) => write!(f, "{address}"),
            Concern::Frontend(address, port_be, protocol) | Concern::Backend(address, port_be, protocol) => {
                FrontendText(&FrontendKey::new(address, port_be, protocol)).fmt(f)
            }
            Concern::PodDevice(ifindex) => write!(f, "device {ifindex} of a pod"),
            Concern::NodePort(port, protocol) => {
                FrontendText(&FrontendKey::node_port(true, port.to_be(), protocol)).fmt(f)
            }
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self(bytemuck::allocation::zeroed_box())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({:?} bits)", self.counts())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::{address::Address, flow::protocol};

    use super::*;

    #[test]
    fn what_passes_is_in_the_words_of_the_map() {
        let address = Address::from(IpAddr::from([10, 0, 0, 1]));
        let mut filter = Filter::default();
        filter.insert(Concern::Backend(address, 80_u16.to_be(), protocol::TCP));
        assert_eq!(filter.counts(), [0, 0, 1, 1]);
        assert!(filter.contains(Concern::Backend(address, 80_u16.to_be(), protocol::TCP)));
        assert!(!filter.contains(Concern::Backend(address, 81_u16.to_be(), protocol::TCP)));
        assert!(!filter.contains(Concern::Node(address)));
        assert_eq!(Filter::from_words(filter.words().iter().copied()), filter);
    }

    #[test]
    fn a_frontend_passes_as_what_it_is() {
        let address = Address::from(IpAddr::from([10, 96, 0, 1]));
        let tcp = protocol::TCP;
        for (key, expected) in [
            (FrontendKey::any_port(address), Concern::ClusterIp(address)),
            (FrontendKey::new(address, 80_u16.to_be(), tcp), Concern::Frontend(address, 80_u16.to_be(), tcp)),
            (FrontendKey::node_port(true, 30_080_u16.to_be(), tcp), Concern::NodePort(30_080, tcp)),
            (FrontendKey::node_port(false, 30_080_u16.to_be(), tcp), Concern::NodePort(30_080, tcp)),
        ] {
            assert_eq!(concern_of(&key), expected);
        }
    }
}
