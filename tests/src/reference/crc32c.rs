// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP's checksum (RFC 9260 appendix A): CRC32c, bit by bit over the whole packet each time.

/// Castagnoli's polynomial, its highest power foremost and mirrored.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of bytes. In a packet it stands with its least significant byte first.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn the_check_value_of_the_catalogue_and_the_examples_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
    }
}
