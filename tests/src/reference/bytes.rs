// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers and addresses in the bytes of a packet, most significant byte first.

use std::net::{IpAddr, Ipv6Addr};

/// The two bytes at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes them.
pub(super) fn set_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// The four bytes at an offset.
pub(super) fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
}

/// The address that 4 or 16 bytes are.
pub(super) fn address(bytes: &[u8]) -> IpAddr {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return v4.into();
    }
    let v6: [u8; 16] = bytes.try_into().expect("4 or 16 bytes");
    Ipv6Addr::from(v6).into()
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
