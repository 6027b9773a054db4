// SPDX-License-Identifier: MIT OR Apache-2.0
//! One flow to an [`Echo`](crate::world::Echo) server, TCP or UDP, on which one can ask again and again who answers.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol as Socket2Protocol, Socket, Type};

use crate::world::Namespace;

const MAX_ANSWER_BYTES: usize = 256;
/// No answer within this is a failure: several times what TCP needs to send a lost first packet again.
const LIMIT: Duration = Duration::from_secs(5);
/// No word within this is silence: less than the second after which TCP tries again.
const PATIENCE: Duration = Duration::from_millis(700);
/// The kernel's IPv6 TCP overlooks an ICMP error that comes while `connect` still holds the socket, as it does in a world
/// on one machine: the second SYN's error counts.
const TCP_V6_PATIENCE: Duration = Duration::from_millis(1600);

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// A connected socket: an answer from another address than it was asked of is never seen, an ICMP error is.
    Udp,
}

impl Protocol {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];
}

/// Who answered, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// Where the question came from, as the server sees it.
    pub client: SocketAddr,
    /// The same, as the client itself sees it.
    pub local: SocketAddr,
}

/// A flow.
pub struct Talk {
    socket: Socket,
}

impl Talk {
    /// Begins one, from a port that nobody uses. With UDP nothing is sent yet.
    ///
    /// # Errors
    /// When nobody answers within `limit`, which is also that of every later step.
    pub fn begin(protocol: Protocol, to: SocketAddr, limit: Duration) -> io::Result<Self> {
        let port = if protocol == Protocol::Udp { fresh_port() } else { 0 };
        Self::begin_from(protocol, port, to, limit)
    }

    /// The same, from that port, which several flows may have.
    ///
    /// # Errors
    /// As [`Talk::begin`].
    pub fn begin_from(protocol: Protocol, port: u16, to: SocketAddr, limit: Duration) -> io::Result<Self> {
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self::begin_at(protocol, SocketAddr::new(any, port), to, limit)
    }

    /// The same, from that address and port.
    ///
    /// # Errors
    /// As [`Talk::begin`].
    pub fn begin_at(protocol: Protocol, from: SocketAddr, to: SocketAddr, limit: Duration) -> io::Result<Self> {
        let (kind, number) = match protocol {
            Protocol::Tcp => (Type::STREAM, Socket2Protocol::TCP),
            Protocol::Udp => (Type::DGRAM, Socket2Protocol::UDP),
        };
        let socket = Socket::new(Domain::for_address(to), kind, Some(number))?;
        socket.set_reuse_address(true)?;
        if protocol == Protocol::Tcp {
            socket.set_tcp_nodelay(true)?;
        }
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), limit)?;
        socket.set_read_timeout(Some(limit))?;
        socket.set_write_timeout(Some(limit))?;
        Ok(Self { socket })
    }

    /// Asks who is there.
    ///
    /// # Errors
    /// When there is no answer in time, or an error comes instead.
    pub fn ask(&mut self) -> io::Result<Answer> {
        self.say("who?\n")?;
        self.hear()
    }

    /// Sends something, without waiting for an answer.
    ///
    /// # Errors
    /// When it can't be sent.
    pub fn say(&mut self, words: &str) -> io::Result<()> {
        (&self.socket).write_all(words.as_bytes())
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// When none comes in time, or an error instead.
    pub fn hear(&mut self) -> io::Result<Answer> {
        let local = self.socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let mut buffer = [0; MAX_ANSWER_BYTES];
        let mut length = 0;
        while !buffer[..length].ends_with(b"\n") {
            match (&self.socket).read(&mut buffer[length..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => length += more,
            }
        }
        parse(&buffer[..length], local).ok_or_else(|| invalid("not an echo server"))
    }

    /// Sends a datagram of so many bytes and waits until the same comes back.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn exchange(&mut self, length: usize) -> io::Result<()> {
        let question: Vec<u8> = (0..length).map(|position| (position % 251) as u8).collect();
        (&self.socket).write_all(&question)?;
        let mut answer = vec![0; length + MAX_ANSWER_BYTES];
        let received = (&self.socket).read(&mut answer)?;
        if answer[..received].ends_with(&question) { Ok(()) } else { Err(invalid("another datagram came back")) }
    }

    /// Sends so many bytes, and waits until they have arrived. That ends the connection.
    ///
    /// # Errors
    /// When they don't.
    pub fn upload(self, length: usize) -> io::Result<()> {
        (&self.socket).write_all(&vec![b'.'; length])?;
        self.socket.shutdown(Shutdown::Write)?;
        let mut answers = String::new();
        (&self.socket).read_to_string(&mut answers)?;
        match answers.lines().next_back() {
            Some(last) if last == length.to_string() => Ok(()),
            last => Err(invalid(&format!("{last:?} of {length} bytes have arrived"))),
        }
    }

    /// Waits for so many bytes.
    ///
    /// # Errors
    /// When they don't come.
    pub fn download(&mut self, length: usize) -> io::Result<()> {
        self.say(&format!("give {length}\n"))?;
        let mut line = true;
        let mut missing = length;
        let mut buffer = [0; 65_536];
        while line || missing > 0 {
            let received = (&self.socket).read(&mut buffer)?;
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // First comes a line.
            let start = if line {
                buffer[..received].iter().position(|byte| *byte == b'\n').map(|end| end + 1)
            } else {
                Some(0)
            };
            let Some(start) = start else { continue };
            line = false;
            missing -= received - start;
        }
        Ok(())
    }
}

