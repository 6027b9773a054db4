// SPDX-License-Identifier: MIT OR Apache-2.0
//! Are all checksums of a frame right? Asked of what the programs send out, whatever the model says of it.

use lb_common::flow::protocol;

use super::{
    bytes::word,
    checksum,
    crc32c::crc32c,
    rewrite::{check_at, l4_sum},
    setup::Version,
    walk::{Headers, Part, claimed_end, walk},
};

/// Whether all checksums of a whole TCP, UDP, SCTP, ICMP or ICMPv6 packet are right. Of a fragment only the IP header can be
/// judged.
#[must_use]
pub fn is_sound(frame: &[u8]) -> bool {
    let Some((headers, end)) = take_apart(frame) else { return false };
    let is_header_sound = headers.version == Version::V6 || checksum::sum(&frame[headers.ip..headers.l4]) == 0;
    let is_body_sound = headers.part != Part::Whole
        || match headers.protocol {
            protocol::SCTP => is_crc_right(&frame[headers.l4..end]),
            protocol::UDP if headers.version == Version::V4 && word(frame, check_at(&headers)) == 0 => true,
            _ => l4_sum(frame, &headers, end).is_multiple_of(0xffff),
        };
    is_header_sound && is_body_sound
}

/// The headers of a packet, and its end, which is within the frame.
fn take_apart(frame: &[u8]) -> Option<(Headers, usize)> {
    let mut ip = 14;
    while let [0x81, 0x00] | [0x88, 0xa8] = frame.get(ip - 2..ip)? {
        ip += 4;
    }
    let version = match frame[ip - 2..ip] {
        [0x08, 0x00] => Version::V4,
        [0x86, 0xdd] => Version::V6,
        _ => return None,
    };
    if frame.len() < ip + Headers::fixed_len(version) {
        return None;
    }
    let end = claimed_end(frame, version, ip);
    let headers = walk(frame, version, ip, end.min(frame.len())).ok()?;
    let shortest = match headers.protocol {
        _ if matches!(headers.part, Part::Later(_)) => 0,
        protocol::TCP => 20,
        protocol::SCTP => 12,
        _ => 8,
    };
    (headers.l4 + shortest <= end && end <= frame.len()).then_some((headers, end))
}

fn is_crc_right(packet: &[u8]) -> bool {
    let mut zeroed = packet.to_vec();
    zeroed[8..12].fill(0);
    crc32c(&zeroed).to_le_bytes() == packet[8..12]
}
