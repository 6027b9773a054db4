// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a client and its backend say to each other, packet by packet, and as a script for the wrapper.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    bench::{FRAME_LEN_V4, FRAME_LEN_V6, Frame, STEPS, Script, Step},
    checksum::{self, Delta},
    flow::{
        protocol,
        tcp_flags::{ACK, FIN, SYN},
    },
};
use shunt_tests::{
    packets::{Segment, template},
    reference::{Door, Version},
};

/// The first sequence number of either side, which segments are built with.
const FIRST: u32 = 0x0102_0304;
/// What either side says, in bytes.
const DATA: &[u8] = b"data";
/// Offsets in a TCP header.
const SEQUENCE: usize = 4;
const CHECK: usize = 16;

/// A packet of either side.
#[derive(Clone)]
pub struct Line {
    /// The program that it comes to.
    pub door: Door,
    /// Whether it comes from where the packet before it went, and goes back to where that came from.
    pub is_answer: bool,
    /// Of flow 0; an answer has no addresses and ports yet.
    frame: Vec<u8>,
    protocol: u8,
    pub version: Version,
}

impl Line {
    /// The frame; `before` is the packet that it may answer, as it left.
    pub fn frame(&self, before: &[u8]) -> Vec<u8> {
        if self.is_answer { turn(&self.frame, before, self.version, self.protocol) } else { self.frame.clone() }
    }

    /// The answer to this very packet, as if a client sent it.
    pub fn answer_to(&self, before: &[u8]) -> Self {
        Self { is_answer: false, frame: self.frame(before), ..self.clone() }
    }

    fn step(&self) -> Step {
        let mut frame = [0; FRAME_LEN_V6];
        frame[..self.frame.len()].copy_from_slice(&self.frame);
        let frame: Frame = bytemuck::cast(frame);
        let program = u32::from(self.door == Door::Egress);
        Step { is_answer: self.is_answer.into(), ..Step::new(frame, self.protocol, program) }
    }
}

/// The script of some packets, of one flow: the first.
pub fn script(lines: &[Line], ifindex: u32) -> Script {
    let mut steps: Vec<Step> = lines.iter().map(Line::step).collect();
    if let Some(last) = steps.last_mut() {
        last.ends_flow = 1;
    }
    let count = steps.len() as u32;
    let mut rest = steps.into_iter();
    let steps: [Step; STEPS] = std::array::from_fn(|_| rest.next().unwrap_or(bytemuck::Zeroable::zeroed()));
    Script { steps, count, next: 0, counter: 0, mask: 0, stride: 1, ifindex }
}

/// A client and a frontend, and the doors of its packets and of the answers.
#[derive(Clone, Copy)]
pub struct Talk {
    client: SocketAddr,
    frontend: SocketAddr,
    there: Door,
    back: Door,
}

impl Talk {
    /// By XDP both ways.
    pub const fn xdp(client: SocketAddr, frontend: SocketAddr) -> Self {
        Self { client, frontend, there: Door::Xdp, back: Door::Xdp }
    }

    /// By TC, both ways as packets that arrive.
    pub const fn tc(client: SocketAddr, frontend: SocketAddr) -> Self {
        Self { client, frontend, there: Door::Ingress, back: Door::Ingress }
    }

    /// By TC, the answers as packets that leave.
    pub const fn tc_and_back(client: SocketAddr, frontend: SocketAddr) -> Self {
        Self { client, frontend, there: Door::Ingress, back: Door::Egress }
    }

    /// By TC, from a backend to a client.
    pub const fn leaving(backend: SocketAddr, client: SocketAddr) -> Self {
        Self { client: backend, frontend: client, there: Door::Egress, back: Door::Egress }
    }

    /// The client asks for a connection.
    pub fn syn(&self) -> Line {
        self.client_says(SYN, [0, 0], b"")
    }

    /// The client goes on.
    pub fn ack(&self) -> Line {
        self.client_says(ACK, [1, 1], b"")
    }

    /// The backend goes on.
    pub fn reply(&self) -> Line {
        self.backend_says(ACK, [1, 1], b"")
    }

    /// SYN and SYN-ACK.
    pub fn half_open(&self) -> Vec<Line> {
        vec![self.syn(), self.backend_says(SYN | ACK, [0, 1], b"")]
    }

    /// SYN, SYN-ACK and ACK.
    pub fn handshake(&self) -> Vec<Line> {
        [self.half_open(), vec![self.ack()]].concat()
    }

