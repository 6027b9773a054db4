// SPDX-License-Identifier: MIT OR Apache-2.0
//! Session affinity: which backend a client was given last.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    flow::elapsed,
    setup::{Frontend, List, Setup},
};

/// What a client stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Index of the backend.
    pub backend: u32,
    /// Its generation then.
    pub generation: u32,
    /// Tick of the client's last new flow.
    pub last_used: u32,
}

/// The affinity table, by Service port and client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinities(pub BTreeMap<(u32, IpAddr), Affinity>);

impl Affinities {
    /// The backend that a client stays with, if it still may: the client has not been idle for too long, and the backend is
    /// still there and in the list that serves this client (rule 56).
    pub(super) fn find(&self, setup: &Setup, frontend: &Frontend, list: List, client: IpAddr, now: u32) -> Option<u32> {
        let timeout = frontend.affinity?;
        let affinity = self.0.get(&(frontend.service, client))?;
        let backend = setup.backend(affinity.backend)?;
        let is_idle = elapsed(now, affinity.last_used) > timeout;
        let is_there = backend.address.is_some() && backend.generation == affinity.generation;
        (!is_idle && is_there && backend.is_in(list)).then_some(affinity.backend)
    }

    /// Notes what a client was given for a new flow.
    pub(super) fn note(&mut self, setup: &Setup, service: u32, client: IpAddr, (backend, now): (u32, u32)) {
        let generation = setup.backend(backend).expect("a backend that was chosen").generation;
        self.0.insert((service, client), Affinity { backend, generation, last_used: now });
    }
}
