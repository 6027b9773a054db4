// SPDX-License-Identifier: MIT OR Apache-2.0
//! The maps: a reference [`Setup`] written into them as the agent would, counters and flows read out.

use std::{collections::BTreeMap, net::IpAddr, ops::AddAssign};

use anyhow::{Context, Result, anyhow};
use bytemuck::Pod;
use lb_agent::dataplane::cpu_numbers;
use lb_common::{
    address::{Address, V4, V6},
    config::{self, Config},
    counters::{BackendCounters, RejectBudget, ServiceCounters, place},
    filter::Filter,
    flow::Evicted,
    fragment::{Fragment, FragmentKey},
    frontend::{self, AffinityKey, FrontendKey, Target},
    maps::{self as names, Chunk, SLOTS_PER_CHUNK, globals},
    trace::TraceRecord,
    verdict::Reason,
};

use super::{
    bpf::Map,
    clock,
    convert::{
        backend_of, config_of, fill_filter, fragment_key_of, fragment_of, frontend_flags_of, frontend_key_of,
        interface_of, source_range_of,
    },
    flows::{FlowTable, TABLE_KEY},
    object::Object,
    rig::Room,
};
use crate::reference::{Affinity, Counters, Datagram, Entry, Ports, Setup, Tuple, Version};

/// Capacities of the maps that tests have need of; small, as each test makes its own.
pub const BACKENDS: u32 = 64;
const CHUNKS: u32 = 1024;
const FRONTENDS: u32 = 256;
const SERVICES: u32 = 64;
const AFFINITY: u32 = 4_096;

