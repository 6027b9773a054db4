// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! SCTP's checksum (RFC 9260 appendix A), corrected without reading the packet.
//!
//! A CRC is linear: the CRCs of two packets of one length differ by what the difference of the packets, followed by as many
//! zero bytes, leaves as its remainder. Where only the ports change, that is one word, moved on by the rest of the packet:
//! multiplied by x^(8 n) modulo the polynomial, with a product for each bit of n.

/// The Castagnoli polynomial. The bit of the highest power comes last, as everywhere here.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// 1, as a polynomial.
const ONE: u32 = 1 << 31;

/// Bits in the length of an IP packet.
const LEN_BITS: usize = 16;

/// x^(8 * 2^k): what a word is multiplied by when 2^k bytes come behind it.
static SHIFTS: [u32; LEN_BITS] = {
    // x^8.
    let mut shifts = [ONE >> 8; LEN_BITS];
    let mut k = 1;
    while k < LEN_BITS {
        shifts[k] = multiply(shifts[k - 1], shifts[k - 1]);
        k += 1;
    }
    shifts
};

/// The product of two polynomials, modulo the CRC's.
#[inline(always)]
#[must_use]
pub const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut term, mut bit) = (0, b, 0);
    while bit < u32::BITS {
        // Without branches: the verifier would follow each.
        product ^= term & 0_u32.wrapping_sub(a >> (31 - bit) & 1);
        term = term >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(term & 1);
        bit += 1;
    }
    product
}

/// The checksum field of an SCTP packet after its first word, the ports, was replaced; all three as they stand in memory.
/// `rest` is the number of bytes behind that word.
///
/// The product is an argument so that it can be a global function of the eBPF programs.
#[inline(always)]
#[must_use]
pub fn correct(check: u32, old_ports: u32, new_ports: u32, rest: u16, multiply: impl Fn(u32, u32) -> u32) -> u32 {
    // The word's own 32 bits of register come first: a difference of all four bytes is read at once.
    let mut difference = multiply(u32::from_le(old_ports ^ new_ports), ONE_WORD);
    let mut k = 0;
    while k < LEN_BITS {
        let factor = if rest >> k & 1 == 0 { ONE } else { SHIFTS[k] };
        difference = multiply(difference, factor);
        k += 1;
    }
    check ^ difference.to_le()
}

/// The checksum of an SCTP packet of three words, a common header alone, over its field as it stands there.
#[inline(always)]
#[must_use]
pub fn of_header(words: [u32; 3], multiply: impl Fn(u32, u32) -> u32) -> u32 {
    let [first, second, third] = words.map(u32::from_le);
    let mut register = multiply(u32::MAX ^ first, ONE_WORD);
    register = multiply(register ^ second, ONE_WORD);
    register = multiply(register ^ third, ONE_WORD);
    (!register).to_le()
}

/// x^32.
const ONE_WORD: u32 = POLYNOMIAL;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As appendix A has it, a bit at a time.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ POLYNOMIAL })
        })
    }

    #[test]
    fn the_examples_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn a_header_has_the_checksum_of_its_bytes(words: [u32; 3]) {
            let bytes: [u8; 12] = bytemuck::cast(words);
            prop_assert_eq!(of_header(words, multiply).to_ne_bytes(), crc32c(&bytes).to_le_bytes());
        }
    }

    #[test]
    fn one_is_neutral() {
        assert_eq!(multiply(ONE, 0x1234_5678), 0x1234_5678);
        assert_eq!(multiply(0x1234_5678, ONE), 0x1234_5678);
    }

    fn corrected(packet: &mut [u8], new_ports: [u8; 4]) -> u32 {
        let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
        let (old, check, rest) = (word(0), word(8), packet.len() as u16 - 4);
        packet[..4].copy_from_slice(&new_ports);
        correct(check, old, u32::from_ne_bytes(new_ports), rest, multiply)
    }

    fn seal(packet: &mut [u8]) {
        packet[8..12].fill(0);
        let check = crc32c(packet).to_le_bytes();
        packet[8..12].copy_from_slice(&check);
    }

    proptest! {
        #[test]
        fn a_corrected_checksum_is_the_computed_one(mut packet in prop::collection::vec(any::<u8>(), 12..3000), ports: [u8; 4]) {
            seal(&mut packet);
            let check = corrected(&mut packet, ports).to_ne_bytes();
            seal(&mut packet);
            prop_assert_eq!(&packet[8..12], &check);
        }

        #[test]
        fn products_commute(a: u32, b: u32) {
            prop_assert_eq!(multiply(a, b), multiply(b, a));
        }
    }

    #[test]
    fn the_longest_packet_is_corrected_too() {
        let mut packet = std::vec![0x5a; 65_515];
        seal(&mut packet);
        let check = corrected(&mut packet, [1, 2, 3, 4]).to_ne_bytes();
        seal(&mut packet);
        assert_eq!(packet[8..12], check);
    }
}
