// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames: taken apart, and rewritten.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::{flow::protocol, verdict::Reason};

use super::{checksum, flow::Tuple, setup::Version, verdict::End};

const ETHERNET: usize = 14;

/// What decisions need of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub key: Tuple,
    pub ttl: u8,
    /// TCP's flags; 0 for UDP.
    pub flags: u8,
}

/// IP version by Ethertype.
pub(super) fn version(frame: &[u8]) -> Option<Version> {
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => Some(Version::V4),
        [0x86, 0xdd] => Some(Version::V6),
        _ => None,
    }
}

/// Where a header starts, and where the packet ends.
struct Layout {
    version: Version,
    l4: usize,
    end: usize,
}

impl Layout {
    /// Of a frame whose fixed IP header is whole.
    fn of(frame: &[u8], version: Version) -> Self {
        let (l4, len) = match version {
            Version::V4 => (ETHERNET + 20, usize::from(word(frame, ETHERNET + 2))),
            Version::V6 => (ETHERNET + 40, usize::from(word(frame, ETHERNET + 4)) + 40),
        };
        Self { version, l4, end: (ETHERNET + len).min(frame.len()) }
    }

    fn protocol(&self, frame: &[u8]) -> u8 {
        frame[ETHERNET + if self.version == Version::V4 { 9 } else { 6 }]
    }

    fn ttl_at(&self) -> usize {
        ETHERNET + if self.version == Version::V4 { 8 } else { 7 }
    }

    /// Where both addresses stand, one after the other.
    fn addresses_at(&self) -> std::ops::Range<usize> {
        ETHERNET + if self.version == Version::V4 { 12 } else { 8 }..self.l4
    }

    /// Where the layer-4 checksum stands.
    fn check_at(&self, protocol: u8) -> usize {
        self.l4
            + match protocol {
                protocol::TCP => 16,
                protocol::UDP => 6,
                _ => 2,
            }
    }

    /// The sum of layer 4 with its pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). ICMPv4 has none.
    fn l4_sum(&self, frame: &[u8]) -> u64 {
        let protocol = self.protocol(frame);
        let body = checksum::sum(&frame[self.l4..self.end]);
        if protocol == protocol::ICMP {
            return body;
        }
        body + checksum::sum(&frame[self.addresses_at()]) + u64::from(protocol) + (self.end - self.l4) as u64
    }
}

/// Takes a packet apart whose addresses, source and destination, are of concern.
pub(super) fn parse(frame: &[u8], concerns: impl Fn(IpAddr, IpAddr) -> bool) -> Result<Packet, End> {
    let version = version(frame).ok_or(End::NotOurs)?;
    // All of the IP header and a UDP header, or nothing can be said about it.
    let shortest = ETHERNET + if version == Version::V4 { 20 } else { 40 } + 8;
    if frame.len() < shortest {
        return Err(End::NotOurs);
    }
    let layout = Layout::of(frame, version);
    let (src, dst) = addresses(frame, &layout);
    if !concerns(src, dst) {
        return Err(End::NotOurs);
    }
    let claimed = match version {
        Version::V4 => check_v4(frame)?,
        Version::V6 => check_v6(frame)?,
    };
    let protocol = layout.protocol(frame);
    let header = match protocol {
        protocol::TCP => 20,
        protocol::UDP => 8,
        _ => return Err(End::NotOurs),
    };
    let is_whole = claimed >= layout.l4 - ETHERNET + header && ETHERNET + claimed <= frame.len();
    let l4 = &frame[layout.l4..];
    let is_consistent = is_whole && if protocol == protocol::TCP { l4[12] >> 4 >= 5 } else { word(l4, 4) >= 8 };
    if !is_consistent {
        return Err(End::Pass(Reason::Malformed));
    }
    let key = Tuple { src: SocketAddr::new(src, word(l4, 0)), dst: SocketAddr::new(dst, word(l4, 2)), protocol };
    Ok(Packet { key, ttl: frame[layout.ttl_at()], flags: if protocol == protocol::TCP { l4[13] } else { 0 } })
}

/// Refuses options and fragments (RFC 791 section 3.1); gives the length of the packet by its header.
fn check_v4(frame: &[u8]) -> Result<usize, End> {
    let (version, words) = (frame[ETHERNET] >> 4, frame[ETHERNET] & 0xf);
    if version != 4 || words < 5 {
        return Err(End::Pass(Reason::Malformed));
    }
    if words > 5 {
        return Err(End::Pass(Reason::HeaderOptions));
    }
    let (more, offset) = (frame[ETHERNET + 6] & 0x20 != 0, word(frame, ETHERNET + 6) & 0x1fff);
    if more || offset != 0 {
        return Err(End::Pass(Reason::Fragment));
    }
    Ok(usize::from(word(frame, ETHERNET + 2)))
}

/// Refuses extension headers (RFC 8200 section 4); gives the length of the packet by its header.
fn check_v6(frame: &[u8]) -> Result<usize, End> {
    if frame[ETHERNET] >> 4 != 6 {
        return Err(End::Pass(Reason::Malformed));
    }
    match frame[ETHERNET + 6] {
        44 => Err(End::Pass(Reason::Fragment)),
        0 | 43 | 51 | 60 => Err(End::Pass(Reason::HeaderOptions)),
        // A payload length of zero is a jumbogram's: not in these frames.
        _ => Ok(match word(frame, ETHERNET + 4) {
            0 => 0,
            payload => usize::from(payload) + 40,
        }),
    }
}

fn addresses(frame: &[u8], layout: &Layout) -> (IpAddr, IpAddr) {
    let both = &frame[layout.addresses_at()];
    let (src, dst) = both.split_at(both.len() / 2);
    (address(src), address(dst))
}

