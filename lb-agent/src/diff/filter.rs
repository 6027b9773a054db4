// SPDX-License-Identifier: MIT OR Apache-2.0
//! The address filter: two bitmaps that say which addresses may concern us at all.

use std::fmt;

use lb_common::{
    address::Address,
    hash::{FILTER_BITS, filter_bit},
    maps::{FILTER_EGRESS, FILTER_INGRESS},
};

const WORDS: usize = (FILTER_BITS / 64) as usize;

/// Both planes, in the layout of the map.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    words: Vec<u64>,
}

impl Filter {
    /// From the words of both planes, the ingress plane first; missing words are zero.
    #[must_use]
    pub fn from_words(mut words: Vec<u64>) -> Self {
        words.resize(2 * WORDS, 0);
        Self { words }
    }

    /// The words of both planes, the ingress plane first.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether an address passes a plane.
    #[must_use]
    pub fn contains(&self, plane: u32, address: &Address) -> bool {
        let (word, bit) = position(plane, address);
        self.words[word] & bit != 0
    }

    /// Lets an address pass a plane.
    pub fn insert(&mut self, plane: u32, address: &Address) {
        let (word, bit) = position(plane, address);
        self.words[word] |= bit;
    }

    /// Number of bits set in a plane.
    #[must_use]
    pub fn count(&self, plane: u32) -> u32 {
        let start = plane as usize * WORDS;
        self.words[start..start + WORDS].iter().map(|word| word.count_ones()).sum()
    }
}

/// Word and bit of an address in a plane. The one place that knows how bits lie in the map's words.
#[must_use]
pub fn position(plane: u32, address: &Address) -> (usize, u64) {
    let bit = filter_bit(address.words_be());
    (plane as usize * WORDS + (bit / 64) as usize, 1 << (bit % 64))
}

impl Default for Filter {
    fn default() -> Self {
        Self::from_words(Vec::new())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({} bits at ingress, {} at egress)", self.count(FILTER_INGRESS), self.count(FILTER_EGRESS))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn planes_are_separate() {
        let address = Address::from(IpAddr::from([10, 0, 0, 1]));
        let mut filter = Filter::default();
        filter.insert(FILTER_EGRESS, &address);
        assert!(filter.contains(FILTER_EGRESS, &address));
        assert!(!filter.contains(FILTER_INGRESS, &address));
        assert_eq!((filter.count(FILTER_INGRESS), filter.count(FILTER_EGRESS)), (0, 1));
    }
}
