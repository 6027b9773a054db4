// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of every answer, with the field names that scripts rely on. Pure but for [`maps`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    clock::Clock,
    counters::{BackendCounters, ServiceCounters},
    flow::flow_flags,
    frontend::{Backend, Frontend, FrontendKey, NO_BACKEND, Target, backend_flags, backend_state},
};
use serde::Serialize;

use crate::{
    compile::UnitId,
    dataplane::{Census, Counters, FlowEntry, MapError, Maps, Pins, SocketUse},
    diff::{Dump, ProtocolText, unit_of_name},
};

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    #[serde(flatten)]
    pub service: ServiceRef,
    /// Where it is reached.
    pub frontends: Vec<FrontendRow>,
    /// Backends that get new flows.
    pub backends: u64,
    /// Backends that only keep theirs.
    pub draining_backends: u64,
    /// New flows that got a backend.
    pub flows: u64,
    /// Packets answered with an ICMP error.
    pub rejected_packets: u64,
    /// Packets dropped.
    pub dropped_packets: u64,
    /// Packets translated, both directions, by the backends of now.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Index of the Service port in the maps.
    pub index: u32,
}

/// Which Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ServiceRef {
    pub namespace: String,
    pub name: String,
    /// Name of the port; empty where it has none.
    pub port: String,
    pub protocol: String,
    /// 4 or 6.
    pub ip_version: u8,
}

/// Where a Service port is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontendRow {
    /// `null` for a node port, which is reached at the node's addresses.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// Backends for clients on this node.
    pub internal_backends: usize,
    /// Backends for the others.
    pub external_backends: usize,
}

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    #[serde(flatten)]
    pub service: ServiceRef,
    pub address: IpAddr,
    pub backend_port: u16,
    /// `active` or `draining`.
    pub state: &'static str,
    /// Whether it runs on this node.
    pub local: bool,
    pub flows: u64,
    /// Flows of now that are established.
    pub active_flows: u64,
    /// Flows of now that begin or end.
    pub inactive_flows: u64,
    /// From clients.
    pub packets_original: u64,
    /// To clients.
    pub packets_reply: u64,
    pub bytes_original: u64,
    pub bytes_reply: u64,
    pub index: u32,
    /// How often its index was freed before.
    pub generation: u32,
}

/// A direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRow {
    pub protocol: String,
    /// `original` or `reply`.
    pub direction: &'static str,
    /// As the packet arrives.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// As it goes on.
    pub translated_source: SocketAddr,
    pub translated_destination: SocketAddr,
    pub state: &'static str,
    /// Whether the client's address is translated.
    pub source_translated: bool,
    /// Since the last packet; a second or so too little or too much.
    pub idle_secs: u64,
    /// The Service port, unless its backend has gone.
    pub service: Option<ServiceRef>,
    pub backend_index: u32,
    /// Whether the backend has gone since.
    pub stale: bool,
}

/// A socket at a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketRow {
    pub protocol: String,
    /// The address that the application knows.
    pub frontend: SocketAddr,
    /// Where the packets go.
    pub backend: SocketAddr,
    /// Whether it is connected there; else it sends datagrams to this backend, and maybe to others.
    pub connected: bool,
    /// The Service port, unless its backend has gone.
    pub service: Option<ServiceRef>,
    pub backend_index: u32,
    /// Whether the backend has gone since.
    pub stale: bool,
    /// The kernel's name for the socket, as `ss -e` shows it in hexadecimal.
    pub cookie: u64,
}

/// A lookup table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MaglevRow {
    #[serde(flatten)]
    pub service: ServiceRef,
    /// The table's first slot.
    pub offset: u32,
    pub slots: u32,
    /// Whose flows are decided by it: `internal`, `external` or `both`.
    pub clients: &'static str,
    pub shares: Vec<ShareRow>,
}

/// A backend's part of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShareRow {
    /// `null` where the slot names a backend that is not there, which must not be.
    pub backend: Option<SocketAddr>,
    pub index: u32,
    pub slots: u32,
    pub percent: f64,
}

/// A map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapRow {
    pub name: &'static str,
    /// Elements in use; `null` for arrays that are always whole.
    pub entries: Option<u64>,
    pub capacity: u64,
    /// As the kernel accounts for it (exact since Linux 6.4).
    pub memory_bytes: u64,
}

impl ServiceRef {
    fn new(id: &UnitId) -> Self {
        Self {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            port: id.port_name.clone(),
            protocol: ProtocolText(id.protocol).to_string(),
            ip_version: if id.is_v4 { 4 } else { 6 },
        }
    }
}

