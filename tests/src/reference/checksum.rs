// SPDX-License-Identifier: MIT OR Apache-2.0
//! Internet checksums (RFC 1071), summed over all bytes each time.
//!
//! The one's complement sum of a header is the sum of its 16-bit words modulo 65,535, so that is how it is computed here.

const MODULUS: u64 = 0xffff;

/// The sum of big-endian 16-bit words modulo 65,535; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low)));
    words.sum::<u64>() % MODULUS
}

/// The checksum field with which `others` (the sum of everything but the field) comes to `total`.
///
/// A sound packet's total is 0. The total of a damaged one must stay what it is: the receiver shall see the damage.
/// Of the two ways to write zero this gives 0x0000.
pub fn field(others: u64, total: u64) -> u16 {
    let field = (total % MODULUS + MODULUS - others % MODULUS) % MODULUS;
    u16::try_from(field).expect("below 65,535")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // Section 3: the sum of these bytes is ddf2.
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(field(0xddf2, 0), !0xddf2);
    }
}
