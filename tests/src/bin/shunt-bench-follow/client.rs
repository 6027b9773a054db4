// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that ask again and again who is there.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use shunt_tests::load::{Protocol, Talk};

/// Without an answer within this, it is asked again.
const PATIENCE: Duration = Duration::from_millis(500);

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By TCP, on a connection for each question.
    Connections,
    /// By UDP, on one socket that is connected for as long as it lives.
    Connected,
    /// By UDP, on one socket that is not connected.
    Unconnected,
}

/// A client in the namespace of its thread.
pub struct Client {
    kind: Kind,
    to: SocketAddr,
    socket: UdpSocket,
    /// How often its socket was closed under it.
    pub reconnects: u32,
}

impl Client {
    /// One that has not asked yet.
    pub fn new(kind: Kind, to: SocketAddr) -> Result<Self> {
        Ok(Self { kind, to, socket: socket(kind, to)?, reconnects: 0 })
    }

    /// Asks once. The name of who answers; `None` where nobody does, or the socket has to be made anew.
    pub fn ask(&mut self) -> Result<Option<String>> {
        if self.kind == Kind::Connections {
            return Ok(Talk::begin(Protocol::Tcp, self.to, PATIENCE)?.ask().map(|answer| answer.server).map(Some)?);
        }
        match self.exchange() {
            Ok(server) => Ok(Some(server)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) if self.kind == Kind::Connected && is_closed(&error) => {
                self.socket = socket(self.kind, self.to)?;
                self.reconnects += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn exchange(&self) -> io::Result<String> {
        let question = b"who?\n";
        match self.kind {
            Kind::Unconnected => self.socket.send_to(question, self.to)?,
            Kind::Connected | Kind::Connections => self.socket.send(question)?,
        };
        let mut buffer = [0; 256];
        let (length, _) = self.socket.recv_from(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        Ok(answer.split_whitespace().next().unwrap_or_default().to_owned())
    }
}

fn socket(kind: Kind, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if kind == Kind::Connected {
        socket.connect(to)?;
    }
    Ok(socket)
}

/// So an application hears that its UDP socket was closed: when it waits, and when it sends.
fn is_closed(error: &io::Error) -> bool {
    const EDESTADDRREQ: i32 = 89;
    error.kind() == io::ErrorKind::ConnectionAborted || error.raw_os_error() == Some(EDESTADDRREQ)
}
