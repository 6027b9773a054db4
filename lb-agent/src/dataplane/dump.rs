// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the maps hold, read back: for adoption, for `get`, and for whoever asks what a socket or a flow is of now. (Flows: see
//! `flows`.)

use std::{collections::BTreeMap, net::SocketAddr, sync::atomic::Ordering};

use lb_common::{
    address::Address,
    flow::protocol,
    frontend::{Backend, Frontend, FrontendKey, Scope, Target, backend_state, frontend_flags},
    socket::{SocketEntry, talk_side},
};

use super::maps::{MapError, Maps};
use crate::diff::{Dump, Filter};

/// A socket that the socket door has sent to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketUse {
    /// The kernel's name for it.
    pub cookie: u64,
    /// IP protocol number.
    pub protocol: u8,
    /// The address that its application knows.
    pub frontend: SocketAddr,
    /// Where its packets go.
    pub backend: SocketAddr,
    /// Index of the backend.
    pub backend_index: u32,
    /// Whether it is connected there; else it sends datagrams.
    pub is_connected: bool,
    /// Whether its backend has gone.
    pub is_stale: bool,
}

impl Maps {
    /// All sockets that the socket door remembers: those that are connected, and those that have sent without a connection.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn socket_uses(&self) -> Result<Vec<SocketUse>, MapError> {
        let socket = |address: Address, port_be| SocketAddr::new(address.into(), u16::from_be(port_be));
        let mut uses = Vec::new();
        self.sockets.for_each(|&cookie, entry| {
            uses.push(SocketUse {
                cookie,
                protocol: entry.protocol,
                frontend: socket(entry.address, entry.port_be),
                backend: socket(entry.backend_address, entry.backend_port_be),
                backend_index: entry.backend,
                is_connected: true,
                is_stale: self.has_gone(entry.backend, entry.generation),
            });
        })?;
        self.talks.for_each(|key, entry| {
            if key.side == talk_side::SERVICE {
                uses.push(SocketUse {
                    cookie: key.cookie,
                    protocol: protocol::UDP,
                    frontend: socket(key.address, key.port_be),
                    backend: socket(entry.address, entry.port_be),
                    backend_index: entry.backend,
                    is_connected: false,
                    is_stale: self.has_gone(entry.backend, entry.generation),
                });
            }
        })?;
        Ok(uses)
    }

    /// Whether a backend has gone since it had that generation.
    pub(super) fn has_gone(&self, backend: u32, generation: u32) -> bool {
        let backend = self.backends.get(backend).unwrap_or_default();
        backend.state == backend_state::FREE || backend.generation != generation
    }

    /// What an address, port and protocol are a frontend of now.
    pub(super) fn frontend_at(&self, own: &FrontendKey) -> Result<Option<Frontend>, MapError> {
        let frontend = self.frontends.get(own)?;
        if frontend.is_some() || !self.has_node_ports(own.address)? {
            return Ok(frontend);
        }
        self.frontends.get(&own.to_node_port())
    }

    /// Whether NodePorts are served at an address.
    pub(super) fn has_node_ports(&self, address: Address) -> Result<bool, MapError> {
        Ok(address.is_this_machine() || self.node_addresses.get(&address)?.is_some())
    }

    fn frontend_of(&self, socket: &SocketEntry) -> Result<Option<Frontend>, MapError> {
        self.frontend_at(&FrontendKey::new(socket.address, socket.port_be, socket.protocol))
    }

    /// Whether a socket that was connected to nobody would be served now.
    ///
    /// # Errors
    /// When a map can't be read.
    pub(super) fn would_serve(&self, socket: &SocketEntry) -> Result<bool, MapError> {
        // Those that its source shuts out would only be refused again.
        Ok(self.frontend_of(socket)?.is_some_and(|frontend| {
            frontend.target(Scope::Internal).slots != 0 && frontend.flags & frontend_flags::SOURCE_RANGES == 0
        }))
    }

    /// Whether a socket's address is no longer the Service's whose backend it is connected to.
    ///
    /// # Errors
    /// When a map can't be read.
    pub(super) fn has_lost_frontend(&self, socket: &SocketEntry) -> Result<bool, MapError> {
        let of = self.backends.get(socket.backend).unwrap_or_default().service;
        Ok(self.frontend_of(socket)?.is_none_or(|frontend| frontend.service != of))
    }

    /// Everything that adoption needs.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn dump(&self) -> Result<Dump, MapError> {
        let frontends = self.frontends.entries()?.into_iter();
        let mut dump = Dump {
            names: self.names.entries()?,
            frontends: frontends.map(|(key, frontend)| (key, frontend.untagged())).collect(),
            source_ranges: self.source_ranges.entries()?,
            backends: self.live_backends(),
            tables: BTreeMap::new(),
            filter: self.filter(),
            node_addresses: self.node_addresses.entries()?.into_keys().collect(),
            interfaces: self.interfaces.entries()?,
            clock: self.ticker.clock(),
        };
        let targets = dump.frontends.values().flat_map(|frontend| frontend.targets);
        dump.tables = targets.filter_map(|target| Some((target.offset, self.table(target)?))).collect();
        Ok(dump)
    }

    /// The slots of a table; `None` where it is empty or lies outside the array.
    #[must_use]
    pub fn table(&self, target: Target) -> Option<Vec<u32>> {
        let start = target.offset as usize;
        let slots = self.tables.words().get(start..start + target.slots as usize)?;
        (!slots.is_empty()).then(|| slots.iter().map(|slot| slot.load(Ordering::Relaxed)).collect())
    }

    /// All backends by index, without the untouched rest of the array.
    #[must_use]
    pub fn live_backends(&self) -> Vec<Backend> {
        let all = (0..self.backends.capacity()).filter_map(|index| self.backends.get(index));
        let mut backends: Vec<_> = all.collect();
        let used = backends.iter().rposition(|backend| *backend != Backend::default()).map_or(0, |last| last + 1);
        backends.truncate(used);
        backends
    }

    /// The filter.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter::from_words(self.filter.long_words().iter().map(|word| word.load(Ordering::Relaxed)))
    }
}
