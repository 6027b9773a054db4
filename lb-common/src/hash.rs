// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hashes: the keyed one that chooses backends, and the quick one of the address filter.

use crate::bits::join;

/// SipHash-1-3 (Aumasson and Bernstein, 2012) over whole 64-bit words.
///
/// Keyed, so that outsiders who choose their own source ports can't aim at one backend. The result is that of the
/// byte-wise algorithm over the words in little-endian order.
#[inline(always)]
#[must_use]
pub fn siphash13<const N: usize>(key: &[u64; 2], words: &[u64; N]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut index = 0;
    while index < N {
        let word = words[index];
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
        index += 1;
    }
    // The last block holds the length in bytes modulo 256 and, as the input is whole words, nothing else.
    let last = ((N as u64 * 8) & 0xff) << 56;
    v[3] ^= last;
    round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    round(&mut v);
    round(&mut v);
    round(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// Maps a hash to `0..len` without a division: the high 32 bits, multiplied and shifted (Lemire, 2016).
#[inline(always)]
#[must_use]
pub const fn scale(hash: u64, len: u32) -> u32 {
    (((hash >> 32) * len as u64) >> 32) as u32
}

/// The keyed hash of a client alone, by the words of its address: for session affinity.
#[inline(always)]
#[must_use]
pub fn of_client(seed: &[u64; 2], words: &[u32; 4]) -> u64 {
    siphash13(seed, &[join(words[0], words[1]), join(words[2], words[3])])
}

/// Addresses that the filter tells apart.
pub const FILTER_BITS: u32 = 1 << 19;
/// Addresses with port and protocol that it tells apart.
pub const FILTER_PORT_BITS: u32 = 1 << 20;

/// The cell of an address of 16 bytes, in words as it stands in memory, in the filter; below [`FILTER_BITS`].
///
/// Not keyed: a collision costs one flow look-up that finds nothing.
#[inline(always)]
#[must_use]
pub const fn filter_bit(words: &[u32; 4]) -> u32 {
    filter_bit_of_words(high_of(words), words[3])
}

/// The same for IPv4, where all but the last word are constant.
#[inline(always)]
#[must_use]
pub const fn filter_bit_v4(word: u32) -> u32 {
    filter_bit_of_words(HIGH_OF_V4, word)
}

/// The bit of an address with port and protocol, below [`FILTER_PORT_BITS`].
#[inline(always)]
#[must_use]
pub const fn filter_port_bit(words: &[u32; 4], port_be: u16, protocol: u8) -> u32 {
    port_bit_of_words(high_of(words), words[3], port_be, protocol)
}

/// The same for IPv4.
#[inline(always)]
#[must_use]
pub const fn filter_port_bit_v4(word: u32, port_be: u16, protocol: u8) -> u32 {
    port_bit_of_words(HIGH_OF_V4, word, port_be, protocol)
}

/// All words of an address but the last as one.
#[inline(always)]
const fn high_of(words: &[u32; 4]) -> u32 {
    words[0] ^ words[1].rotate_left(7) ^ words[2].rotate_left(14)
}

/// The same of IPv4 addresses, as they stand in IPv6's.
const HIGH_OF_V4: u32 = high_of(&[0, 0, 0x0000_ffff_u32.to_be(), 0]);

#[inline(always)]
const fn port_bit_of_words(high: u32, low: u32, port_be: u16, protocol: u8) -> u32 {
    let ends = (port_be as u64) << 8 | protocol as u64;
    let mixed = ((low ^ high.wrapping_mul(0x85eb_ca6b)) as u64 | ends << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The product's upper half depends on all bits of the lower words, its lower one not on the port.
    ((mixed >> 32) as u32 ^ (mixed as u32).rotate_left(9)) >> (32 - FILTER_PORT_BITS.trailing_zeros())
}

#[inline(always)]
const fn filter_bit_of_words(high: u32, low: u32) -> u32 {
    // Fibonacci hashing: the multiplier is 2^32 divided by the golden ratio; the high bits are the good ones.
    (low ^ high.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b1) >> (32 - FILTER_BITS.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use core::{hash::Hasher, net::IpAddr};

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;
    use crate::address::Address;

    proptest! {
        #[test]
        fn siphash_agrees_with_the_reference_crate(key in any::<[u64; 2]>(), words in any::<[u64; 5]>()) {
            let mut reference = SipHasher13::new_with_keys(key[0], key[1]);
            for word in words {
                reference.write(&word.to_le_bytes());
            }
            prop_assert_eq!(siphash13(&key, &words), reference.finish());
        }

        #[test]
        fn a_scaled_hash_is_in_range(hash in any::<u64>(), len in 1..=u32::MAX) {
            prop_assert!(scale(hash, len) < len);
        }

        #[test]
        fn the_short_filter_is_the_long_one(ip in any::<[u8; 4]>()) {
            let address = Address::from(IpAddr::from(ip));
            prop_assert_eq!(filter_bit(address.words_be()), filter_bit_v4(u32::from_ne_bytes(ip)));
            prop_assert!(filter_bit(address.words_be()) < FILTER_BITS);
            prop_assert_eq!(filter_port_bit(address.words_be(), 80, 6), filter_port_bit_v4(u32::from_ne_bytes(ip), 80, 6));
            prop_assert!(filter_port_bit(address.words_be(), u16::MAX, 17) < FILTER_PORT_BITS);
        }
    }
}