    /// A handshake, data both ways, and both FINs with the last ACK.
    pub fn connection(&self) -> Vec<Line> {
        let said = DATA.len() as u32;
        let rest = vec![
            self.client_says(ACK, [1, 1], DATA),
            self.backend_says(ACK, [1, 1 + said], DATA),
            self.client_says(FIN | ACK, [1 + said, 1 + said], b""),
            self.backend_says(FIN | ACK, [1 + said, 2 + said], b""),
            self.client_says(ACK, [2 + said, 2 + said], b""),
        ];
        [self.handshake(), rest].concat()
    }

    /// A datagram of the client.
    pub fn question(&self) -> Line {
        self.line(false, protocol::UDP, Segment::udp(self.client, self.frontend))
    }

    /// The same, and the backend's answer.
    pub fn exchange(&self) -> Vec<Line> {
        let nobody = nobody(self.version());
        vec![self.question(), self.line(true, protocol::UDP, Segment::udp(nobody, nobody))]
    }

    pub const fn version(&self) -> Version {
        Version::of(self.frontend.ip())
    }

    /// A segment whose sequence and acknowledgement number are so much after the first ones.
    fn client_says(&self, flags: u8, numbers: [u32; 2], data: &[u8]) -> Line {
        let segment = Segment::tcp(self.client, self.frontend, flags);
        self.numbered(self.line(false, protocol::TCP, acknowledge(segment, numbers[1]).payload(data)), numbers[0])
    }

    fn backend_says(&self, flags: u8, numbers: [u32; 2], data: &[u8]) -> Line {
        let nobody = nobody(self.version());
        let segment = Segment::tcp(nobody, nobody, flags);
        self.numbered(self.line(true, protocol::TCP, acknowledge(segment, numbers[1]).payload(data)), numbers[0])
    }

    fn line(&self, is_answer: bool, protocol: u8, segment: Segment) -> Line {
        let (version, door) = (self.version(), if is_answer { self.back } else { self.there });
        let len = if version == Version::V4 { FRAME_LEN_V4 } else { FRAME_LEN_V6 };
        let frame = bytemuck::bytes_of(&template(&segment))[..len].to_vec();
        Line { door, is_answer, frame, protocol, version }
    }

    fn numbered(&self, mut line: Line, number: u32) -> Line {
        let l4 = l4(self.version());
        let at = l4 + SEQUENCE;
        let field: [u8; 4] = line.frame[at..at + 4].try_into().expect("4 bytes");
        let numbered = u32::from_be_bytes(field).wrapping_add(number).to_be_bytes();
        line.frame[at..at + 4].copy_from_slice(&numbered);
        let delta = Delta::ZERO.replace(u32::from_ne_bytes(field), u32::from_ne_bytes(numbered));
        add_to_check(&mut line.frame, l4 + CHECK, delta.fold());
        line
    }
}

/// An acknowledgement of so much; of nothing, there is none.
fn acknowledge(segment: Segment, count: u32) -> Segment {
    if count == 0 { segment } else { segment.acknowledging(FIRST.wrapping_add(count)) }
}

/// No addresses and no ports.
const fn nobody(version: Version) -> SocketAddr {
    match version {
        Version::V4 => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        Version::V6 => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    }
}

const fn l4(version: Version) -> usize {
    if matches!(version, Version::V4) { 34 } else { 54 }
}

/// An answer's frame with the ends of the packet that it answers, turned round.
fn turn(answer: &[u8], before: &[u8], version: Version, protocol: u8) -> Vec<u8> {
    let l4 = l4(version);
    let len = if version == Version::V4 { 4 } else { 16 };
    let (src, dst) = (l4 - 2 * len, l4 - len);
    let mut frame = answer.to_vec();
    frame[src..src + len].copy_from_slice(&before[dst..dst + len]);
    frame[dst..dst + len].copy_from_slice(&before[src..src + len]);
    frame[l4..l4 + 2].copy_from_slice(&before[l4 + 2..l4 + 4]);
    frame[l4 + 2..l4 + 4].copy_from_slice(&before[l4..l4 + 2]);
    let addresses = checksum::fold(sum(&frame[src..l4]));
    let check = l4 + if protocol == protocol::UDP { 6 } else { CHECK };
    let ports = sum(&frame[l4..l4 + 4]);
    add_to_check(&mut frame, check, checksum::fold(ports + u64::from(addresses)));
    if version == Version::V4 {
        add_to_check(&mut frame, 14 + 10, addresses);
    }
    frame
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(u16::from_ne_bytes([word[0], word[1]]))).sum()
}

fn add_to_check(frame: &mut [u8], at: usize, delta: u16) {
    let check = u16::from_ne_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].copy_from_slice(&checksum::apply(check, delta.into()).to_ne_bytes());
}
