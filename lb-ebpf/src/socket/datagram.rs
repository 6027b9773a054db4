// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! UDP of a socket without a connection (a pseudo-connection): the backend that it talks to, and the Service that the answers are from.

use lb_common::{
    address::Address,
    socket::{TalkEntry, TalkKey, talk_side},
};

use super::context::{Socket, SocketFamily};
use crate::kernel::maps;

/// Whether a datagram goes where the one before it went: to the backend of that Service that this socket has talked to, or is
/// connected to, while it is there. Decided once, like a flow of packets, for as long as the address is that Service's.
#[inline(always)]
pub fn goes_on<F: SocketFamily>(socket: &Socket<F>, address: &Address, port_be: u16, service: u32) -> bool {
    let cookie = socket.cookie();
    // From another backend than that it is connected to an answer would never reach it.
    if socket.is_connected()
        && let Some(entry) = maps::find_socket(cookie)
        && entry.address.is(address)
        && entry.port_be == port_be
        && is_there(entry.backend, entry.generation, service)
    {
        socket.set_peer(&entry.backend_address, entry.backend_port_be);
        return true;
    }
    let Some(talk) = maps::find_talk(&TalkKey::new(cookie, *address, port_be, talk_side::SERVICE)) else {
        return false;
    };
    if !is_there(talk.backend, talk.generation, service) {
        return false;
    }
    remember_service(cookie, (address, port_be), &talk);
    socket.set_peer(&talk.address, talk.port_be);
    true
}

#[inline(always)]
fn is_there(backend: u32, generation: u32, service: u32) -> bool {
    maps::find_backend(backend).is_some_and(|backend| backend.generation == generation && backend.service == service)
}

/// Sees to it that answers of the backend of a talk are shown as the Service's. The entry may have been evicted, or the socket
/// may have asked this backend through another Service since.
#[inline(always)]
pub fn remember_service(cookie: u64, service: (&Address, u16), talk: &TalkEntry) {
    let key = TalkKey::new(cookie, talk.address, talk.port_be, talk_side::BACKEND);
    let entry = TalkEntry { address: *service.0, port_be: service.1, ..*talk };
    if maps::find_talk(&key).is_none_or(|known| known != entry) {
        maps::put_talk(&key, &entry);
    }
}
