// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets rewritten. A wrong checksum stays as wrong as it was.

use std::ops::Range;

use lb_common::flow::protocol;

use super::{
    bytes::{octets, set_word, word},
    checksum,
    crc32c::crc32c,
    flow::Entry,
    packet::{Body, Packet},
    setup::Version,
    verdict::Door,
    walk::Headers,
};

/// What to change of a packet.
pub(super) struct Rewrite<'a> {
    /// The instruction.
    pub entry: &'a Entry,
    /// Take one from the TTL.
    pub forwards: bool,
    /// Destination and source Ethernet address.
    pub ethernet: Option<[u8; 12]>,
    /// Where the packet is.
    pub door: Door,
}

/// Rewrites a packet by its flow's instruction.
pub(super) fn rewrite(frame: &mut [u8], packet: &Packet, rewrite: &Rewrite<'_>) {
    let Packet { headers, end, .. } = packet;
    let entry = rewrite.entry;
    if let Some(ethernet) = rewrite.ethernet {
        frame[..12].copy_from_slice(&ethernet);
    }
    let (source, destination) = match &packet.body {
        Body::Error(quote) => (quote.source(packet, entry), entry.to.dst.ip()),
        _ => (entry.to.src.ip(), entry.to.dst.ip()),
    };
    let (before, ip_sum) = (frame.to_vec(), checksum::sum(&frame[headers.ip..headers.l4]));
    if rewrite.forwards {
        frame[headers.ttl_at()] -= 1;
    }
    frame[headers.addresses_at()].copy_from_slice(&[octets(source), octets(destination)].concat());
    if headers.version == Version::V4 {
        set_word(frame, headers.ip + 10, 0);
        let check = checksum::field(checksum::sum(&frame[headers.ip..headers.l4]), ip_sum);
        set_word(frame, headers.ip + 10, check);
    }
    match &packet.body {
        // Ports and checksum of all fragments stand in the first.
        Body::Later(_) => return,
        Body::Segment(_) => {
            set_word(frame, headers.l4, entry.to.src.port());
            set_word(frame, headers.l4 + 2, entry.to.dst.port());
        }
        Body::Error(quote) => quote.rewrite(frame, *end, entry),
        Body::Echo => unreachable!("an echo request has no flow"),
    }
    if headers.protocol == protocol::SCTP {
        correct_crc(&before, frame, headers.l4..*end, rewrite.door);
    } else {
        let check_at = check_at(headers);
        let total = l4_sum(&before, headers, *end);
        set_word(frame, check_at, 0);
        let others = l4_sum(frame, headers, *end);
        let old = word(&before, check_at);
        set_checksum(frame, (check_at, old), headers.protocol, (others, total));
    }
}

/// Where the layer-4 checksum stands.
pub(super) const fn check_at(headers: &Headers) -> usize {
    headers.l4
        + match headers.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => 2,
        }
}

/// The sum of layer 4 with its pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). ICMPv4 has none.
pub(super) fn l4_sum(frame: &[u8], headers: &Headers, end: usize) -> u64 {
    let body = checksum::sum(&frame[headers.l4..end]);
    if headers.protocol == protocol::ICMP {
        return body;
    }
    body + checksum::sum(&frame[headers.addresses_at()]) + u64::from(headers.protocol) + (end - headers.l4) as u64
}

/// Writes the checksum field with which the sum of all `others` comes to `total`.
///
/// RFC 768: zero says that there is no checksum; one that comes out as zero is written the other way.
pub(super) fn set_checksum(frame: &mut [u8], (at, old): (usize, u16), protocol: u8, (others, total): (u64, u64)) {
    let check = checksum::field(others, total);
    let is_udp = protocol == protocol::UDP;
    let check = match (is_udp, old, check) {
        (true, 0, _) => 0,
        (true, _, 0) => 0xffff,
        _ => check,
    };
    set_word(frame, at, check);
}

/// Corrects the checksum of the SCTP packet that `frame` has at `packet`. A field of zero that has come to TC is filled in
/// by the device that the packet leaves by.
///
/// The checksum is the CRC of the packet with a field of zero. It is linear: a field that was off by some bits stays off by
/// those bits.
fn correct_crc(before: &[u8], frame: &mut [u8], packet: Range<usize>, door: Door) {
    let field = packet.start + 8..packet.start + 12;
    if door != Door::Xdp && before[field.clone()] == [0; 4] {
        return;
    }
    let [was, is] = [before, &*frame].map(|frame| {
        let mut packet = frame[packet.clone()].to_vec();
        packet[8..12].fill(0);
        crc32c(&packet).to_le_bytes()
    });
    for (at, (was, is)) in field.zip(was.into_iter().zip(is)) {
        frame[at] ^= was ^ is;
    }
}
