// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forged TCP segments: of a connection that exists, with sequence numbers that can't be right.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use etherparse::TcpHeader;
use socket2::{Domain, Protocol, Socket, Type};

/// Flags of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forged {
    /// Another beginning.
    Syn,
    /// Data's acknowledgement.
    Ack,
    /// An end.
    FinAck,
    /// A reset.
    Rst,
    /// A reset that acknowledges.
    RstAck,
}

impl Forged {
    /// All.
    pub const ALL: [Self; 5] = [Self::Syn, Self::Ack, Self::FinAck, Self::Rst, Self::RstAck];
}

/// Sends such a segment without data. The namespace must have the address `from`.
///
/// # Errors
/// When it can't be sent.
pub fn send(kind: Forged, from: SocketAddr, to: SocketAddr, sequence: u32) -> io::Result<()> {
    let mut header = TcpHeader::new(from.port(), to.port(), sequence, 1024);
    header.syn = kind == Forged::Syn;
    header.fin = kind == Forged::FinAck;
    header.rst = matches!(kind, Forged::Rst | Forged::RstAck);
    header.ack = matches!(kind, Forged::Ack | Forged::FinAck | Forged::RstAck);
    header.acknowledgment_number = if header.ack { sequence } else { 0 };
    let checksum = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
        (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    header.checksum = checksum.map_err(io::Error::other)?;
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::TCP))?;
    // Raw sockets take no port; IPv6 insists on that.
    socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
    socket.send_to(&header.to_bytes(), &SocketAddr::new(to.ip(), 0).into()).map(drop)
}
