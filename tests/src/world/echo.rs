// SPDX-License-Identifier: MIT OR Apache-2.0
//! The least server of both protocols and families: to whatever it is sent it answers who it is, and who asked.
//!
//! It runs on threads of this process, inside a pod's namespace. Unlike nginx it keeps connections for as long as their
//! clients do, and it does the same by UDP. For tests of size, `give N` is answered by that many bytes more, a datagram by
//! itself, and the end of a connection by how much has come.

use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;

const PORT: u16 = 7007;
/// How long a thread may overlook that its server has been dropped.
const NOTICE: Duration = Duration::from_millis(200);
const BACKLOG: i32 = 1024;
const MAX_QUESTION_BYTES: usize = 65_536;

/// The port on which echo servers listen: another than their Services'.
#[must_use]
pub const fn echo_port() -> u16 {
    PORT
}

/// A running server. It ends when this is dropped.
pub struct Echo {
    has_ended: Arc<AtomicBool>,
}

impl Echo {
    /// Starts one that answers `<name> <client address> <client port>`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        let has_ended = Arc::new(AtomicBool::new(false));
        let server = Server { name: name.to_owned(), has_ended: Arc::clone(&has_ended) };
        namespace.enter(move || server.start())?.with_context(|| format!("can't start an echo server in {name}"))?;
        Ok(Self { has_ended })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }
}

/// What its threads share.
#[derive(Clone)]
struct Server {
    name: String,
    has_ended: Arc<AtomicBool>,
}

impl Server {
    /// Threads inherit the namespace of the one that starts them.
    fn start(self) -> io::Result<()> {
        let listener = TcpListener::from(bind(Type::STREAM, Protocol::TCP)?);
        let socket = UdpSocket::from(bind(Type::DGRAM, Protocol::UDP)?);
        let other = self.clone();
        thread::spawn(move || self.accept(&listener));
        thread::spawn(move || other.answer_datagrams(&socket));
        Ok(())
    }

    fn accept(&self, listener: &TcpListener) {
        while !self.has_ended.load(Ordering::Relaxed) {
            // An error is the end of the wait, most often.
            if let Ok((stream, client)) = listener.accept() {
                let server = self.clone();
                thread::spawn(move || server.answer_stream(stream, client));
            }
        }
    }

    fn answer_stream(&self, mut stream: TcpStream, client: SocketAddr) {
        let mut buffer = [0; MAX_QUESTION_BYTES];
        let mut total = 0;
        // Its client may go away at any time: then that was it.
        let _ = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(NOTICE)));
        while !self.has_ended.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    let _ = writeln!(stream, "{total}");
                    return;
                }
                Ok(length) => {
                    total += length;
                    let more = vec![b'.'; wanted(&buffer[..length])];
                    if stream.write_all(&[self.answer(client).as_bytes(), &more].concat()).is_err() {
                        return;
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    fn answer_datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; MAX_QUESTION_BYTES];
        while !self.has_ended.load(Ordering::Relaxed) {
            if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                // A client that has gone is no concern of ours.
                let _ = socket.send_to(&[self.answer(client).as_bytes(), &buffer[..length]].concat(), client);
            }
        }
    }

    fn answer(&self, client: SocketAddr) -> String {
        format!("{} {} {}\n", self.name, client.ip().to_canonical(), client.port())
    }
}

/// How much more is to be answered.
fn wanted(question: &[u8]) -> usize {
    let number = std::str::from_utf8(question).ok().and_then(|text| text.trim().strip_prefix("give ")?.parse().ok());
    number.unwrap_or_default()
}

/// A socket of both families, whose waits end now and then.
fn bind(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    socket.set_read_timeout(Some(NOTICE))?;
    Ok(socket)
}
