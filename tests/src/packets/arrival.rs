// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random packets: of flows that there are, of flows to be, about flows, of all shapes; some damaged, and some that are
//! nothing at all.

use std::net::SocketAddr;

use lb_common::flow::{protocol, tcp_flags};

use super::{
    build::{Error, SEQUENCE, Segment, chunk},
    network::{BARE, LOOPBACK, NET, POD, SECOND, UPLINK},
    node::{Both, CALLER, CLUSTER_IP, NET_SOURCE, NODE, OUTSIDE, SERVICES, pick},
    random::{CLIENTS, Random},
    shape::{behind_headers, fragments, tagged, with_options},
};
use crate::reference::{Arrival, Datagram, Door, Model, Tuple, Version};

/// Length of an Ethernet header without tags.
const IP: usize = 14;

/// Where flows begin.
const NEW: [Door; 4] = [Door::Xdp, Door::Ingress, Door::Net, Door::Net];
/// Destinations beside those of Services.
const STRANGERS: [Both; 6] = [
    OUTSIDE,
    NET_SOURCE,
    CALLER,
    ["10.1.0.1", "fd00:1::1"],
    ["255.255.255.255", "ff02::1"],
    // As a destination in a packet, nobody's.
    ["0.0.0.0", "::ffff:10.96.0.1"],
];
/// Those who may send errors, beside the ends of a flow.
const ROUTERS: [Both; 4] =
    [["192.0.2.2", "2001:db8:1::2"], ["198.51.100.77", "2001:db8:2::77"], ["10.1.0.1", "fd00:1::1"], CALLER];
const FLAGS: [u8; 8] = [
    tcp_flags::SYN,
    tcp_flags::SYN,
    tcp_flags::ACK,
    tcp_flags::ACK,
    tcp_flags::SYN | tcp_flags::ACK,
    tcp_flags::FIN | tcp_flags::ACK,
    tcp_flags::RST,
    0,
];
const CHUNKS: [u8; 6] =
    [chunk::DATA, chunk::DATA, chunk::INIT, chunk::INIT_ACK, chunk::ABORT, chunk::SHUTDOWN_COMPLETE];
const TTLS: [u8; 8] = [64, 64, 64, 64, 255, 2, 1, 0];
/// IPv6 extension headers that are walked over.
const EXTENSIONS: [u8; 4] = [0, 43, 51, 60];

impl Random {
    /// A packet that may be of a flow of the model's or may begin one; or anything at all.
    pub fn arrival(&mut self, model: &Model) -> Arrival {
        let (tuple, door) = self.flow(model).unwrap_or_else(|| (self.tuple(), self.pick(&NEW)));
        let (mut frame, door) = match self.below(20) {
            0..3 => self.error(model),
            3..5 => (self.later_fragment(model, tuple), door),
            5..7 => (self.fragment(tuple, |_| 0), door),
            _ => (self.segment(tuple).build(), door),
        };
        if self.chance(15) {
            frame = self.lengthen(&frame);
        }
        if self.chance(3) {
            frame[0] |= 1;
        }
        self.damage(&mut frame);
        if frame.len() >= IP && self.chance(8) {
            frame = self.tag(&frame);
        }
        let mut door = if self.chance(5) { self.pick(&Door::ALL) } else { door };
        if door == Door::Net {
            door = match model.setup.net {
                Some(_) if self.chance(2) => Door::NetArrival,
                Some(_) => Door::Net,
                None => self.pick(&Door::IN),
            };
        }
        let devices: &[u32] = match door {
            Door::Net => &[NET, NET, LOOPBACK],
            Door::NetArrival => &[NET],
            _ => &[UPLINK, UPLINK, SECOND, POD, POD, BARE],
        };
        let arrived_by = if door == Door::Net { self.pick(&[0, 0, 0, UPLINK, POD, BARE, LOOPBACK]) } else { 0 };
        Arrival { door, ifindex: self.pick(devices), arrived_by, frame, is_trace: self.chance(3) }
    }