/// Service ports by index. One without a readable name is not shown: the next sync removes it.
fn service_refs(dump: &Dump) -> BTreeMap<u32, ServiceRef> {
    let named = |(&index, name)| Some((index, ServiceRef::new(&unit_of_name(name)?)));
    dump.names.iter().filter_map(named).collect()
}

fn live(dump: &Dump) -> impl Iterator<Item = (u32, &Backend)> {
    (0..).zip(&dump.backends).filter(|(_, backend)| backend.state != backend_state::FREE)
}

fn find_live(dump: &Dump, index: u32) -> Option<&Backend> {
    dump.backends.get(index as usize).filter(|backend| backend.state != backend_state::FREE)
}

fn socket(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address.into(), u16::from_be(backend.port_be))
}

/// The rows of `get services`.
pub fn services(dump: &Dump, counters: &Counters) -> Vec<ServiceRow> {
    let mut rows: BTreeMap<u32, ServiceRow> =
        service_refs(dump).into_iter().map(|(index, service)| (index, idle_row(index, service, counters))).collect();
    let serving = dump.frontends.iter().filter(|(key, _)| **key != FrontendKey::any_port(key.address));
    for (key, frontend) in serving {
        if let Some(row) = rows.get_mut(&frontend.service) {
            row.frontends.push(frontend_row(dump, key, frontend));
        }
    }
    for (index, backend) in live(dump) {
        let Some(row) = rows.get_mut(&backend.service) else { continue };
        let is_active = backend.state == backend_state::ACTIVE;
        *(if is_active { &mut row.backends } else { &mut row.draining_backends }) += 1;
        let traffic = counters.backends.get(&index).copied().unwrap_or_default();
        row.packets += traffic.packets.iter().sum::<u64>();
        row.bytes += traffic.bytes.iter().sum::<u64>();
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    rows
}

/// A Service port before its frontends and backends are added.
fn idle_row(index: u32, service: ServiceRef, counters: &Counters) -> ServiceRow {
    let ServiceCounters { flows, rejected, dropped } = counters.services.get(&index).copied().unwrap_or_default();
    ServiceRow {
        service,
        frontends: Vec::new(),
        backends: 0,
        draining_backends: 0,
        flows,
        rejected_packets: rejected,
        dropped_packets: dropped,
        packets: 0,
        bytes: 0,
        index,
    }
}

fn frontend_row(dump: &Dump, key: &FrontendKey, frontend: &Frontend) -> FrontendRow {
    let is_node_port = key.is_node_port();
    let [internal_backends, external_backends] = frontend.targets.map(|target| {
        let slots = table(dump, target).iter();
        slots.collect::<BTreeSet<_>>().len()
    });
    FrontendRow {
        address: (!is_node_port).then(|| key.address.into()),
        port: u16::from_be(key.port_be),
        internal_backends,
        external_backends,
    }
}

fn table(dump: &Dump, target: Target) -> &[u32] {
    if target.slots == 0 { &[] } else { dump.tables.get(&target.offset).map_or(&[], Vec::as_slice) }
}

/// The rows of `get backends`.
pub fn backends(dump: &Dump, counters: &Counters, census: &Census) -> Vec<BackendRow> {
    let services = service_refs(dump);
    let row = |(index, backend): (u32, &Backend)| {
        let BackendCounters { packets, bytes, flows } = counters.backends.get(&index).copied().unwrap_or_default();
        let open = census.backends.get(&index).copied().unwrap_or_default();
        Some(BackendRow {
            service: services.get(&backend.service)?.clone(),
            address: backend.address.into(),
            backend_port: u16::from_be(backend.port_be),
            state: if backend.state == backend_state::ACTIVE { "active" } else { "draining" },
            local: backend.flags & backend_flags::LOCAL != 0,
            flows,
            active_flows: open.active,
            inactive_flows: open.inactive,
            packets_original: packets[0],
            packets_reply: packets[1],
            bytes_original: bytes[0],
            bytes_reply: bytes[1],
            index,
            generation: backend.generation,
        })
    };
    let mut rows: Vec<_> = live(dump).filter_map(row).collect();
    rows.sort_by(|a, b| (&a.service, a.address, a.backend_port).cmp(&(&b.service, b.address, b.backend_port)));
    rows
}

/// Makes the rows of `get flows`, one by one.
pub struct FlowRows<'a> {
    services: BTreeMap<u32, ServiceRef>,
    backends: &'a [Backend],
    clock: Clock,
}

