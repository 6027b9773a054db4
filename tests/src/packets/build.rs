// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames to test with, made by etherparse: an implementation of headers and checksums that is neither ours nor the model's.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ethernet2Header, IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep, TcpHeader};
use lb_common::flow::{protocol, tcp_flags};

use crate::reference::crc32c;

/// Destination and source of frames whose Ethernet addresses don't matter.
pub const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 0xee, 2, 0, 0, 0, 0, 0xff];

/// The sequence number of segments where nothing else is said.
pub const SEQUENCE: u32 = 0x0102_0304;

/// Types of SCTP's chunks (RFC 9260 section 3.2).
pub mod chunk {
    /// User data.
    pub const DATA: u8 = 0;
    /// The first of an association.
    pub const INIT: u8 = 1;
    /// Its answer.
    pub const INIT_ACK: u8 = 2;
    /// The association is over at once.
    pub const ABORT: u8 = 6;
    /// The last of an association.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// A TCP, UDP or SCTP packet to be; [`Segment::build`] makes the frame.
#[derive(Clone, Debug)]
pub struct Segment {
    src: SocketAddr,
    dst: SocketAddr,
    protocol: u8,
    /// TCP's flags; of SCTP the type of the first chunk.
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    ttl: u8,
    ethernet: [u8; 12],
    payload: Vec<u8>,
}

impl Segment {
    /// A TCP segment with [`tcp_flags`]. All sequence numbers are [`SEQUENCE`], and are acknowledged.
    #[must_use]
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let (protocol, ttl, ethernet, payload) = (protocol::TCP, 64, ETHERNET, Vec::new());
        let acknowledgement = if flags & tcp_flags::ACK == 0 { 0 } else { SEQUENCE + 1 };
        Self { src, dst, protocol, flags, sequence: SEQUENCE, acknowledgement, ttl, ethernet, payload }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self { protocol: protocol::UDP, payload: b"datagram".to_vec(), ..Self::tcp(src, dst, 0) }
    }

    /// An SCTP packet with one [`chunk`].
    #[must_use]
    pub fn sctp(src: SocketAddr, dst: SocketAddr, chunk: u8) -> Self {
        Self { protocol: protocol::SCTP, flags: chunk, ..Self::tcp(src, dst, 0) }
    }

    /// With another TTL or hop limit than 64.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With other Ethernet addresses, destination first, than [`ETHERNET`].
    #[must_use]
    pub fn ethernet(self, ethernet: [u8; 12]) -> Self {
        Self { ethernet, ..self }
    }

    /// With a sequence number.
    #[must_use]
    pub fn sequence(self, sequence: u32) -> Self {
        Self { sequence, ..self }
    }

    /// With an acknowledgement number.
    #[must_use]
    pub fn acknowledging(self, acknowledgement: u32) -> Self {
        Self { acknowledgement, ..self }
    }

    /// With a payload.
    #[must_use]
    pub fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// From other addresses and ports.
    #[must_use]
    pub fn between(self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self { src, dst, ..self }
    }

    /// The frame, its checksums right.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let ip = ip(self.src.ip(), self.dst.ip(), self.ttl, ethernet(self.ethernet));
        let mut frame = Vec::new();
        let written = match self.protocol {
            protocol::TCP => ip.tcp_header(self.tcp_header()).write(&mut frame, &self.payload),
            protocol::UDP => ip.udp(self.src.port(), self.dst.port()).write(&mut frame, &self.payload),
            other => ip.write(&mut frame, IpNumber(other), &self.sctp_packet()),
        };
        written.expect("a packet of sane size");
        frame
    }

    /// Ports, verification tag, checksum; the chunk's type, flags and length, then the payload, padded to words.
    fn sctp_packet(&self) -> Vec<u8> {
        let len = u16::try_from(4 + self.payload.len()).expect("a packet of sane size");
        let mut packet = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        packet.extend([0x5e, 0xed, 0xca, 0xfe, 0, 0, 0, 0, self.flags, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend(&self.payload);
        packet.resize(packet.len().next_multiple_of(4), 0);
        let check = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&check);
        packet
    }

    fn tcp_header(&self) -> TcpHeader {
        let has = |flag| self.flags & flag != 0;
        let mut header = TcpHeader::new(self.src.port(), self.dst.port(), self.sequence, 0x7210);
        header.acknowledgment_number = self.acknowledgement;
        header.syn = has(tcp_flags::SYN);
        header.ack = has(tcp_flags::ACK);
        header.fin = has(tcp_flags::FIN);
        header.rst = has(tcp_flags::RST);
        header
    }
}