    /// The tuple of a flow that exists, and a door that it may go by.
    fn flow(&mut self, model: &Model) -> Option<(Tuple, Door)> {
        let flows = &model.flows.0;
        if flows.is_empty() || self.chance(40) {
            return None;
        }
        let (&tuple, entry) = flows.iter().nth(self.below(flows.len()))?;
        let doors: Vec<Door> = Door::ALL.into_iter().filter(|&door| entry.is_at(door)).collect();
        Some((tuple, self.pick(&doors)))
    }

    /// A client and where it goes.
    fn tuple(&mut self) -> Tuple {
        let version = self.pick(&Version::BOTH);
        let protocol = match self.below(3) {
            0 => protocol::TCP,
            1 => protocol::SCTP,
            _ => protocol::UDP,
        };
        let port = 40_000 + self.below(4) as u16;
        let service = self.pick(&SERVICES);
        let dst = match self.below(20) {
            0..10 => service.at_node(version),
            10..18 => service.at_cluster_ip(version),
            18 => SocketAddr::new(pick(self.pick(&STRANGERS), version), service.port),
            _ => {
                SocketAddr::new(pick(self.pick(&[CLUSTER_IP, NODE]), version), self.pick(&[0, 22, 80, 50_001, 60_500]))
            }
        };
        Tuple { src: SocketAddr::new(pick(self.pick(&CLIENTS), version), port), dst, protocol }
    }

    fn segment(&mut self, tuple: Tuple) -> Segment {
        let segment = match tuple.protocol {
            protocol::TCP => Segment::tcp(tuple.src, tuple.dst, self.pick(&FLAGS)),
            protocol::UDP => Segment::udp(tuple.src, tuple.dst),
            _ => Segment::sctp(tuple.src, tuple.dst, self.pick(&CHUNKS)),
        };
        // The last ones are longer than the MTU, or may be.
        let lens = [12, 12, 12, 12, 12, 12, 12, 12, 1400, 1600];
        let len = {
            let end = self.pick(&lens);
            self.below(end)
        };
        // Mostly numbers that are right; some that are a window off, and some that are forged.
        let numbers = [
            SEQUENCE,
            SEQUENCE,
            SEQUENCE + 1,
            SEQUENCE + 1,
            SEQUENCE + 70_000,
            SEQUENCE - 70_000,
            self.number() as u32,
        ];
        let (sequence, acknowledgement) = (self.pick(&numbers), self.pick(&numbers));
        segment.sequence(sequence).acknowledging(acknowledgement).payload(&self.bytes(len)).ttl(self.pick(&TTLS))
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }

    /// One of the fragments of a datagram, by its number out of how many.
    fn fragment(&mut self, tuple: Tuple, number: impl FnOnce(usize) -> usize) -> Vec<u8> {
        let payload = self.bytes(100);
        let segment = self.segment(tuple).payload(&payload);
        let len = self.pick(&[24, 40, 64, 112, 1400]);
        let mut fragments = fragments(&segment.build(), self.below(3) as u32, len);
        let number = number(fragments.len());
        fragments.swap_remove(number)
    }

    /// A later fragment, mostly of a datagram whose first one was seen.
    fn later_fragment(&mut self, model: &Model, mut tuple: Tuple) -> Vec<u8> {
        let datagrams: Vec<&Datagram> = model.fragments.0.keys().collect();
        if !datagrams.is_empty() && self.chance(80) {
            let Datagram { src, dst, protocol, .. } = *self.pick(&datagrams);
            tuple = Tuple { src: (src, 1).into(), dst: (dst, 2).into(), protocol };
        }
        let number = self.below(8);
        self.fragment(tuple, |count| (1 + number).min(count - 1))
    }

    /// An ICMP error, mostly about a packet that one of the flows has sent on.
    fn error(&mut self, model: &Model) -> (Vec<u8>, Door) {
        let (tuple, door) = self.flow(model).unwrap_or_else(|| (self.tuple(), self.pick(&Door::ALL)));
        let quoted = tuple.reversed();
        let version = Version::of(quoted.src.ip());
        let mut quote = self.segment(quoted).build();
        if self.chance(15) {
            quote = self.lengthen(&quote);
        }
        if self.chance(10) {
            quote = self.fragment(quoted, |_| 0);
        }
        let mut quote = quote.split_off(IP);
        let len = if self.chance(60) { quote.len() } else { self.below(quote.len() + 1) };
        quote.truncate(len);
        let source = match self.below(3) {
            0 => pick(self.pick(&ROUTERS), version),
            _ => quoted.dst.ip(),
        };
        let error = Error {
            source,
            destination: if self.chance(95) { quoted.src.ip() } else { pick(self.pick(&CLIENTS), version) },
            kind: self.kind(version),
            word: [0, 0, 5, 0x14],
            ttl: self.pick(&TTLS),
            ethernet: super::build::ETHERNET,
        };
        (error.build(&quote), door)
    }