/// All of them, by name, with this room for flow entries.
///
/// # Errors
/// When the number of CPUs can't be read.
pub fn capacities(room: Room) -> Result<[(&'static str, u32); 8]> {
    let cpus = cpu_numbers()?;
    Ok([
        (names::BACKENDS, BACKENDS),
        (names::BACKEND_COUNTERS, BACKENDS * cpus),
        (names::TABLES, CHUNKS),
        (names::FRONTENDS, FRONTENDS),
        (names::SERVICE_COUNTERS, SERVICES * cpus),
        (names::FLOWS_V4, room.sets()),
        (names::FLOWS_V6, room.sets()),
        (names::AFFINITY, AFFINITY),
    ])
}

/// What the programs are told of these capacities and of the clock, by the names of their globals.
#[must_use]
pub fn globals(room: Room) -> [(&'static str, u64); 8] {
    let (mask, clock) = (u64::from(room.sets() - 1), clock::clock());
    [
        (globals::BACKENDS_A_CPU, BACKENDS.into()),
        (globals::SERVICES_A_CPU, SERVICES.into()),
        (globals::HZ, clock.hz().into()),
        (globals::TICK_SHIFT, clock.shift().into()),
        (globals::TABLE_KEY_0, TABLE_KEY[0]),
        (globals::TABLE_KEY_1, TABLE_KEY[1]),
        (globals::FLOW_MASK_V4, mask),
        (globals::FLOW_MASK_V6, mask),
    ]
}

/// The object's maps.
pub struct Maps {
    config: Map<u32, Config>,
    frontends: Map<FrontendKey, frontend::Frontend>,
    backends: Map<u32, frontend::Backend>,
    tables: Map<u32, Chunk>,
    flows_v4: FlowTable<V4>,
    flows_v6: FlowTable<V6>,
    evictions: Map<u32, u64>,
    fragments: Map<FragmentKey, Fragment>,
    filter: Map<u32, Filter>,
    node_addresses: Map<Address, u32>,
    affinity: Map<AffinityKey, frontend::Affinity>,
    source_ranges: Map<[u32; 6], u32>,
    interfaces: Map<u32, config::Interface>,
    reasons: Map<u32, u64>,
    backend_counters: Map<u32, BackendCounters>,
    service_counters: Map<u32, ServiceCounters>,
    reject_budget: Map<u32, RejectBudget>,
    trace: Map<u32, TraceRecord>,
}

impl Maps {
    /// The maps of an object that was loaded with [`capacities`].
    pub fn of(object: &Object, room: Room) -> Result<Self> {
        let sets = room.sets();
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow!("can't read {path}: {error}"))?;
        Ok(Self {
            config: object.map(names::CONFIG, 1)?,
            frontends: object.map(names::FRONTENDS, 1)?,
            backends: object.map(names::BACKENDS, 1)?,
            tables: object.map(names::TABLES, 1)?,
            flows_v4: FlowTable::of(object, names::FLOWS_V4, names::NEXT_HOPS_V4, sets)?,
            flows_v6: FlowTable::of(object, names::FLOWS_V6, names::NEXT_HOPS_V6, sets)?,
            evictions: object.map(names::EVICTIONS, cpus)?,
            fragments: object.map(names::FRAGMENTS, 1)?,
            filter: object.map(names::FILTER, 1)?,
            node_addresses: object.map(names::NODE_ADDRESSES, 1)?,
            affinity: object.map(names::AFFINITY, 1)?,
            source_ranges: object.map(names::SOURCE_RANGES, 1)?,
            interfaces: object.map(names::INTERFACES, 1)?,
            reasons: object.map(names::REASONS, cpus)?,
            backend_counters: object.map(names::BACKEND_COUNTERS, 1)?,
            service_counters: object.map(names::SERVICE_COUNTERS, 1)?,
            reject_budget: object.map(names::REJECT_BUDGET, cpus)?,
            trace: object.map(names::TRACE, 1)?,
        })
    }

    /// Writes a setup over the one before. Flows and counters stay.
    pub fn apply(&self, setup: &Setup) -> Result<()> {
        self.config.put(&0, &config_of(setup))?;
        for (index, backend) in (0..).zip(&setup.backends) {
            self.backends.put(&index, &backend_of(backend))?;
        }
        let mut filter: Box<Filter> = bytemuck::allocation::zeroed_box();
        // What the programs have set there stays.
        filter.directs.copy_from_slice(&self.filter.get_boxed(&0)?.directs);
        fill_filter(&mut filter, setup);
        self.filter.put(&0, &filter)?;
        let ranges = setup
            .source_ranges
            .iter()
            .flat_map(|(&service, ranges)| ranges.iter().map(move |range| (source_range_of(service, range), 0)));
        replace(&self.source_ranges, ranges)?;
        self.apply_frontends(setup)?;
        replace(&self.node_addresses, setup.node_port_addresses.iter().map(|&address| (address.into(), 0)))?;
        replace(&self.interfaces, setup.interfaces.keys().map(|&index| (index, interface_of(setup, index))))
    }

    /// Tables first, each from a new chunk on, then the frontends that name them.
    fn apply_frontends(&self, setup: &Setup) -> Result<()> {
        let mut next_chunk = 0;
        let mut frontends = Vec::new();
        for (&(place, port, protocol), frontend) in &setup.frontends {
            let mut targets = [Target::default(); 2];
            for (target, slots) in targets.iter_mut().zip(&frontend.tables) {
                *target = Target { offset: next_chunk * SLOTS_PER_CHUNK, slots: slots.len() as u32 };
                for slots in slots.chunks(SLOTS_PER_CHUNK as usize) {
                    let mut chunk = Chunk::default();
                    chunk[..slots.len()].copy_from_slice(slots);
                    self.tables.put(&next_chunk, &chunk)?;
                    next_chunk += 1;
                }
            }
            let (service, flags) = (frontend.service, frontend_flags_of(frontend));
            let affinity_timeout = frontend.affinity.unwrap_or(0);
            frontends.push((
                frontend_key_of(place, port, protocol),
                frontend::Frontend { service, flags, affinity_timeout, targets },
            ));
        }
        let guards = setup.guarded.iter().map(|&address| FrontendKey::any_port(address.into()));
        let all = frontends.into_iter().chain(guards.map(|key| (key, frontend::Frontend::default())));
        replace(&self.frontends, all.map(|(key, frontend)| (key, frontend.tagged(&key))))
    }

    /// Gives every frontend the tag of another one, as if its element were being used again.
    pub fn mistag_frontends(&self) -> Result<()> {
        for (key, frontend) in self.frontends.entries()? {
            let other = FrontendKey { port_be: key.port_be ^ 1, ..key };
            self.frontends.put(&key, &frontend[0].tagged(&other))?;
        }
        Ok(())
    }

    /// All counters, summed over CPUs.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        for (index, counts) in self.reasons.entries()? {
            let label = Reason::from_index(index).context("an index of a reason")?.as_str();
            add_moved(&mut counters.reasons, label, counts.iter().sum::<u64>());
        }
        for (index, counts) in self.evictions.entries()? {
            let label = Evicted::ALL.get(index as usize).context("an index of what is evicted")?.as_str();
            add_moved(&mut counters.evictions, label, counts.iter().sum::<u64>());
        }
        for (at, counts) in self.service_counters.pairs()? {
            add_moved(&mut counters.services, at % SERVICES, counts);
        }
        for (at, counts) in self.backend_counters.pairs()? {
            add_moved(&mut counters.backends, at % BACKENDS, counts);
        }
        Ok(counters)
    }

    /// Whether packets were counted for backends where a CPU counts, and nowhere else.
    pub fn are_counted_on(&self, cpu: u32) -> Result<bool> {
        let counted =
            self.backend_counters.pairs()?.into_iter().filter(|(_, counts)| *counts != BackendCounters::default());
        let places: Vec<_> = counted.map(|(place, _)| place).collect();
        Ok(!places.is_empty() && places.iter().all(|&at| at == place(cpu, BACKENDS, at % BACKENDS)))
    }

    /// All flows of both families.
    pub fn flows(&self) -> Result<BTreeMap<Tuple, Entry>> {
        let mut flows = self.flows_v4.entries()?;
        flows.append(&mut self.flows_v6.entries()?);
        Ok(flows)
    }

    /// Whether the two entries of each flow know where the other one stands.
    pub fn check_peers(&self) -> Result<()> {
        self.flows_v4.check_peers()?;
        self.flows_v6.check_peers()
    }

    /// The affinity table.
    pub fn affinities(&self) -> Result<BTreeMap<(u32, IpAddr), Affinity>> {
        let pairs = self.affinity.pairs()?.into_iter();
        Ok(pairs
            .map(|(key, value)| {
                let frontend::Affinity { backend, generation, last_used } = value;
                ((key.service, key.client.into()), Affinity { backend, generation, last_used })
            })
            .collect())
    }

    /// The table of fragmented datagrams.
    pub fn fragments(&self) -> Result<BTreeMap<Datagram, Ports>> {
        self.fragments.pairs()?.iter().map(fragment_of).collect()
    }

    /// Forgets a datagram, as that table does when it is full.
    pub fn evict_fragment(&self, datagram: Datagram) -> Result<()> {
        Ok(self.fragments.remove(&fragment_key_of(datagram))?)
    }

    /// Forgets a client's affinity, likewise.
    pub fn evict_affinity(&self, (service, client): (u32, IpAddr)) -> Result<()> {
        Ok(self.affinity.remove(&AffinityKey { client: client.into(), service })?)
    }

    /// Removes a flow entry, as if its slot had been taken for another flow; the other half stays.
    pub fn evict(&self, tuple: Tuple) -> Result<()> {
        match Version::of(tuple.src.ip()) {
            Version::V4 => self.flows_v4.evict(tuple),
            Version::V6 => self.flows_v6.evict(tuple),
        }
    }

    /// Makes all flows, affinities and datagrams older; flows began so many jiffies earlier.
    pub fn age(&self, ticks: u32, jiffies: u32) -> Result<()> {
        age(&self.affinity, ticks, |affinity| &mut affinity.last_used)?;
        age(&self.fragments, ticks, |fragment| &mut fragment.last_seen)?;
        self.flows_v4.age(ticks, jiffies)?;
        self.flows_v6.age(ticks, jiffies)
    }

    /// Removes all flows, affinities and datagrams, and gives this tick's budget of ICMP errors back.
    pub fn clear(&self) -> Result<()> {
        self.flows_v4.clear()?;
        self.flows_v6.clear()?;
        clear(&self.affinity)?;
        clear(&self.fragments)?;
        self.renew_reject_budget()
    }

    /// Gives this tick's budget of ICMP errors back.
    pub fn renew_reject_budget(&self) -> Result<()> {
        Ok(self.reject_budget.zero(&0)?)
    }

    /// Writes the record that a trace with this cookie answers in.
    pub fn ask(&self, cookie: [u32; 4]) -> Result<()> {
        Ok(self.trace.put(&0, &TraceRecord { cookie, ..TraceRecord::default() })?)
    }

    /// The record, without its cookie.
    pub fn answer(&self) -> Result<TraceRecord> {
        let (_, record) = self.trace.pairs()?[0];
        Ok(TraceRecord { cookie: [0; 4], ..record })
    }
}

