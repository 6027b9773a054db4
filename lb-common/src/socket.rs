// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the socket door remembers of a socket that it sent to a backend: so that the application is shown the Service's
//! address, that its datagrams keep together, and that the agent finds the sockets whose backend has gone.
//!
//! Both maps are LRUs. Without its entry a socket works on: the application sees the backend's own address then, its next
//! datagram may go to another backend, and the agent does not close the socket when the backend goes.

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, frontend::NO_BACKEND};

/// What is remembered of a connected socket, by its cookie: the kernel's name for it, never used twice while the machine
/// runs. The entry goes when the socket is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketEntry {
    /// The address that the application named.
    pub address: Address,
    /// That of the backend, also for a v6 socket that uses IPv4.
    pub backend_address: Address,
    /// Port to [`SocketEntry::address`], network byte order.
    pub port_be: u16,
    /// Port to [`SocketEntry::backend_address`], network byte order.
    pub backend_port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`socket_flags`].
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Index of the backend; [`NO_BACKEND`] for UDP that was refused, which is connected to nobody.
    pub backend: u32,
    /// Its generation when it was chosen; another one now says that it has gone.
    pub generation: u32,
}

/// Bits of [`SocketEntry::flags`].
pub mod socket_flags {
    /// TCP that is reset when its backend goes (`shunt.dev/on-backend-removal: reset`).
    pub const RESET: u8 = 1;
    /// The application had chosen the socket's address before it connected, which chooses one too.
    pub const BOUND: u8 = 2;
}

impl SocketEntry {
    /// Whether the socket is connected to nobody, for there was nobody to serve it.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        self.backend == NO_BACKEND
    }

    /// Whether the socket is to be closed when its backend goes: connected UDP follows its Service only so.
    #[must_use]
    pub const fn is_closed_with_backend(&self) -> bool {
        self.flags & socket_flags::RESET != 0 || self.protocol == crate::flow::protocol::UDP
    }
}

/// One end of what a UDP socket without a connection says to a Service. There are two entries for each such talk: one finds
/// the backend by the Service's address, so that the next datagram goes there too, one the Service's address by the
/// backend's, so that the application is shown whom it asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct TalkKey {
    /// The socket's, see [`SocketEntry`].
    pub cookie: u64,
    /// The Service's, or the backend's.
    pub address: Address,
    /// Its port, network byte order.
    pub port_be: u16,
    /// [`talk_side`]: whose address it is.
    pub side: u16,
    /// Zero: hash maps compare padding too.
    pub pad: [u8; 4],
}

/// Values of [`TalkKey::side`].
pub mod talk_side {
    /// The Service's, as the application knows it.
    pub const SERVICE: u16 = 0;
    /// The backend's.
    pub const BACKEND: u16 = 1;
}

impl TalkKey {
    /// The key of a socket's talk by one of its ends.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, address: Address, port_be: u16, side: u16) -> Self {
        Self { cookie, address, port_be, side, pad: [0; 4] }
    }
}

/// The other end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TalkEntry {
    /// The backend's address, or the Service's.
    pub address: Address,
    /// Its port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: [u8; 2],
    /// Index of the backend.
    pub backend: u32,
    /// Its generation when it was chosen; another one now says that it has gone.
    pub generation: u32,
}

/// Which sockets the door serves.
pub mod socket_mode {
    /// Those of the node's own network namespace.
    pub const HOST: u64 = 0;
    /// All below the cgroup.
    pub const ALL: u64 = 1;
}

/// The third word of [`crate::trace::TraceRecord::cookie`] where the question is asked by a socket, whose cookie is in the
/// first two, and not by a packet. The fourth is zero until the program has answered, then [`TRACE_ANSWERED`].
pub const TRACE_SOCKET: u32 = 0x534f_434b;

/// See [`TRACE_SOCKET`].
pub const TRACE_ANSWERED: u32 = 1;

/// What affinity knows a client by that has no address yet: the cookie of its network namespace, as an address in the
/// discard-only prefix `100::/64` (RFC 6666), in which there is no client.
#[inline(always)]
#[must_use]
pub const fn namespace_client(cookie: u64) -> Address {
    Address::from_words_be([0x0100_0000_u32.to_be(), 0, (cookie >> 32) as u32, cookie as u32])
}

const _: () = assert!(size_of::<SocketEntry>() == 48);
const _: () = assert!(size_of::<TalkKey>() == 32);
const _: () = assert!(size_of::<TalkEntry>() == 28);

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::flow::protocol;

    #[test]
    fn a_namespace_is_no_address_of_a_client() {
        for cookie in [1, u64::MAX] {
            let IpAddr::V6(v6) = namespace_client(cookie).into() else { panic!("no IPv4 address") };
            assert_eq!(v6.segments()[..4], [0x100, 0, 0, 0]);
        }
        assert_ne!(namespace_client(1), namespace_client(1 << 32));
    }

    #[test]
    fn only_udp_and_tcp_with_reset_end_with_their_backend() {
        let entry = |protocol, flags| SocketEntry { protocol, flags, ..Zeroable::zeroed() };
        for (protocol, flags, is_closed) in [
            (protocol::UDP, 0, true),
            (protocol::UDP, socket_flags::BOUND, true),
            (protocol::TCP, socket_flags::BOUND, false),
            (protocol::TCP, socket_flags::RESET, true),
        ] {
            assert_eq!(entry(protocol, flags).is_closed_with_backend(), is_closed);
        }
    }
}
