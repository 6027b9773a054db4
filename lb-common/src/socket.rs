// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the socket door remembers of a socket that it sent to a backend: so that the application is shown the Service's
//! address, and the agent finds the sockets whose backend has gone.
//!
//! The map is an LRU. Without its entry a socket works on: the application sees the backend's own address then, and the
//! agent does not close the socket when the backend goes.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;

/// A socket and the backend that it was sent to. A UDP socket without a connection may have been sent to many.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SocketKey {
    /// The kernel's name for the socket, never used twice while the machine runs.
    pub cookie: u64,
    /// The backend, also for a v6 socket that uses IPv4.
    pub address: Address,
    /// Its port, network byte order.
    pub port_be: u16,
    /// Zero: hash maps compare padding too.
    pub pad: [u8; 6],
}

impl SocketKey {
    /// The key of a socket at a backend.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, address: Address, port_be: u16) -> Self {
        Self { cookie, address, port_be, pad: [0; 6] }
    }
}

/// Bits of [`SocketEntry::flags`].
pub mod socket_flags {
    /// The socket is connected to the backend, and follows its Service only by being closed.
    pub const CONNECTED: u8 = 1;
    /// TCP that is reset when its backend goes (`shunt.dev/on-backend-removal: reset`).
    pub const RESET: u8 = 2;
}

/// Where the application believes its peer to be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketEntry {
    /// The address that the application named.
    pub address: Address,
    /// Its port, network byte order.
    pub port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`socket_flags`].
    pub flags: u8,
    /// Index of the backend.
    pub backend: u32,
    /// Its generation when it was chosen; another one now says that it has gone.
    pub generation: u32,
}

impl SocketEntry {
    /// Whether the socket is to be closed when its backend goes.
    #[must_use]
    pub const fn is_closed_with_backend(&self) -> bool {
        let is_udp = self.protocol == crate::flow::protocol::UDP;
        self.flags & socket_flags::RESET != 0 || (is_udp && self.flags & socket_flags::CONNECTED != 0)
    }
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

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<SocketEntry>() == 28);

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
    fn only_connected_udp_and_tcp_with_reset_end_with_their_backend() {
        let entry = |protocol, flags| SocketEntry { protocol, flags, ..Zeroable::zeroed() };
        for (protocol, flags, is_closed) in [
            (protocol::UDP, socket_flags::CONNECTED, true),
            (protocol::UDP, 0, false),
            (protocol::TCP, socket_flags::CONNECTED, false),
            (protocol::TCP, socket_flags::CONNECTED | socket_flags::RESET, true),
        ] {
            assert_eq!(entry(protocol, flags).is_closed_with_backend(), is_closed);
        }
    }
}