/// The programs remember a UDP flow for longer than its socket lives; so each has a port that none had before it.
#[must_use]
pub fn fresh_port() -> u16 {
    /// Below those that the kernel gives away.
    const PORTS: std::ops::Range<u16> = 10_000..32_768;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A flow of one question.
///
/// # Errors
/// As [`Talk::begin`] and [`Talk::ask`].
pub fn ask(protocol: Protocol, to: SocketAddr, limit: Duration) -> io::Result<Answer> {
    Talk::begin(protocol, to, limit)?.ask()
}

/// What becomes of a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This server answers.
    Answered(String),
    /// The client is told that nobody listens.
    Refused,
    /// The client is told that it may not.
    Denied,
    /// The client is told that there is no way.
    Unreachable,
    /// Nothing comes back.
    Silence,
}

/// Asks from inside a namespace, to see what becomes of it.
///
/// # Errors
/// When it is something else, or the namespace can't be entered.
pub fn attempt(from: &Namespace, protocol: Protocol, to: SocketAddr) -> Result<Outcome> {
    outcome(from.enter(|| ask(protocol, to, patience(protocol, to)))?)
}

/// How long to wait before nothing is silence.
#[must_use]
pub fn patience(protocol: Protocol, to: SocketAddr) -> Duration {
    if protocol == Protocol::Tcp && to.is_ipv6() { TCP_V6_PATIENCE } else { PATIENCE }
}

/// What an error, or an answer, means.
///
/// # Errors
/// When it means something else.
pub fn outcome(answer: io::Result<Answer>) -> Result<Outcome> {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut, WouldBlock,
    };
    match answer {
        Ok(answer) => Ok(Outcome::Answered(answer.server)),
        Err(error) => match error.kind() {
            ConnectionRefused => Ok(Outcome::Refused),
            PermissionDenied => Ok(Outcome::Denied),
            HostUnreachable | NetworkUnreachable => Ok(Outcome::Unreachable),
            TimedOut | WouldBlock => Ok(Outcome::Silence),
            _ => Err(error.into()),
        },
    }
}

/// Begins `count` flows, one after the other, and returns how many each server answered.
///
/// # Errors
/// When one fails, or the namespace can't be entered.
pub fn meet(from: &Namespace, protocol: Protocol, to: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    meet_within(LIMIT, from, protocol, to, count)
}

/// The same, where each may take this long.
///
/// # Errors
/// As [`meet`].
pub fn meet_within(
    limit: Duration,
    from: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    count: usize,
) -> Result<BTreeMap<String, usize>> {
    from.enter(|| {
        let mut servers = BTreeMap::new();
        for _ in 0..count {
            let answer = ask(protocol, to, limit).with_context(|| format!("{protocol:?} to {to}"))?;
            *servers.entry(answer.server).or_default() += 1;
        }
        Ok(servers)
    })?
}

/// `<server> <client address> <client port>` and a newline.
fn parse(bytes: &[u8], local: SocketAddr) -> Option<Answer> {
    let mut words = std::str::from_utf8(bytes).ok()?.split_whitespace();
    let server = words.next()?.to_owned();
    let client = SocketAddr::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Answer { server, client, local })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_who_answered_whom() {
        let [local, client] = ["10.244.1.90:4000", "172.20.0.11:61000"].map(|text| text.parse().expect("an address"));
        let answer = Answer { server: "web-1".to_owned(), client, local };
        assert_eq!(parse(b"web-1 172.20.0.11 61000\n", local), Some(answer));
        assert_eq!(parse(b"HTTP/1.1 400 Bad Request\n", local), None);
    }
}
