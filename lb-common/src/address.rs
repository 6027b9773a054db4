// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! IP addresses as the maps hold them, and [`Family`], over which the whole packet path is generic.
//!
//! Addresses are 32-bit words *in network byte order in memory*: what a native load from the packet yields. They are
//! compared and copied, never added or shifted, so that no byte swap is needed on the packet path.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

use crate::bits::join;

/// An address of either family in 16 bytes; IPv4 is v4-mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// The slow path and the agent use this one shape, so that frontends and backends need one map and not two.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Address {
    words: [u32; 4],
}

/// The third word of a v4-mapped address, in network byte order in memory.
const V4_MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// `::`, which stands for "no address".
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// From four words in network byte order in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_words_be(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// From an IPv4 address as it stands in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_be(word: u32) -> Self {
        Self { words: [0, 0, V4_MAPPED, word] }
    }

    /// The four words in network byte order in memory.
    #[inline(always)]
    #[must_use]
    pub const fn words_be(&self) -> &[u32; 4] {
        &self.words
    }

    /// Whether both are the same. One branch, where `==` has four: the verifier follows each way out of each.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        let [a, b] = [&self.words, &other.words];
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }

    /// Whether this is the v4-mapped form of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] | self.words[1] | (self.words[2] ^ V4_MAPPED) == 0
    }

    /// Whether an application that names this address means its own machine: `127.0.0.1`, `::1`, or an unspecified address,
    /// which `connect(2)` takes for those.
    #[inline(always)]
    #[must_use]
    pub const fn is_this_machine(&self) -> bool {
        let last = self.words[3];
        if self.is_v4() {
            last == 0x7f00_0001_u32.to_be() || last == 0
        } else {
            self.words[0] | self.words[1] | self.words[2] == 0 && (last == 1_u32.to_be() || last == 0)
        }
    }

    /// Whether packets from here stay on the machine: `127.0.0.0/8` or `::1`.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let last = self.words[3];
        if self.is_v4() {
            u32::from_be(last) >> 24 == 127
        } else {
            self.words[0] | self.words[1] | self.words[2] | (last ^ 1_u32.to_be()) == 0
        }
    }

    /// Whether no router forwards packets from there: a loopback address, a link-local one (`169.254.0.0/16`, `fe80::/10`), or a multicast
    /// one (`224.0.0.0/4`, `ff00::/8`).
    #[inline(always)]
    #[must_use]
    pub const fn is_unroutable(&self) -> bool {
        let first = u32::from_be(if self.is_v4() { self.words[3] } else { self.words[0] });
        let is_so = if self.is_v4() {
            first >> 16 == 0xa9fe || first >> 28 == 0xe
        } else {
            first >> 22 == 0xfe80 >> 6 || first >> 24 == 0xff
        };
        is_so || self.is_loopback()
    }

    /// The loopback address of the same family: `127.0.0.1` or `::1`.
    #[inline(always)]
    #[must_use]
    pub const fn loopback(is_v4: bool) -> Self {
        if is_v4 { Self::from_v4_be(0x7f00_0001_u32.to_be()) } else { Self { words: [0, 0, 0, 1_u32.to_be()] } }
    }

    /// Whether there is no address here: `::`, the value of an empty map field.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] | self.words[1] | self.words[2] | self.words[3] == 0
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_be(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self { words: bytemuck::cast(ip.octets()) }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::V4(Ipv4Addr::from(address.words[3].to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(address.words)))
        }
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// An IP version. The packet path is written once over it and monomorphised.
pub trait Family: Copy + 'static {
    /// An address as it stands in the packet, network byte order in memory.
    type Addr: Copy + Eq + Pod + core::fmt::Debug;

    /// Whether this is IPv4.
    const IS_V4: bool;
    /// Ethertype, network byte order in memory.
    const ETHERTYPE_BE: u16;
    /// `AF_INET` or `AF_INET6` of Linux.
    const AF: u8;
    /// Length of the fixed IP header in bytes.
    const HEADER_LEN: usize;

    /// The 16-byte form.
    fn widen(addr: &Self::Addr) -> Address;
    /// From the 16-byte form; the family is the caller's business.
    fn narrow(address: &Address) -> Self::Addr;
    /// The 32-bit words of an address, for checksums: `word(addr, i)` for `i` below [`Family::WORDS`].
    fn word(addr: &Self::Addr, index: usize) -> u32;
    /// Number of 32-bit words in an address.
    const WORDS: usize;
    /// The address in the first words of sixteen bytes, the rest zero.
    fn first_words(addr: &Self::Addr) -> [u32; 4];
    /// The address that stands so.
    fn from_first_words(words: &[u32; 4]) -> Self::Addr;

    /// Number of 64-bit words in two addresses side by side.
    const PAIR_WORDS: usize;
    /// The 64-bit words of two addresses side by side, as they stand in memory: below [`Family::PAIR_WORDS`].
    fn pair_word(first: &Self::Addr, second: &Self::Addr, index: usize) -> u64;
    /// The addresses that such words are of.
    fn pair(words: &[u64; 4]) -> (Self::Addr, Self::Addr);
    /// What fills a record of four addresses and 48 bytes up to whole cache lines.
    type LinePad: Copy + Eq + Pod + core::fmt::Debug;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = u32;

    const IS_V4: bool = true;
    const ETHERTYPE_BE: u16 = 0x0800_u16.to_be();
    const AF: u8 = 2;
    const HEADER_LEN: usize = 20;
    const WORDS: usize = 1;

    #[inline(always)]
    fn widen(addr: &u32) -> Address {
        Address::from_v4_be(*addr)
    }

    #[inline(always)]
    fn narrow(address: &Address) -> u32 {
        address.words[3]
    }

    #[inline(always)]
    fn word(addr: &u32, _index: usize) -> u32 {
        *addr
    }

    #[inline(always)]
    fn first_words(addr: &u32) -> [u32; 4] {
        [*addr, 0, 0, 0]
    }

    #[inline(always)]
    fn from_first_words(words: &[u32; 4]) -> u32 {
        words[0]
    }

    const PAIR_WORDS: usize = 1;

    #[inline(always)]
    fn pair_word(first: &u32, second: &u32, _index: usize) -> u64 {
        join(*first, *second)
    }

    #[inline(always)]
    fn pair(words: &[u64; 4]) -> (u32, u32) {
        (words[0] as u32, (words[0] >> 32) as u32)
    }

    type LinePad = [u64; 0];
}

