// SPDX-License-Identifier: MIT OR Apache-2.0
//! The servers of datagrams: whoever sends one hears the server's name, his own and his question.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use shunt_tests::world::{Namespace, echo_port};
use socket2::{Domain, Protocol, Socket, Type};

/// How long a thread may overlook that its server has been dropped.
const NOTICE: Duration = Duration::from_millis(200);
/// What the kernel keeps for a thread that has no CPU for a while.
const BUFFER: usize = 1 << 22;

/// A running server; it ends when this is dropped.
pub struct Server {
    has_ended: Arc<AtomicBool>,
}

impl Server {
    pub fn start(namespace: &Namespace, name: &'static str) -> Result<Self> {
        let has_ended = Arc::new(AtomicBool::new(false));
        let other = Arc::clone(&has_ended);
        let run = move || -> io::Result<()> {
            let socket = UdpSocket::from(bind(Type::DGRAM, Protocol::UDP)?);
            // The thread inherits the namespace.
            thread::spawn(move || answer(&socket, name, &other));
            Ok(())
        };
        namespace.enter(run)?.with_context(|| format!("can't start a server in {name}"))?;
        Ok(Self { has_ended })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }
}

fn answer(socket: &UdpSocket, name: &str, has_ended: &AtomicBool) {
    let mut buffer = [0; 256];
    while !has_ended.load(Ordering::Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            // A client that has gone is no concern of ours.
            let who = format!("{name} {} {}\n", client.ip().to_canonical(), client.port());
            let _ = socket.send_to(&[who.as_bytes(), &buffer[..length]].concat(), client);
        }
    }
}

/// A socket of both families, whose waits end now and then; others may listen at the same port.
pub fn bind(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_read_timeout(Some(NOTICE))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, echo_port())).into())?;
    Ok(socket)
}
