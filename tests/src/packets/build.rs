// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames to test with, made by etherparse: an implementation of headers and checksums that is neither ours nor the model's.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ethernet2Header, IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};
use lb_common::flow::{protocol, tcp_flags};

/// Destination and source of frames whose Ethernet addresses don't matter.
pub const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 0xee, 2, 0, 0, 0, 0, 0xff];

/// A TCP or UDP packet to be; [`Segment::build`] makes the frame.
#[derive(Clone, Debug)]
pub struct Segment {
    src: SocketAddr,
    dst: SocketAddr,
    protocol: u8,
    flags: u8,
    acknowledgement: u32,
    ttl: u8,
    ethernet: [u8; 12],
    payload: Vec<u8>,
}

impl Segment {
    /// A TCP segment with [`tcp_flags`].
    #[must_use]
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let (protocol, ttl, ethernet, payload) = (protocol::TCP, 64, ETHERNET, Vec::new());
        Self { src, dst, protocol, flags, acknowledgement: 0, ttl, ethernet, payload }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self { protocol: protocol::UDP, payload: b"datagram".to_vec(), ..Self::tcp(src, dst, 0) }
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
        let written = if self.protocol == protocol::TCP {
            ip.tcp_header(self.tcp_header()).write(&mut frame, &self.payload)
        } else {
            ip.udp(self.src.port(), self.dst.port()).write(&mut frame, &self.payload)
        };
        written.expect("a packet of sane size");
        frame
    }

    fn tcp_header(&self) -> TcpHeader {
        let has = |flag| self.flags & flag != 0;
        let mut header = TcpHeader::new(self.src.port(), self.dst.port(), 0x0102_0304, 0x7210);
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
pub fn port_unreachable(frame: &[u8], source: IpAddr, client: IpAddr, quote_len: usize) -> Vec<u8> {
    let back = [&frame[6..12], &frame[..6]].concat().try_into().expect("two addresses");
    let ip = ip(source, client, 64, ethernet(back));
    let quote = &frame[14..14 + quote_len];
    let mut error = Vec::new();
    let written = match source {
        IpAddr::V4(_) => ip.icmpv4_raw(3, 3, [0; 4]).write(&mut error, quote),
        IpAddr::V6(_) => ip.icmpv6_raw(1, 4, [0; 4]).write(&mut error, quote),
    };
    written.expect("a packet of sane size");
    error
}

/// The RST with which a segment's receiver answers a frame, sent back the way that it came.
#[must_use]
pub fn reset(frame: &[u8], src: SocketAddr, dst: SocketAddr, sequence: u32) -> Vec<u8> {
    let back = [&frame[6..12], &frame[..6]].concat().try_into().expect("two addresses");
    let mut header = TcpHeader::new(src.port(), dst.port(), sequence, 0);
    header.rst = true;
    let mut reset = Vec::new();
    let ip = ip(src.ip(), dst.ip(), 64, ethernet(back));
    ip.tcp_header(header).write(&mut reset, &[]).expect("a packet of sane size");
    reset
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
