// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole frames put into other shapes: behind VLAN tags, with IPv4 options or IPv6 extension headers, cut into fragments.
//!
//! IP headers are etherparse's, as in [`super::build`].

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header};

/// Length of an Ethernet header without tags.
const ETHERNET: usize = 14;

/// A frame behind VLAN tags, the outermost first: Ethertype and VLAN number.
#[must_use]
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags: Vec<u8> =
        tags.iter().flat_map(|&(kind, vlan)| [kind.to_be_bytes(), vlan.to_be_bytes()].concat()).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// An IPv4 frame with options, of a multiple of four bytes.
///
/// # Panics
/// When it is not one of IPv4 without options.
#[must_use]
pub fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let (mut header, body) = Ipv4Header::from_slice(&frame[ETHERNET..]).expect("an IPv4 packet");
    header.options = Ipv4Options::try_from(options).expect("at most 40 bytes, in words");
    header.set_payload_len(body.len()).expect("a packet of sane size");
    v4(frame, header, body)
}

/// An IPv6 frame whose layer 4 stands behind these bytes, the first of which is an extension header of this kind.
///
/// # Panics
/// When it is not one of IPv6.
#[must_use]
pub fn behind_headers(frame: &[u8], kind: u8, headers: &[u8]) -> Vec<u8> {
    let (mut header, body) = Ipv6Header::from_slice(&frame[ETHERNET..]).expect("an IPv6 packet");
    header.next_header = IpNumber(kind);
    v6(frame, header, &[headers, body].concat())
}

/// A datagram cut into fragments; each but the last has so many bytes of it, a multiple of eight.
///
/// # Panics
/// When the frame is not one of IPv4 or IPv6.
#[must_use]
pub fn fragments(frame: &[u8], id: u32, len: usize) -> Vec<Vec<u8>> {
    if frame[12] == 0x08 { fragments_v4(frame, id, len) } else { fragments_v6(frame, id, len) }
}

fn fragments_v4(frame: &[u8], id: u32, len: usize) -> Vec<Vec<u8>> {
    let (header, body) = Ipv4Header::from_slice(&frame[ETHERNET..]).expect("an IPv4 packet");
    let body = &body[..usize::from(header.payload_len().expect("a whole packet"))];
    let pieces = body.chunks(len).enumerate().map(|(number, piece)| {
        let mut header = header.clone();
        header.identification = id as u16;
        header.dont_fragment = false;
        header.more_fragments = (number + 1) * len < body.len();
        header.fragment_offset = offset(number * len);
        header.set_payload_len(piece.len()).expect("a packet of sane size");
        v4(frame, header, piece)
    });
    pieces.collect()
}

fn fragments_v6(frame: &[u8], id: u32, len: usize) -> Vec<Vec<u8>> {
    let (header, body) = Ipv6Header::from_slice(&frame[ETHERNET..]).expect("an IPv6 packet");
    let body = &body[..usize::from(header.payload_length)];
    let pieces = body.chunks(len).enumerate().map(|(number, piece)| {
        let has_more = (number + 1) * len < body.len();
        let fragment = Ipv6FragmentHeader::new(header.next_header, offset(number * len), has_more, id);
        let header = Ipv6Header { next_header: IpNumber::IPV6_FRAGMENTATION_HEADER, ..header.clone() };
        v6(frame, header, &[&fragment.to_bytes(), piece].concat())
    });
    pieces.collect()
}

fn offset(bytes: usize) -> IpFragOffset {
    u16::try_from(bytes / 8).ok().and_then(|units| IpFragOffset::try_new(units).ok()).expect("an offset of sane size")
}

fn v4(frame: &[u8], mut header: Ipv4Header, body: &[u8]) -> Vec<u8> {
    header.header_checksum = header.calc_header_checksum();
    [&frame[..ETHERNET], &header.to_bytes(), body].concat()
}

fn v6(frame: &[u8], mut header: Ipv6Header, body: &[u8]) -> Vec<u8> {
    header.payload_length = u16::try_from(body.len()).expect("a packet of sane size");
    [&frame[..ETHERNET], &header.to_bytes(), body].concat()
}