/// Leaves out what has never moved.
fn add_moved<K: Ord, V: Default + PartialEq + AddAssign>(counters: &mut BTreeMap<K, V>, key: K, value: V) {
    if value != V::default() {
        *counters.entry(key).or_default() += value;
    }
}

/// Makes a hash hold these elements and no others.
fn replace<K: Pod + Ord, V: Pod>(map: &Map<K, V>, elements: impl Iterator<Item = (K, V)>) -> Result<()> {
    let elements: BTreeMap<K, V> = elements.collect();
    for (key, _) in map.pairs()? {
        if !elements.contains_key(&key) {
            map.remove(&key)?;
        }
    }
    for (key, value) in &elements {
        map.put(key, value)?;
    }
    Ok(())
}

fn clear<K: Pod, V: Pod>(map: &Map<K, V>) -> Result<()> {
    for (key, _) in map.pairs()? {
        map.remove(&key)?;
    }
    Ok(())
}

fn age<K: Pod, V: Pod>(map: &Map<K, V>, ticks: u32, last_seen: impl Fn(&mut V) -> &mut u32) -> Result<()> {
    for (key, mut value) in map.pairs()? {
        let last_seen = last_seen(&mut value);
        *last_seen = last_seen.wrapping_sub(ticks);
        map.put(&key, &value)?;
    }
    Ok(())
}