impl<'a> FlowRows<'a> {
    /// With the Services and backends of now.
    pub fn new(dump: &'a Dump) -> Self {
        Self { services: service_refs(dump), backends: &dump.backends, clock: dump.clock }
    }

    /// The row of an entry.
    pub fn row(&self, flow: &FlowEntry) -> FlowRow {
        let backend = self
            .backends
            .get(flow.backend as usize)
            .filter(|backend| backend.state != backend_state::FREE && backend.generation == flow.generation);
        FlowRow {
            protocol: ProtocolText(flow.protocol).to_string(),
            direction: if flow.flags & flow_flags::REPLY == 0 { "original" } else { "reply" },
            source: flow.arrives[0],
            destination: flow.arrives[1],
            translated_source: flow.leaves[0],
            translated_destination: flow.leaves[1],
            state: flow.state.as_str(),
            source_translated: flow.has_other_source(),
            idle_secs: u64::from(flow.idle_ticks) * self.clock.tick_ns() / 1_000_000_000,
            service: backend.and_then(|backend| self.services.get(&backend.service).cloned()),
            backend_index: flow.backend,
            // One of a pod to a backend itself is no Service's.
            stale: backend.is_none() && flow.backend != NO_BACKEND,
        }
    }
}

/// The rows of `get sockets`.
pub fn sockets(uses: &[SocketUse], dump: &Dump) -> Vec<SocketRow> {
    let services = service_refs(dump);
    let row = |one: &SocketUse| {
        let backend = find_live(dump, one.backend_index).filter(|_| !one.is_stale);
        SocketRow {
            protocol: ProtocolText(one.protocol).to_string(),
            frontend: one.frontend,
            backend: one.backend,
            connected: one.is_connected,
            service: backend.and_then(|backend| services.get(&backend.service).cloned()),
            backend_index: one.backend_index,
            stale: one.is_stale,
            cookie: one.cookie,
        }
    };
    let mut rows: Vec<_> = uses.iter().map(row).collect();
    rows.sort_by(|a, b| {
        (&a.protocol, a.frontend, a.backend, a.cookie).cmp(&(&b.protocol, b.frontend, b.backend, b.cookie))
    });
    rows
}

/// The rows of `get maglev`: a table that several frontends share is one row.
pub fn maglev(dump: &Dump) -> Vec<MaglevRow> {
    let services = service_refs(dump);
    let mut users: BTreeMap<(u32, u32), (Target, [bool; 2])> = BTreeMap::new();
    for frontend in dump.frontends.values() {
        for (scope, target) in frontend.targets.into_iter().enumerate().filter(|(_, target)| target.slots > 0) {
            let (_, scopes) = users.entry((frontend.service, target.offset)).or_insert((target, [false; 2]));
            scopes[scope] = true;
        }
    }
    let row = |((service, offset), (target, scopes)): (&(u32, u32), &(Target, [bool; 2]))| {
        let clients = match scopes {
            [true, true] => "both",
            [true, false] => "internal",
            _ => "external",
        };
        let service = services.get(service)?.clone();
        Some(MaglevRow { service, offset: *offset, slots: target.slots, clients, shares: shares(dump, *target) })
    };
    let mut rows: Vec<_> = users.iter().filter_map(row).collect();
    rows.sort_by(|a, b| (&a.service, a.offset).cmp(&(&b.service, b.offset)));
    rows
}

fn shares(dump: &Dump, target: Target) -> Vec<ShareRow> {
    let mut slots = BTreeMap::<u32, u32>::new();
    table(dump, target).iter().for_each(|&slot| *slots.entry(slot).or_default() += 1);
    let share = |(index, slots): (u32, u32)| ShareRow {
        backend: find_live(dump, index).map(socket),
        index,
        slots,
        percent: (f64::from(slots) * 10_000.0 / f64::from(target.slots)).round() / 100.0,
    };
    slots.into_iter().map(share).collect()
}

/// The rows of `get maps`.
pub fn maps(pins: &Pins, maps: &Maps) -> Result<Vec<MapRow>, MapError> {
    let row = |usage: crate::dataplane::MapUsage| MapRow {
        name: usage.name,
        entries: usage.entries,
        capacity: usage.capacity,
        memory_bytes: usage.memory_bytes,
    };
    Ok(maps.usage(pins)?.into_iter().map(row).collect())
}
