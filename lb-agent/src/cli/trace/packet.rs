// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first packet of a flow, and the tuple of a packet. Pure.

use std::net::SocketAddr;

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket};
use lb_common::flow::protocol;

/// The client's Ethernet address: locally administered, nobody's.
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOP_LIMIT: u8 = 64;
const WINDOW: u16 = 65_535;

/// A SYN, a datagram or an INIT, as it arrives at a device. Both addresses are of one family.
pub fn build(device_mac: [u8; 6], from: SocketAddr, to: SocketAddr, number: u8) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, device_mac);
    let ip = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => ethernet.ipv4(from.ip().octets(), to.ip().octets(), HOP_LIMIT),
        (from, to) => ethernet.ipv6(v6_octets(from), v6_octets(to), HOP_LIMIT),
    };
    let mut packet = Vec::new();
    let written = match number {
        protocol::TCP => ip.tcp(from.port(), to.port(), 0, WINDOW).syn().write(&mut packet, &[]),
        protocol::UDP => ip.udp(from.port(), to.port()).write(&mut packet, b"shunt trace"),
        other => ip.write(&mut packet, IpNumber(other), &sctp_init(from.port(), to.port())),
    };
    debug_assert!(written.is_ok(), "a vector takes whatever is written, and the packet is short");
    packet
}

fn v6_octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}

/// The common header and an INIT chunk (RFC 9260 sections 3.1 and 3.3.2). The checksum is zero: nobody looks at it.
fn sctp_init(sport: u16, dport: u16) -> Vec<u8> {
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let mut segment = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    segment.extend([0; 8]);
    segment.extend(INIT);
    segment
}

/// Source and destination of a packet; `None` where it has none, or can't be read.
pub fn tuple(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let (source, destination, payload) = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().payload)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().payload)
        }
        NetSlice::Arp(_) => return None,
    };
    // TCP, UDP and SCTP all begin with both ports.
    let port = |at| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    Some((SocketAddr::new(source, port(0)?), SocketAddr::new(destination, port(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_the_tuple_that_it_was_built_with() {
        for (from, to) in [("10.0.0.1:40000", "10.96.0.1:80"), ("[fd00::1]:40000", "[fd00::2]:53")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                let packet = build([2; 6], from, to, number);
                assert_eq!(tuple(&packet), Some((from, to)));
                let is_v4 = from.is_ipv4();
                assert_eq!(packet[if is_v4 { 23 } else { 20 }], number);
            }
        }
    }

    #[test]
    fn what_is_no_packet_has_no_tuple() {
        assert_eq!(tuple(&[0; 20]), None);
    }
}
