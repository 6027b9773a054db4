// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors: the packet that one is about, and both put into other words for whoever sent it.

use std::net::IpAddr;

use lb_common::flow::protocol;

use super::{
    bytes::{octets, set_word, word},
    checksum,
    flow::{Entry, Tuple},
    packet::{Packet, tuple},
    rewrite::set_checksum,
    setup::Version,
    walk::{Headers, Part, walk},
};

/// Length of the header of an ICMP error.
const ICMP: usize = 8;

/// The packet that an ICMP error is about, as far as it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quote {
    headers: Headers,
    /// Where it went.
    pub key: Tuple,
}

/// The packet that an ICMP message is about which fills `frame` from its layer 4 to `end`: if it is an error, and about a
/// packet whose ports can be seen.
pub(super) fn find(frame: &[u8], outer: &Headers, end: usize) -> Option<Quote> {
    let start = outer.l4 + ICMP;
    if start + Headers::fixed_len(outer.version) > end {
        return None;
    }
    let is_error = match (outer.version, outer.protocol) {
        (Version::V4, protocol::ICMP) => matches!(frame[outer.l4], 3 | 11 | 12),
        (Version::V6, protocol::ICMPV6) => matches!(frame[outer.l4], 1..=4),
        _ => false,
    };
    let headers = walk(frame, outer.version, start, end).ok()?;
    let has_ports = matches!(headers.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
        && !matches!(headers.part, Part::Later(_))
        && headers.l4 + 4 <= end;
    (is_error && has_ports).then(|| Quote { headers, key: tuple(frame, &headers) })
}

impl Quote {
    /// The packets that the error may stop: those that come back from where the quoted one went.
    pub(super) const fn answers(&self) -> Tuple {
        self.key.reversed()
    }

    /// Where the error comes from, for those who know the flow by its other name: the host that the packet went to is
    /// known by that; a router under its own address, but for a backend that knows nobody but this node, and for what arrives by the
    /// net's device: nobody else is behind it.
    pub(super) fn source(&self, packet: &Packet, entry: &Entry) -> IpAddr {
        let is_from_the_end = packet.src == self.key.dst.ip();
        let is_to_backend = entry.is_snat && !entry.is_reply;
        if is_from_the_end || is_to_backend || entry.is_handed_to_net() { entry.to.src.ip() } else { packet.src }
    }

    /// Turns the quoted packet into the one that was sent by whom the error goes to, and corrects its checksums as far as
    /// they are there. What was wrong stays wrong.
    pub(super) fn rewrite(&self, frame: &mut [u8], end: usize, entry: &Entry) {
        let sent = entry.to.reversed();
        let Headers { version, ip, l4, protocol, .. } = self.headers;
        let ip_sum = checksum::sum(&frame[ip..l4]);
        let names =
            |frame: &[u8]| checksum::sum(&frame[self.headers.addresses_at()]) + checksum::sum(&frame[l4..l4 + 4]);
        let before = names(frame);
        frame[self.headers.addresses_at()].copy_from_slice(&[octets(sent.src.ip()), octets(sent.dst.ip())].concat());
        set_word(frame, l4, sent.src.port());
        set_word(frame, l4 + 2, sent.dst.port());
        if version == Version::V4 {
            set_word(frame, ip + 10, 0);
            let check = checksum::field(checksum::sum(&frame[ip..l4]), ip_sum);
            set_word(frame, ip + 10, check);
        }
        let check_at = match protocol {
            protocol::TCP => l4 + 16,
            protocol::UDP => l4 + 6,
            // SCTP's is over bytes that are not all there.
            _ => return,
        };
        if check_at + 2 <= end {
            let check = word(frame, check_at);
            let total = before + u64::from(check);
            set_checksum(frame, (check_at, check), protocol, (names(frame), total));
        }
    }
}
