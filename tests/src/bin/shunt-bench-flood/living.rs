// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows that live: each client has had an answer and spoken again.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use lb_common::flow::{
    protocol,
    tcp_flags::{ACK, SYN},
};
use shunt_tests::{
    packets::{Rig, Segment, UPLINK},
    reference::{Arrival, Door, Tuple, Verdict, Version, is_sound},
};

use crate::scene;

/// Client ports of one address.
const PORTS: u32 = 500;

/// One of them.
pub struct Living {
    version: Version,
    /// From the client to the frontend.
    arrives: Tuple,
    /// From the node to the backend.
    leaves: Tuple,
}

impl Living {
    /// Begins the flow of a number, and lets it be established.
    pub fn establish(rig: &mut Rig, version: Version, protocol: u8, number: u32) -> Result<Self> {
        let arrives = Tuple { src: client(version, number), dst: scene::frontend(version), protocol };
        let leaves = send(rig, arrives, version, SYN)?;
        let answer = Tuple { protocol, src: leaves.dst, dst: leaves.src };
        let answered = send(rig, answer, version, SYN | ACK)?;
        ensure!(answered == arrives.reversed(), "the answer went to {answered:?}");
        ensure!(send(rig, arrives, version, ACK)? == leaves, "its second packet went elsewhere");
        Ok(Self { version, arrives, leaves })
    }

    /// Whether both its entries are among these.
    pub fn has_entries(&self, entries: &BTreeSet<Tuple>) -> bool {
        entries.contains(&self.arrives) && entries.contains(&self.leaves.reversed())
    }

    /// Lets the client send again. Whether the packet went to the backend as before, from the source port as before.
    pub fn goes_on(&self, rig: &mut Rig) -> Result<bool> {
        Ok(send(rig, self.arrives, self.version, ACK)? == self.leaves)
    }
}

fn client(version: Version, number: u32) -> SocketAddr {
    let address: IpAddr = match version {
        Version::V4 => Ipv4Addr::new(203, 0, 113, 100 + (number / PORTS) as u8).into(),
        Version::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 2, 0, 0, (number / PORTS) as u16).into(),
    };
    SocketAddr::new(address, 20_000 + (number % PORTS) as u16)
}

/// Sends a packet through the XDP door, and gives what it left as.
fn send(rig: &mut Rig, tuple: Tuple, version: Version, flags: u8) -> Result<Tuple> {
    let segment = match tuple.protocol {
        protocol::UDP => Segment::udp(tuple.src, tuple.dst),
        _ => Segment::tcp(tuple.src, tuple.dst, flags),
    };
    let arrival = Arrival { door: Door::Xdp, ifindex: UPLINK, arrived_by: 0, frame: segment.build(), is_trace: false };
    let (verdict, frame) = rig.send_unobserved(&arrival)?;
    ensure!(verdict == Verdict::Transmit && is_sound(&frame), "{tuple:?}: {verdict:?} {frame:02x?}");
    ends(&frame, version).map(|(src, dst)| Tuple { src, dst, ..tuple }).context("a frame that is too short")
}

/// Where a plain frame comes from and goes to.
fn ends(frame: &[u8], version: Version) -> Option<(SocketAddr, SocketAddr)> {
    let packet = frame.get(14..)?;
    let (src, dst, ports): (IpAddr, IpAddr, _) = match version {
        Version::V4 => {
            let address = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
            (address(12)?, address(16)?, packet.get(20..24)?)
        }
        Version::V6 => {
            let address = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
            (address(8)?, address(24)?, packet.get(40..44)?)
        }
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2))))
}
