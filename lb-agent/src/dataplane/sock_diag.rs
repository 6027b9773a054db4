// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of this network namespace, found and closed by netlink (`sock_diag(7)`).
//!
//! The layouts are those of the kernel's `include/uapi/linux/inet_diag.h`.

use std::{io, mem::size_of};

use bytemuck::{Pod, Zeroable};
use lb_common::address::Address;
use nix::libc;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::sys;

/// The kernel sends no larger messages to a dump.
const BUFFER_LEN: usize = 1 << 16;

/// A socket, named so that the kernel finds just this one: `struct inet_diag_sockid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketId {
    /// Ports, network byte order.
    sport_be: u16,
    dport_be: u16,
    /// An IPv4 address stands in the first word.
    src: [u32; 4],
    dst: [u32; 4],
    ifindex: u32,
    cookie: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_req_v2`, after its header.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    /// A bit for each TCP state.
    states: u32,
    id: SocketId,
}

/// The start of `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Report {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
}

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    family: u8,
    protocol: u8,
    id: SocketId,
}

impl Connected {
    /// The kernel's name for it, as programs see it.
    pub fn cookie(&self) -> u64 {
        u64::from(self.id.cookie[0]) | u64::from(self.id.cookie[1]) << 32
    }

    /// Where it is connected to; an IPv6 socket may use a mapped IPv4 address.
    pub fn peer(&self) -> (Address, u16) {
        let address = match i32::from(self.family) {
            libc::AF_INET => Address::from_v4_be(self.id.dst[0]),
            _ => Address::from_words_be(self.id.dst),
        };
        (address, self.id.dport_be)
    }
}

/// A netlink socket to ask about other sockets.
pub struct SockDiag {
    socket: Socket,
}

impl SockDiag {
    /// For the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        sys::limit_receiving(&socket)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// All connected sockets of a protocol, both families.
    pub fn connected(&self, protocol: u8) -> io::Result<Vec<Connected>> {
        /// Of connected UDP sockets too.
        const ESTABLISHED: u32 = 1 << 1;
        const SYN_SENT: u32 = 1 << 2;
        const CLOSE_WAIT: u32 = 1 << 8;
        let mut sockets = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let states = ESTABLISHED | SYN_SENT | CLOSE_WAIT;
            let request = Request { family, protocol, states, ..Request::default() };
            self.send(libc::NLM_F_DUMP, SOCK_DIAG_BY_FAMILY, request)?;
            self.receive(|report| sockets.push(Connected { family: report.family, protocol, id: report.id }))?;
        }
        Ok(sockets)
    }

    /// Closes a socket under its application, which hears ECONNABORTED. Needs `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&self, socket: &Connected) -> io::Result<()> {
        let Connected { family, protocol, id } = *socket;
        self.send(libc::NLM_F_ACK, SOCK_DESTROY, Request { family, protocol, id, ..Request::default() })?;
        self.receive(|_| {})
    }

    fn send(&self, flags: i32, kind: u16, request: Request) -> io::Result<()> {
        let header = Header {
            len: size_of::<Request>() as u32,
            kind,
            flags: (libc::NLM_F_REQUEST | flags) as u16,
            ..Header::default()
        };
        self.socket.send(bytemuck::bytes_of(&Request { header, ..request }), 0).map(drop)
    }

    /// Reads messages up to the last one of an answer.
    fn receive(&self, mut take: impl FnMut(&Report)) -> io::Result<()> {
        loop {
            let mut buffer = Vec::with_capacity(BUFFER_LEN);
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while let Some((message, after)) = next_message(rest) {
                rest = after;
                match message {
                    Message::Report(report) => take(&report),
                    Message::End(0) => return Ok(()),
                    Message::End(errno) => return Err(io::Error::from_raw_os_error(-errno)),
                }
            }
        }
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

enum Message {
    Report(Report),
    /// The end of an answer, with an error number below zero if it failed.
    End(i32),
}

/// The first message in a buffer, and what follows it; `None` at the end.
fn next_message(buffer: &[u8]) -> Option<(Message, &[u8])> {
    let header: Header = bytemuck::pod_read_unaligned(buffer.get(..size_of::<Header>())?);
    let len = header.len as usize;
    let body = buffer.get(size_of::<Header>()..len)?;
    let after = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    let number = || body.get(..4).map_or(0, bytemuck::pod_read_unaligned);
    let message = match i32::from(header.kind) {
        libc::NLMSG_DONE | libc::NLMSG_ERROR => Message::End(number()),
        _ => Message::Report(bytemuck::pod_read_unaligned(body.get(..size_of::<Report>())?)),
    };
    Some((message, after))
}

const _: () = assert!(size_of::<SocketId>() == 48);
const _: () = assert!(size_of::<Request>() == 16 + 56);
const _: () = assert!(size_of::<Report>() == 52);

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd as _};

    use lb_common::flow::protocol;

    use super::*;

    /// A kernel that does not answer must not stop the one loop for good.
    #[test]
    fn no_receive_is_without_an_end() {
        let diag = SockDiag::open().unwrap();
        let start = std::time::Instant::now();
        // Nothing was asked.
        let error = diag.receive(|_| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "{:?}", start.elapsed());
    }

    #[test]
    fn a_connected_socket_is_found_by_its_cookie_and_no_other() {
        for (own, peer) in [("127.0.0.1:0", "127.0.0.1:9"), ("[::1]:0", "[::1]:9")] {
            let sockets = [own, own].map(|own| UdpSocket::bind(own).unwrap());
            let [connected, other] = &sockets;
            connected.connect(peer).unwrap();
            let cookies = sockets.each_ref().map(|socket| sys::socket_cookie(socket.as_fd()).unwrap());
            let found = SockDiag::open().unwrap().connected(protocol::UDP).unwrap();
            let one = found.iter().find(|socket| socket.cookie() == cookies[0]).unwrap();
            let (address, port_be) = one.peer();
            let peer: std::net::SocketAddr = peer.parse().unwrap();
            assert_eq!((address, u16::from_be(port_be)), (peer.ip().into(), peer.port()));
            assert!(found.iter().all(|socket| socket.cookie() != cookies[1]), "{other:?} is not connected");
        }
    }
}
