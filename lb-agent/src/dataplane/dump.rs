// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the maps hold, read back: for adoption, for the filter's sweep, and for `get`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
};

use lb_common::{
    address::{Address, Family, V4, V6},
    flow::{Flow, FlowKey, FlowState, flow_flags, protocol},
    frontend::{Backend, Target, backend_state},
    maps::{self, FILTER_EGRESS, FILTER_INGRESS},
    socket::talk_side,
};

use super::maps::{Hash, MapError, Maps};
use crate::diff::{Dump, Filter};

/// An entry of the flow table, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination as the packet arrives.
    pub arrives: [SocketAddr; 2],
    /// Source and destination as it goes on.
    pub leaves: [SocketAddr; 2],
    /// Index of the backend.
    pub backend: u32,
    /// Generation of the backend when it was chosen.
    pub generation: u32,
    /// State of the flow.
    pub state: FlowState,
    /// [`lb_common::flow::flow_flags`].
    pub flags: u8,
    /// Tick of the last packet, see [`lb_common::config`].
    pub last_seen: u32,
}

impl FlowEntry {
    fn new<F: Family>(key: &FlowKey<F>, flow: &Flow<F>) -> Self {
        let socket = |address: &F::Addr, port_be| SocketAddr::new(F::widen(address).into(), u16::from_be(port_be));
        Self {
            protocol: key.protocol,
            arrives: [socket(&key.src, key.sport_be), socket(&key.dst, key.dport_be)],
            leaves: [socket(&flow.src, flow.sport_be), socket(&flow.dst, flow.dport_be)],
            backend: flow.backend,
            generation: flow.generation,
            state: flow.state,
            flags: flow.flags,
            last_seen: flow.last_seen,
        }
    }
}

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

    /// Everything that adoption needs.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn dump(&self) -> Result<Dump, MapError> {
        let mut dump = Dump {
            names: self.names.entries()?,
            frontends: self.frontends.entries()?,
            source_ranges: self.source_ranges.entries()?,
            backends: self.live_backends(),
            tables: BTreeMap::new(),
            filter: self.filter(),
            node_addresses: self.node_addresses.entries()?.into_keys().collect(),
            interfaces: self.interfaces.entries()?,
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

    /// Both planes of the address filter.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter::from_words(self.filter.long_words().iter().map(|word| word.load(Ordering::Relaxed)).collect())
    }

    /// Calls `visit` with every entry of all flow tables. The young ones first: one that grows up meanwhile may come twice,
    /// but not be missed.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn for_each_flow(&self, mut visit: impl FnMut(FlowEntry)) -> Result<(), MapError> {
        self.young_v4.for_each(|key, flow| visit(FlowEntry::new(key, flow)))?;
        self.young_v6.for_each(|key, flow| visit(FlowEntry::new(key, flow)))?;
        self.flows_v4.for_each(|key, flow| visit(FlowEntry::new(key, flow)))?;
        self.flows_v6.for_each(|key, flow| visit(FlowEntry::new(key, flow)))
    }

    /// The flow tables: name, number of entries, and how many there can be. Counts them one by one: 0.3 s for half a million.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn flow_counts(&self) -> Result<[(&'static str, u64, u32); 4], MapError> {
        Ok([
            (maps::FLOWS_V4, self.flows_v4.count()?, self.flows_v4.capacity()),
            (maps::FLOWS_V6, self.flows_v6.count()?, self.flows_v6.capacity()),
            (maps::YOUNG_V4, self.young_v4.count()?, self.young_v4.capacity()),
            (maps::YOUNG_V6, self.young_v6.count()?, self.young_v6.capacity()),
        ])
    }

    /// Source ports in use towards that endpoint, from that address of this node, towards which most are: each such pair has the
    /// whole reserved range to itself. Looks at all flows, as [`Maps::flow_counts`] does.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn source_ports_in_use(&self) -> Result<u64, MapError> {
        let mut uses: BTreeMap<(u8, SocketAddr, IpAddr), u64> = BTreeMap::new();
        self.for_each_flow(|flow| {
            if flow.flags & (flow_flags::SNAT | flow_flags::REPLY) == flow_flags::SNAT {
                *uses.entry((flow.protocol, flow.leaves[1], flow.leaves[0].ip())).or_default() += 1;
            }
        })?;
        Ok(uses.into_values().max().unwrap_or(0))
    }

    /// Takes out of the filter what nothing needs any more: neither `needed`, nor a flow. Returns what is left.
    ///
    /// A flow that begins meanwhile belongs to a frontend and backend of now, and those are in `needed`.
    ///
    /// # Errors
    /// When the flows can't be read; the filter is untouched then.
    pub fn sweep_filter(&self, needed: &Filter) -> Result<Filter, MapError> {
        let mut keep = needed.clone();
        // In this order: see `for_each_flow`.
        add_flows::<V4>(&self.young_v4, &mut keep)?;
        add_flows::<V6>(&self.young_v6, &mut keep)?;
        add_flows::<V4>(&self.flows_v4, &mut keep)?;
        add_flows::<V6>(&self.flows_v6, &mut keep)?;
        let words = self.filter.long_words().iter().zip(keep.words());
        words.for_each(|(word, &keep)| word.store(keep, Ordering::Release));
        Ok(keep)
    }
}

fn add_flows<F: Family>(flows: &Hash<FlowKey<F>, Flow<F>>, filter: &mut Filter) -> Result<(), MapError>
where
    FlowKey<F>: bytemuck::Pod,
    Flow<F>: bytemuck::Pod,
{
    flows.for_each(|key, flow| {
        let (plane, address): (u32, Address) = match flow.is_at_egress() {
            true => (FILTER_EGRESS, F::widen(&key.src)),
            false => (FILTER_INGRESS, F::widen(&key.dst)),
        };
        filter.insert(plane, &address);
    })
}
