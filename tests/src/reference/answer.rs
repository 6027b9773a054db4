// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets of our own: ICMP errors and TCP resets, sent back the way that a packet came.

use std::net::IpAddr;

use lb_common::flow::protocol;

use super::{
    bytes::{octets, set_word},
    checksum,
    packet::{Body, Packet},
    rewrite::{l4_sum, set_checksum},
    setup::Version,
    walk::{Headers, Part},
};

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Nobody is there (RFC 792; RFC 4443 section 3.1).
    PortUnreachable,
    /// The TTL or hop limit ran out here (RFC 792; RFC 4443 section 3.3).
    TimeExceeded,
    /// The way's MTU is less than the packet (RFC 1191 section 4; RFC 4443 section 3.2).
    TooBig {
        /// In bytes.
        mtu: u16,
    },
}

/// Longest quote in bytes.
const QUOTE: usize = 508;

/// The ICMP error about a packet, from `source`, or from the packet's destination where the node has no address, that quotes
/// as many whole words of it as fit.
pub(super) fn error(frame: &[u8], packet: &Packet, message: Message, source: Option<IpAddr>) -> Vec<u8> {
    let headers = &packet.headers;
    let quote_len = (frame.len() - headers.ip).min(QUOTE) / 4 * 4;
    let quote = &frame[headers.ip..headers.ip + quote_len];
    let (icmp, kind) = match (headers.version, message) {
        (Version::V4, Message::PortUnreachable) => (protocol::ICMP, [3, 3]),
        (Version::V6, Message::PortUnreachable) => (protocol::ICMPV6, [1, 4]),
        (Version::V4, Message::TimeExceeded) => (protocol::ICMP, [11, 0]),
        (Version::V6, Message::TimeExceeded) => (protocol::ICMPV6, [3, 0]),
        (Version::V4, Message::TooBig { .. }) => (protocol::ICMP, [3, 4]),
        (Version::V6, Message::TooBig { .. }) => (protocol::ICMPV6, [2, 0]),
    };
    let mtu = if let Message::TooBig { mtu } = message { mtu.to_be_bytes() } else { [0; 2] };
    let body = [&kind[..], &[0; 4], &mtu, quote].concat();
    answer(frame, packet, (source.unwrap_or(packet.dst), icmp), &body)
}

/// The RST that the receiver of a TCP segment can't send (RFC 9293 section 3.10.7.1): its sequence number is the one that the
/// segment acknowledges.
pub(super) fn reset(frame: &[u8], packet: &Packet) -> Vec<u8> {
    let segment = &frame[packet.headers.l4..];
    let (source_port, destination_port, acknowledgement) = (&segment[..2], &segment[2..4], &segment[8..12]);
    // Nothing acknowledged; a header of five words, its flags RST; window, checksum and urgent pointer.
    let rest = [0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0];
    let body = [destination_port, source_port, acknowledgement, &rest].concat();
    answer(frame, packet, (packet.dst, protocol::TCP), &body)
}

/// Whether a packet must never be answered with an ICMP error (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e): an ICMP
/// error, a later fragment, and one to all or to many, or whose source is no one host.
pub(super) fn is_unanswerable(frame: &[u8], packet: &Packet) -> bool {
    let is_to_many = frame[0] & 1 != 0 || is_many(packet.dst);
    // RFC 1122 section 3.2.1.3: all of 0.0.0.0/8 is "this host".
    let is_this_host = matches!(packet.src, IpAddr::V4(v4) if v4.octets()[0] == 0) || packet.src.is_unspecified();
    let is_from_nobody = is_many(packet.src) || is_this_host || packet.src.is_loopback();
    !matches!(packet.body, Body::Segment(_) | Body::Echo) || is_to_many || is_from_nobody
}

/// Whether an address is a multicast or the broadcast one.
fn is_many(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

/// A packet with a layer-4 header and data.
fn answer(frame: &[u8], packet: &Packet, (source, protocol): (IpAddr, u8), body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("a short answer");
    // Tags stay: it goes back by the same one.
    let ip = packet.headers.ip;
    let mut answer = [&frame[6..12], &frame[..6], &frame[12..ip]].concat();
    let version = packet.headers.version;
    let fixed_len = Headers::fixed_len(version);
    match version {
        // Don't fragment; TTL 64.
        Version::V4 => answer.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]),
        Version::V6 => answer.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]),
    }
    answer.extend([octets(source), octets(packet.src)].concat());
    match version {
        Version::V4 => {
            set_word(&mut answer, ip + 2, 20 + len);
            let check = checksum::field(checksum::sum(&answer[ip..]), 0);
            set_word(&mut answer, ip + 10, check);
        }
        Version::V6 => set_word(&mut answer, ip + 4, len),
    }
    answer.extend(body);
    let headers = Headers { version, ip, l4: ip + fixed_len, protocol, part: Part::Whole };
    let others = l4_sum(&answer, &headers, answer.len());
    let check_at = headers.l4 + if protocol == protocol::TCP { 16 } else { 2 };
    set_checksum(&mut answer, (check_at, 0), protocol, (others, 0));
    answer
}