fn address(bytes: &[u8]) -> IpAddr {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return v4.into();
    }
    let v6: [u8; 16] = bytes.try_into().expect("4 or 16 bytes");
    Ipv6Addr::from(v6).into()
}

/// What to change of a packet.
pub(super) struct Rewrite {
    /// Addresses and ports.
    pub to: Tuple,
    /// Take one from the TTL.
    pub forwards: bool,
    /// Destination and source Ethernet address.
    pub ethernet: Option<[u8; 12]>,
}

/// Rewrites a packet that was parsed. A wrong checksum stays as wrong as it was.
pub(super) fn rewrite(frame: &mut [u8], rewrite: &Rewrite) {
    let version = version(frame).expect("a parsed frame");
    let layout = Layout::of(frame, version);
    let (ip_sum, l4_sum) = (checksum::sum(&frame[ETHERNET..layout.l4]), layout.l4_sum(frame));
    if let Some(ethernet) = rewrite.ethernet {
        frame[..12].copy_from_slice(&ethernet);
    }
    if rewrite.forwards {
        frame[layout.ttl_at()] -= 1;
    }
    let both = [rewrite.to.src, rewrite.to.dst].map(|end| match end.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    frame[layout.addresses_at()].copy_from_slice(&both.concat());
    set_word(frame, layout.l4, rewrite.to.src.port());
    set_word(frame, layout.l4 + 2, rewrite.to.dst.port());
    if version == Version::V4 {
        set_word(frame, ETHERNET + 10, 0);
        let check = checksum::field(checksum::sum(&frame[ETHERNET..layout.l4]), ip_sum);
        set_word(frame, ETHERNET + 10, check);
    }
    let protocol = rewrite.to.protocol;
    let check_at = layout.check_at(protocol);
    let is_udp = protocol == protocol::UDP;
    // RFC 768: zero says that there is no checksum; one that comes out as zero is written the other way.
    if is_udp && word(frame, check_at) == 0 {
        return;
    }
    set_word(frame, check_at, 0);
    let check = checksum::field(layout.l4_sum(frame), l4_sum);
    set_word(frame, check_at, if is_udp && check == 0 { 0xffff } else { check });
}

/// Turns a rejected packet into an ICMP port-unreachable (RFC 792; RFC 4443 section 3.1) from `source`, or from the
/// Service's address where the node has none, that quotes both headers.
pub(super) fn port_unreachable(frame: &[u8], source: Option<IpAddr>) -> Vec<u8> {
    let version = version(frame).expect("a parsed frame");
    let layout = Layout::of(frame, version);
    let l4_header = if layout.protocol(frame) == protocol::TCP { 20 } else { 8 };
    let quote = &frame[ETHERNET..layout.l4 + l4_header];
    let (client, service) = addresses(frame, &layout);
    let (icmp, kind) = match version {
        Version::V4 => (protocol::ICMP, [3, 3]),
        Version::V6 => (protocol::ICMPV6, [1, 4]),
    };
    let body = [&kind[..], &[0; 6], quote].concat();
    answer(frame, (source.unwrap_or(service), client), icmp, &body)
}

/// Turns a TCP segment into the RST that its receiver can't send (RFC 9293 section 3.10.7.1): its sequence number is the one
/// that the segment acknowledges.
pub(super) fn reset(frame: &[u8]) -> Vec<u8> {
    let layout = Layout::of(frame, version(frame).expect("a parsed frame"));
    let (client, service) = addresses(frame, &layout);
    let segment = &frame[layout.l4..];
    let (source_port, destination_port, acknowledgement) = (&segment[..2], &segment[2..4], &segment[8..12]);
    // Nothing acknowledged; a header of five words, its flags RST; window, checksum and urgent pointer.
    let rest = [0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0];
    let body = [destination_port, source_port, acknowledgement, &rest].concat();
    answer(frame, (service, client), protocol::TCP, &body)
}

/// A packet of our own with a layer-4 header and data, sent back the way that a frame came.
fn answer(frame: &[u8], (source, client): (IpAddr, IpAddr), protocol: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("a short answer");
    let mut answer = [&frame[6..12], &frame[..6], &frame[12..ETHERNET]].concat();
    match (source, client) {
        (IpAddr::V4(source), IpAddr::V4(client)) => {
            // Don't fragment; TTL 64.
            answer.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
            answer.extend(source.octets().into_iter().chain(client.octets()));
            set_word(&mut answer, ETHERNET + 2, 20 + len);
            let check = checksum::field(checksum::sum(&answer[ETHERNET..]), 0);
            set_word(&mut answer, ETHERNET + 10, check);
        }
        (IpAddr::V6(source), IpAddr::V6(client)) => {
            answer.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]);
            answer.extend(source.octets().into_iter().chain(client.octets()));
            set_word(&mut answer, ETHERNET + 4, len);
        }
        _ => unreachable!("a frame is of one IP version"),
    }
    answer.extend(body);
    let layout = Layout::of(&answer, version(&answer).expect("one of ours"));
    let check = checksum::field(layout.l4_sum(&answer), 0);
    set_word(&mut answer, layout.check_at(protocol), check);
    answer
}

/// Whether all checksums of a whole TCP, UDP, ICMP or ICMPv6 packet without options are right.
#[must_use]
pub fn is_sound(frame: &[u8]) -> bool {
    let Some(version) = version(frame) else { return false };
    let layout = Layout::of(frame, version);
    let is_header_sound = version == Version::V6 || checksum::sum(&frame[ETHERNET..layout.l4]) == 0;
    let protocol = layout.protocol(frame);
    let is_unchecked =
        version == Version::V4 && protocol == protocol::UDP && word(frame, layout.check_at(protocol)) == 0;
    is_header_sound && (is_unchecked || layout.l4_sum(frame).is_multiple_of(0xffff))
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}