    /// Type and code of an ICMP message: an error, most times.
    fn kind(&mut self, version: Version) -> (u8, u8) {
        let kinds: &[u8] = match version {
            Version::V4 => &[3, 3, 3, 11, 12, 0, 4, 5, 8],
            Version::V6 => &[1, 2, 3, 4, 1, 2, 0, 5, 128],
        };
        (self.pick(kinds), self.below(5) as u8)
    }

    /// With options, or behind extension headers: sometimes more of them than are followed.
    fn lengthen(&mut self, frame: &[u8]) -> Vec<u8> {
        if frame[12] == 0x08 {
            let is_plain = frame[IP] == 0x45;
            let words = self.below(11);
            return if is_plain { with_options(frame, &vec![1; 4 * words]) } else { frame.to_vec() };
        }
        let count = self.pick(&[1, 1, 1, 2, 2, 3, 6, 7]);
        let mut kinds: Vec<u8> = (0..count).map(|_| self.pick(&EXTENSIONS)).collect();
        let first = kinds[0];
        kinds.push(frame[IP + 6]);
        let mut headers = Vec::new();
        for pair in kinds.windows(2) {
            let units = self.pick(&[0, 0, 0, 1, 1, 2, 5, 31]);
            headers.extend(extension(pair[0], pair[1], units));
        }
        behind_headers(frame, first, &headers)
    }

    /// Behind tags: mostly those that are looked behind.
    fn tag(&mut self, frame: &[u8]) -> Vec<u8> {
        let count = self.pick(&[1, 1, 1, 2, 2, 3]);
        let tags: Vec<(u16, u16)> = (0..count).map(|_| (self.pick(&[0x8100, 0x8100, 0x88a8, 0x9100]), 7)).collect();
        tagged(frame, &tags)
    }

    /// Leaves most frames as they are.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        let is_v4 = frame[12] == 0x08;
        match self.below(40) {
            0 => frame.truncate(IP + self.below(frame.len() - IP)),
            // In the headers, mostly.
            1..4 => {
                for _ in 0..=self.below(3) {
                    let at = self.below(frame.len().min(120));
                    frame[at] = self.number() as u8;
                }
            }
            4 => frame.extend_from_slice(&[0xa5; 30][..self.below(30)]),
            5 if is_v4 => frame[IP] = self.pick(&[0x44, 0x46, 0x4f, 0x55]),
            5 => frame[IP + 6] = self.pick(&[0, 43, 44, 51, 60, 58, 132]),
            6 if is_v4 => frame[IP + 6 + self.below(2)] |= 1 << self.below(8),
            // No UDP checksum; of TCP the upper half of the window and the urgent pointer.
            7 if is_v4 => blank(frame, IP + 20 + 6, 2),
            7 => blank(frame, IP + 40 + 6, 2),
            // No SCTP checksum.
            8 => blank(frame, IP + if is_v4 { 20 } else { 40 } + 8, 4),
            _ => {}
        }
    }
}

/// Zeroes bytes, as far as they are there.
fn blank(frame: &mut [u8], at: usize, len: usize) {
    if let Some(bytes) = frame.get_mut(at..at + len) {
        bytes.fill(0);
    }
}

/// An IPv6 extension header of some length, in units of eight bytes behind the first eight.
fn extension(kind: u8, next: u8, units: u8) -> Vec<u8> {
    const AUTHENTICATION: u8 = 51;
    let mut header = vec![0; 8 * (usize::from(units) + 1)];
    header[0] = next;
    header[1] = if kind == AUTHENTICATION { 2 * units } else { units };
    header
}
