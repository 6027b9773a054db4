// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame taken apart, as far as decisions need it.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    flow::{protocol, tcp_flags},
    verdict::Reason,
};

use super::{
    bytes::word,
    flow::Tuple,
    life::Signs,
    quote::{self, Quote},
    setup::{Setup, Version},
    verdict::{Door, End},
    walk::{Fault, Headers, Part, claimed_end, walk},
};

/// Length of an Ethernet header without tags.
pub(super) const ETHERNET: usize = 14;
/// Chunk types of SCTP (RFC 9260 section 3.2).
mod chunk {
    pub const INIT: u8 = 1;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// A packet that concerns us.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub headers: Headers,
    /// Where it ends; there may be padding behind it.
    pub end: usize,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub body: Body,
}

impl Packet {
    /// Whether it came in behind VLAN tags. TC, unlike XDP, has a device for each VLAN.
    pub(super) const fn has_tags(&self) -> bool {
        self.headers.ip > ETHERNET
    }
}

/// What a packet is to us.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// One with ports.
    Segment(Segment),
    /// A later fragment; the identification of its datagram.
    Later(u32),
    /// An ICMP error about a packet.
    Error(Quote),
    /// An echo request, or the beginning of one.
    Echo,
}

/// A packet with ports: all of a datagram, or its first fragment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub key: Tuple,
    pub signs: Signs,
    /// The identification of the datagram whose first fragment it is.
    pub fragment: Option<u32>,
    /// It is no Service's, but a pod's to a backend itself.
    pub is_direct: bool,
}

/// IP version, and where its header stands. XDP sees VLAN tags in the frame, and looks behind one or two.
fn link(frame: &[u8], door: Door) -> Option<(Version, usize)> {
    let mut ip = ETHERNET;
    for _ in 0..=2 {
        match frame.get(ip - 2..ip)? {
            [0x08, 0x00] => return Some((Version::V4, ip)),
            [0x86, 0xdd] => return Some((Version::V6, ip)),
            [0x81, 0x00] | [0x88, 0xa8] if door == Door::Xdp => ip += 4,
            _ => return None,
        }
    }
    None
}

/// Takes a packet apart: one to an address that concerns us where it arrives, from one where it leaves; and, where it has ports, with a
/// port that does. Of an ICMP error that leaves, which any router may have sent, the packet that it is about must have gone to such an
/// address.
pub(super) fn parse(frame: &[u8], door: Door, ifindex: u32, setup: &Setup) -> Result<Packet, End> {
    match parse_for_service(frame, door, setup) {
        Err(End::NotOurs) if door == Door::Ingress && setup.is_pods(ifindex) => parse_direct(frame, setup),
        parsed => parsed,
    }
}

/// A packet of a pod that is none of a Service, but may collide with those of a flow: it goes to a backend, as a whole.
fn parse_direct(frame: &[u8], setup: &Setup) -> Result<Packet, End> {
    let (version, ip) = link(frame, Door::Ingress).ok_or(End::NotOurs)?;
    if frame.len() < ip + Headers::fixed_len(version) {
        return Err(End::NotOurs);
    }
    let fixed = Headers { version, ip, l4: ip, protocol: 0, part: Part::Whole };
    let (src, dst) = fixed.addresses(frame);
    let (end, ttl) = (claimed_end(frame, version, ip), frame[fixed.ttl_at()]);
    match parse_body(frame, fixed, end, |key| setup.filters_out_port(key.dst, key.protocol)) {
        Ok((headers, Body::Segment(segment)))
            if setup.filters_out(dst) && segment.fragment.is_none() && segment.key.protocol != protocol::SCTP =>
        {
            let body = Body::Segment(Segment { is_direct: true, ..segment });
            Ok(Packet { headers, end, src, dst, ttl, body })
        }
        _ => Err(End::NotOurs),
    }
}

/// Where a packet comes from, and where it goes.
pub(super) fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (version, ip) = link(frame, Door::NetArrival)?;
    let is_whole = frame.len() >= ip + Headers::fixed_len(version);
    is_whole.then(|| Headers { version, ip, l4: ip, protocol: 0, part: Part::Whole }.addresses(frame))
}