impl Family for V6 {
    type Addr = [u32; 4];

    const IS_V4: bool = false;
    const ETHERTYPE_BE: u16 = 0x86dd_u16.to_be();
    const AF: u8 = 10;
    const HEADER_LEN: usize = 40;
    const WORDS: usize = 4;

    #[inline(always)]
    fn widen(addr: &[u32; 4]) -> Address {
        Address { words: *addr }
    }

    #[inline(always)]
    fn narrow(address: &Address) -> [u32; 4] {
        address.words
    }

    #[inline(always)]
    fn word(addr: &[u32; 4], index: usize) -> u32 {
        addr[index & 3]
    }

    #[inline(always)]
    fn first_words(addr: &[u32; 4]) -> [u32; 4] {
        *addr
    }

    #[inline(always)]
    fn from_first_words(words: &[u32; 4]) -> [u32; 4] {
        *words
    }

    const PAIR_WORDS: usize = 4;

    #[inline(always)]
    fn pair_word(first: &[u32; 4], second: &[u32; 4], index: usize) -> u64 {
        let words = if index < 2 { first } else { second };
        let at = 2 * (index & 1);
        join(words[at], words[at + 1])
    }

    #[inline(always)]
    fn pair(words: &[u64; 4]) -> ([u32; 4], [u32; 4]) {
        let four = |first: u64, second: u64| [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32];
        (four(words[0], words[1]), four(words[2], words[3]))
    }

    type LinePad = [u64; 2];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.0.0.1", "255.255.255.255", "fd00::1", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
            assert_eq!(Address::from(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn this_machine_has_many_names() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        for text in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
            assert!(address(text).is_this_machine(), "{text}");
        }
        for text in ["127.0.0.2", "10.0.0.1", "::2", "fd00::1", "1::"] {
            assert!(!address(text).is_this_machine(), "{text}");
        }
        assert_eq!([true, false].map(Address::loopback), ["127.0.0.1", "::1"].map(address));
        for text in ["127.0.0.1", "127.255.0.9", "::1"] {
            assert!(address(text).is_loopback(), "{text}");
        }
        for text in ["0.0.0.0", "128.0.0.1", "10.0.0.127", "::", "::2", "7f00::1"] {
            assert!(!address(text).is_loopback(), "{text}");
        }
        for text in ["127.0.0.1", "::1", "169.254.0.1", "224.0.0.1", "239.1.2.3", "fe80::1", "febf::1", "ff02::1"] {
            assert!(address(text).is_unroutable(), "{text}");
        }
        for text in ["0.0.0.1", "169.253.0.1", "223.0.0.1", "240.0.0.1", "::", "::2", "fe00::1", "fec0::1", "fd00::1"] {
            assert!(!address(text).is_unroutable(), "{text}");
        }
    }

    #[test]
    fn a_pair_of_addresses_is_its_words() {
        assert_eq!(V4::pair(&[V4::pair_word(&7, &9, 0), 0, 0, 0]), (7, 9));
        let (first, second) = ([1, 2, 3, 4], [5, 6, 7, 8]);
        assert_eq!(V6::pair(&[0, 1, 2, 3].map(|index| V6::pair_word(&first, &second, index))), (first, second));
    }

    #[test]
    fn a_narrowed_address_is_what_the_packet_holds() {
        let address = Address::from(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(V4::narrow(&address).to_ne_bytes(), [192, 0, 2, 1]);
        assert_eq!(V4::widen(&V4::narrow(&address)), address);
    }
}
