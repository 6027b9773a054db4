// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the first byte of an IP header to the first byte behind all IP headers.

use std::net::IpAddr;

use super::{
    bytes::{address, long, word},
    setup::Version,
};

/// IPv6 extension headers that are walked over (RFC 8200 section 4, RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are walked over at most, and their bytes.
const MOST_HEADERS: usize = 6;
const MOST_BYTES: usize = 256;

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The beginning.
    First(u32),
    /// What comes later.
    Later(u32),
}

/// Where things are in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The IP version.
    pub version: Version,
    /// The IP header.
    pub ip: usize,
    /// What is behind all headers.
    pub l4: usize,
    /// What that is.
    pub protocol: u8,
    /// Which part of a datagram it is.
    pub part: Part,
}

/// Why a walk ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The headers contradict themselves, or are cut off.
    Malformed,
    /// There are more of them than anyone needs.
    TooMany,
}

impl Headers {
    /// Length of the fixed IP header.
    pub(super) const fn fixed_len(version: Version) -> usize {
        match version {
            Version::V4 => 20,
            Version::V6 => 40,
        }
    }

    /// Where both addresses stand, one after the other.
    pub(super) const fn addresses_at(&self) -> std::ops::Range<usize> {
        match self.version {
            Version::V4 => self.ip + 12..self.ip + 20,
            Version::V6 => self.ip + 8..self.ip + 40,
        }
    }

    /// Where the TTL or hop limit stands.
    pub(super) const fn ttl_at(&self) -> usize {
        match self.version {
            Version::V4 => self.ip + 8,
            Version::V6 => self.ip + 7,
        }
    }

    /// Source and destination.
    pub(super) fn addresses(&self, bytes: &[u8]) -> (IpAddr, IpAddr) {
        let both = &bytes[self.addresses_at()];
        let (src, dst) = both.split_at(both.len() / 2);
        (address(src), address(dst))
    }
}

/// Where the packet ends, as its header says. An IPv6 payload length of zero is a jumbogram's: not in these frames.
#[must_use]
pub fn claimed_end(bytes: &[u8], version: Version, ip: usize) -> usize {
    match (version, version == Version::V6 && word(bytes, ip + 4) == 0) {
        (Version::V4, _) => ip + usize::from(word(bytes, ip + 2)),
        (Version::V6, false) => ip + 40 + usize::from(word(bytes, ip + 4)),
        (Version::V6, true) => ip,
    }
}

/// Walks over the headers of a packet whose fixed header is there, and which ends at `end`.
///
/// # Errors
/// Where they can't be walked over.
pub fn walk(bytes: &[u8], version: Version, ip: usize, end: usize) -> Result<Headers, Fault> {
    match version {
        Version::V4 => walk_v4(bytes, ip),
        Version::V6 => walk_v6(bytes, ip, end),
    }
}

/// RFC 791 section 3.1. Options are no more than a longer header.
fn walk_v4(bytes: &[u8], ip: usize) -> Result<Headers, Fault> {
    let (version, words) = (bytes[ip] >> 4, usize::from(bytes[ip] & 0xf));
    if version != 4 || words < 5 {
        return Err(Fault::Malformed);
    }
    let id = u32::from(word(bytes, ip + 4));
    let part = part(bytes[ip + 6] & 0x20 != 0, word(bytes, ip + 6) & 0x1fff, id);
    Ok(Headers { version: Version::V4, ip, l4: ip + 4 * words, protocol: bytes[ip + 9], part })
}

fn walk_v6(bytes: &[u8], ip: usize, end: usize) -> Result<Headers, Fault> {
    if bytes[ip] >> 4 != 6 {
        return Err(Fault::Malformed);
    }
    let first = ip + 40;
    let mut headers = Headers { version: Version::V6, ip, l4: first, protocol: bytes[ip + 6], part: Part::Whole };
    let (mut count, mut has_fragment_header) = (0, false);
    while let HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS = headers.protocol {
        count += 1;
        if count > MOST_HEADERS {
            return Err(Fault::TooMany);
        }
        let at = headers.l4;
        // No header is shorter than this.
        if at + 8 > end {
            return Err(Fault::Malformed);
        }
        let units = usize::from(bytes[at + 1]);
        let len = match headers.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => 4 * (units + 2),
            _ => 8 * (units + 1),
        };
        if at + len > first + MOST_BYTES {
            return Err(Fault::TooMany);
        }
        if at + len > end {
            return Err(Fault::Malformed);
        }
        if headers.protocol == FRAGMENT {
            if has_fragment_header {
                return Err(Fault::Malformed);
            }
            has_fragment_header = true;
            let offset_and_more = word(bytes, at + 2);
            headers.part = part(offset_and_more & 1 != 0, offset_and_more >> 3, long(bytes, at + 4));
        }
        headers.protocol = bytes[at];
        headers.l4 = at + len;
        // What follows is the middle of something.
        if let Part::Later(_) = headers.part {
            break;
        }
    }
    Ok(headers)
}

/// A fragment that is all of its datagram is none (RFC 6946).
const fn part(has_more: bool, offset: u16, id: u32) -> Part {
    match (has_more, offset) {
        (false, 0) => Part::Whole,
        (true, 0) => Part::First(id),
        _ => Part::Later(id),
    }
}