fn parse_for_service(frame: &[u8], door: Door, setup: &Setup) -> Result<Packet, End> {
    let (version, ip) = link(frame, door).ok_or(End::NotOurs)?;
    if frame.len() < ip + Headers::fixed_len(version) {
        return Err(End::NotOurs);
    }
    let fixed = Headers { version, ip, l4: ip, protocol: 0, part: Part::Whole };
    let (src, dst) = fixed.addresses(frame);
    let end = claimed_end(frame, version, ip);
    // Replies to the net, by any port.
    let is_for_net = door == Door::Net && setup.is_net_source(dst);
    let concerns = is_for_net || if door == Door::Egress { setup.filters_out(src) } else { setup.filters_in(dst) };
    let ttl = frame[fixed.ttl_at()];
    let concerns_port = |key: Tuple| match door {
        Door::Egress => setup.filters_out_port(key.src, key.protocol),
        _ => is_for_net || setup.filters_in_port(key.dst, key.protocol),
    };
    let parsed = parse_body(frame, fixed, end, concerns_port).map(|(headers, body)| Packet {
        headers,
        end,
        src,
        dst,
        ttl,
        body,
    });
    match parsed {
        Ok(Packet { body: Body::Error(Quote { key, .. }), .. }) if door == Door::Egress => {
            if setup.filters_out(key.dst.ip()) { parsed } else { Err(End::NotOurs) }
        }
        _ if !concerns => Err(End::NotOurs),
        Err(End::Pass(Reason::TooManyHeaders)) if setup.guarded.contains(&dst) => {
            Err(End::Drop(Reason::TooManyHeaders))
        }
        parsed => parsed,
    }
}

fn parse_body(
    frame: &[u8],
    fixed: Headers,
    end: usize,
    concerns_port: impl Fn(Tuple) -> bool,
) -> Result<(Headers, Body), End> {
    let (version, ip) = (fixed.version, fixed.ip);
    // So short that it is not even a damaged packet, unless it is the last bytes of one.
    let is_stub = frame.len() < ip + Headers::fixed_len(version) + 8;
    let headers = walk(frame, version, ip, end.min(frame.len())).map_err(|fault| match fault {
        _ if is_stub => End::NotOurs,
        Fault::Malformed => End::Pass(Reason::Malformed),
        Fault::TooMany => End::Pass(Reason::TooManyHeaders),
    })?;
    let is_within = |len: usize| headers.l4 + len <= end && end <= frame.len();
    let body = match (headers.protocol, headers.part) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, Part::Later(id)) if is_within(0) => Body::Later(id),
        _ if is_stub => return Err(End::NotOurs),
        (protocol::TCP | protocol::UDP | protocol::SCTP, Part::Whole | Part::First(_))
            if headers.l4 + 4 <= frame.len() && !concerns_port(tuple(frame, &headers)) =>
        {
            return Err(End::NotOurs);
        }
        (protocol::TCP, _) if is_within(20) && frame[headers.l4 + 12] >> 4 >= 5 => {
            Body::Segment(segment(frame, &headers, tcp_signs(&frame[headers.l4..])))
        }
        (protocol::UDP, _) if is_within(8) && word(frame, headers.l4 + 4) >= 8 => {
            Body::Segment(segment(frame, &headers, Signs::default()))
        }
        (protocol::SCTP, _) if is_within(12) => {
            let flags = sctp_flags(&frame[headers.l4 + 12..end]);
            Body::Segment(segment(frame, &headers, Signs { flags, ..Signs::default() }))
        }
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => return Err(End::Pass(Reason::Malformed)),
        (_, Part::Whole | Part::First(_)) if is_within(8) && is_echo(frame, &headers) => Body::Echo,
        (_, Part::Whole) if end <= frame.len() => Body::Error(quote::find(frame, &headers, end).ok_or(End::NotOurs)?),
        _ => return Err(End::NotOurs),
    };
    Ok((headers, body))
}

/// Whether it is ICMP's question whether somebody is there.
fn is_echo(frame: &[u8], headers: &Headers) -> bool {
    match headers.version {
        Version::V4 => headers.protocol == protocol::ICMP && frame[headers.l4] == 8,
        Version::V6 => headers.protocol == protocol::ICMPV6 && frame[headers.l4] == 128,
    }
}

fn segment(frame: &[u8], headers: &Headers, signs: Signs) -> Segment {
    let fragment = if let Part::First(id) = headers.part { Some(id) } else { None };
    Segment { key: tuple(frame, headers), signs, fragment, is_direct: false }
}

/// What a TCP header shows. A SYN takes the place of a byte (RFC 9293 section 3.4).
fn tcp_signs(tcp: &[u8]) -> Signs {
    let number = |at: usize| u32::from(word(tcp, at)) << 16 | u32::from(word(tcp, at + 2));
    let flags = tcp[13];
    let syn = u32::from(flags & tcp_flags::SYN != 0);
    Signs { flags, sequence: number(4).wrapping_add(syn), acknowledgement: number(8) }
}

/// Addresses and ports of a packet.
pub(super) fn tuple(bytes: &[u8], headers: &Headers) -> Tuple {
    let (src, dst) = headers.addresses(bytes);
    Tuple {
        src: SocketAddr::new(src, word(bytes, headers.l4)),
        dst: SocketAddr::new(dst, word(bytes, headers.l4 + 2)),
        protocol: headers.protocol,
    }
}

/// What TCP would say, by the type of the first chunk.
fn sctp_flags(chunks: &[u8]) -> u8 {
    match chunks.first() {
        Some(&chunk::INIT) => tcp_flags::SYN,
        Some(&(chunk::ABORT | chunk::SHUTDOWN_COMPLETE)) => tcp_flags::RST,
        _ => tcp_flags::ACK,
    }
}
