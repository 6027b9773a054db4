// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Incremental Internet checksums (RFC 1071, RFC 1624 equation 3), in the byte order of the packet's memory.
//!
//! A rewrite replaces the same fields by the same values for every packet of a flow, so the difference is computed once,
//! kept in the flow entry, and applied with two additions. One's complement sums don't depend on byte order as long as
//! all words are loaded alike, so nothing is swapped.

use crate::address::Family;

/// The one's complement difference that replaces old 16-bit or 32-bit words by new ones, folded to 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No difference.
    pub const ZERO: Self = Self(0);

    /// Adds the replacement of one 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn replace(self, old: u32, new: u32) -> Self {
        Self(self.0 + new as u64 + !old as u64)
    }

    /// Adds the replacement of one 16-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + new as u64 + !old as u64)
    }

    /// Adds the replacement of an address.
    #[inline(always)]
    #[must_use]
    pub fn replace_address<F: Family>(self, old: &F::Addr, new: &F::Addr) -> Self {
        let (mut delta, mut index) = (self, 0);
        while index < F::WORDS {
            delta = delta.replace(F::word(old, index), F::word(new, index));
            index += 1;
        }
        delta
    }

    /// Adds another difference.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, delta: u16) -> Self {
        Self(self.0 + delta as u64)
    }

    /// The difference in 16 bits.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }
}

/// Folds a sum of 16-bit words to 16 bits with end-around carry.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A checksum field after differences, which are given as their sum: at most three of 16 bits. HC' = ~(~HC + delta), RFC 1624
/// equation 3.
#[inline(always)]
#[must_use]
pub const fn apply(check: u16, deltas: u32) -> u16 {
    let sum = !check as u32 + deltas;
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// [`apply`] for UDP, where zero means that there is no checksum (RFC 768): it stays.
#[inline(always)]
#[must_use]
pub const fn apply_udp(check: u16, deltas: u32) -> u16 {
    if check == 0 { 0 } else { as_udp(apply(check, deltas)) }
}

/// A checksum as UDP writes it: one that comes out as zero in its other form.
#[inline(always)]
#[must_use]
pub const fn as_udp(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

/// The difference that taking one from a TTL makes: that of the word which it shares with the protocol. It stands in its first byte.
pub const TTL_DELTA: u16 = !0x0100_u16.to_be();

/// The difference of the reverse replacement.
#[inline(always)]
#[must_use]
pub const fn negate(delta: u16) -> u16 {
    !delta
}

/// The checksum field over a header given as 16-bit words with the field itself zero.
#[inline(always)]
#[must_use]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checksum(words: &[u16]) -> u16 {
        finish(words.iter().map(|&w| u64::from(w)).sum())
    }

    /// Any number, and often those where carries and zeroes are.
    fn at_the_edge() -> impl Strategy<Value = u16> {
        prop_oneof![any::<u16>(), 0..3_u16, 0xfffd..=0xffff_u16]
    }

    proptest! {
        #[test]
        fn an_updated_checksum_is_the_computed_one(mut words in prop::collection::vec(any::<u16>(), 4..40), new in any::<[u16; 4]>()) {
            // An all-zero header has two encodings of zero; RFC 1624 section 3 tells why equation 3 keeps them apart.
            words.push(0x4500);
            let before = checksum(&words);
            let mut delta = Delta::ZERO;
            for (word, new) in words.iter_mut().zip(new) {
                delta = delta.replace16(*word, new);
                *word = new;
            }
            prop_assert_eq!(apply(before, delta.fold().into()), checksum(&words));
        }

        #[test]
        fn words_of_32_bits_are_two_of_16(old in any::<u32>(), new in any::<u32>()) {
            let halves = Delta::ZERO
                .replace16(old as u16, new as u16)
                .replace16((old >> 16) as u16, (new >> 16) as u16);
            prop_assert_eq!(Delta::ZERO.replace(old, new).fold() % 0xffff, halves.fold() % 0xffff);
        }

        #[test]
        fn several_differences_are_applied_at_once(check in at_the_edge(), deltas in prop::array::uniform3(at_the_edge())) {
            // Modulo 2^16 - 1, by division, and of both forms of zero the one that a sum of something gives.
            let sum = u64::from(!check) + deltas.iter().map(|&delta| u64::from(delta)).sum::<u64>();
            let folded = if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 };
            let expected = !(folded as u16);
            let deltas = deltas.iter().map(|&delta| u32::from(delta)).sum();
            prop_assert_eq!(apply(check, deltas), expected);
            let udp = match (check, expected) {
                (0, _) => 0,
                (_, 0) => 0xffff,
                _ => expected,
            };
            prop_assert_eq!(apply_udp(check, deltas), udp);
        }

        #[test]
        fn one_less_of_ttl_is_always_the_same_difference(ttl in 1..=u8::MAX, protocol: u8) {
            let word = |ttl: u8| u16::from_ne_bytes([ttl, protocol]);
            let delta = Delta::ZERO.replace16(word(ttl), word(ttl - 1)).fold();
            prop_assert_eq!(delta, TTL_DELTA);
        }

        #[test]
        fn negation_undoes(check in 1..0xffff_u16, old in any::<u32>(), new in any::<u32>()) {
            let delta = Delta::ZERO.replace(old, new).fold();
            prop_assert_eq!(apply(apply(check, delta.into()), negate(delta).into()), check);
        }
    }
}