/// The ICMP port-unreachable with which `source` answers a frame, sent back the way that it came.
#[must_use]
pub fn port_unreachable(frame: &[u8], source: IpAddr, client: IpAddr) -> Vec<u8> {
    icmp_error(frame, source, client, if source.is_ipv4() { (3, 3) } else { (1, 4) }, 0)
}

/// The ICMP error of a type and code, with the second word of its header, with which `source` answers a frame, sent back the way
/// that it came. It quotes up to 508 bytes, whole words.
#[must_use]
pub fn icmp_error(frame: &[u8], source: IpAddr, destination: IpAddr, kind: (u8, u8), word: u32) -> Vec<u8> {
    let quote = &frame[14..14 + (frame.len() - 14).min(508) / 4 * 4];
    Error { source, destination, kind, word: word.to_be_bytes(), ttl: 64, ethernet: turned(frame) }.build(quote)
}

/// An ICMP error to be.
#[derive(Clone, Copy, Debug)]
pub struct Error {
    /// Who sends it.
    pub source: IpAddr,
    /// Who shall read it.
    pub destination: IpAddr,
    /// Type and code.
    pub kind: (u8, u8),
    /// The second four bytes of the ICMP header: an MTU, a pointer, or nothing.
    pub word: [u8; 4],
    /// TTL or hop limit.
    pub ttl: u8,
    /// Ethernet addresses, destination first.
    pub ethernet: [u8; 12],
}

impl Error {
    /// The frame, with an IP packet or the beginning of one as its quotation.
    #[must_use]
    pub fn build(&self, quote: &[u8]) -> Vec<u8> {
        let ip = ip(self.source, self.destination, self.ttl, ethernet(self.ethernet));
        let (kind, code) = self.kind;
        let mut error = Vec::new();
        let written = match self.source {
            IpAddr::V4(_) => ip.icmpv4_raw(kind, code, self.word).write(&mut error, quote),
            IpAddr::V6(_) => ip.icmpv6_raw(kind, code, self.word).write(&mut error, quote),
        };
        written.expect("a packet of sane size");
        error
    }
}

/// The RST with which a segment's receiver answers a frame, sent back the way that it came.
#[must_use]
pub fn reset(frame: &[u8], src: SocketAddr, dst: SocketAddr, sequence: u32) -> Vec<u8> {
    let mut header = TcpHeader::new(src.port(), dst.port(), sequence, 0);
    header.rst = true;
    let mut reset = Vec::new();
    let ip = ip(src.ip(), dst.ip(), 64, ethernet(turned(frame)));
    ip.tcp_header(header).write(&mut reset, &[]).expect("a packet of sane size");
    reset
}

/// Ethernet addresses of what goes back the way that a frame came.
fn turned(frame: &[u8]) -> [u8; 12] {
    [&frame[6..12], &frame[..6]].concat().try_into().expect("two addresses")
}

fn ethernet(addresses: [u8; 12]) -> PacketBuilderStep<Ethernet2Header> {
    let (dst, src) = addresses.split_at(6);
    PacketBuilder::ethernet2(src.try_into().expect("6 bytes"), dst.try_into().expect("6 bytes"))
}

fn ip(src: IpAddr, dst: IpAddr, ttl: u8, below: PacketBuilderStep<Ethernet2Header>) -> PacketBuilderStep<IpHeaders> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => below.ipv4(src.octets(), dst.octets(), ttl),
        (IpAddr::V6(src), IpAddr::V6(dst)) => below.ipv6(src.octets(), dst.octets(), ttl),
        _ => panic!("{src} and {dst} are of different families"),
    }
}
