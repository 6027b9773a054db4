// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow tables, read while programs write them: no system call, and no copy of the whole.
//!
//! An entry is read as the programs read it: control word, copy, control word again ([`Control::is_same_entry`]).

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering, fence},
};

use bytemuck::{Pod, Zeroable as _};
use lb_common::{
    address::{Address, Family, V4, V6},
    config::family_index,
    filter::{self, Concern},
    flow::{Control, Direction, Entry, FlowState, Hook, flow_flags, protocol, table::WAYS, table::is_expired, word},
    frontend::{Backend, FrontendKey, NO_BACKEND, backend_state},
    maps::FlowSet,
};

use super::{
    maps::{MapError, Maps, Shared},
    pins::Pins,
};
use crate::diff::Filter;

/// The flow table of a family.
#[derive(Debug)]
pub struct FlowTable<F: Family>
where
    Entry<F>: Pod,
{
    sets: Shared<FlowSet<F>>,
}

/// Times that an entry is read that changes while it is read.
const ATTEMPTS: u32 = 4;

impl<F: Family> FlowTable<F>
where
    Entry<F>: Pod,
{
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        Ok(Self { sets: Shared::open(pins, name)? })
    }

    /// Sets of entries that it has.
    #[must_use]
    pub const fn sets(&self) -> u32 {
        self.sets.capacity()
    }

    /// Entries that it has room for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.sets() * WAYS
    }

    /// All entries, in the table's order, expired ones among them. What comes or goes meanwhile may be met or not.
    fn entries(&self) -> impl Iterator<Item = Entry<F>> {
        self.sets.long_words().chunks_exact(word::stride::<F>()).filter_map(read)
    }
}

/// The entry in a slot. `None` where there is none, or it does not hold still.
fn read<F: Family>(slot: &[AtomicU64]) -> Option<Entry<F>>
where
    Entry<F>: Pod,
{
    let control = |ordering| Control::from_bits(slot[word::CONTROL].load(ordering));
    for _ in 0..ATTEMPTS {
        let before = control(Ordering::Acquire);
        if !before.is_live() {
            return None;
        }
        let mut entry = Entry::<F>::zeroed();
        let words: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut entry));
        words.iter_mut().zip(slot).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        words[word::CONTROL] = before.to_bits();
        fence(Ordering::Acquire);
        if before.is_same_entry(control(Ordering::Relaxed)) {
            return Some(entry);
        }
    }
    None
}

/// One direction of a flow, of either family.
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
    /// [`flow_flags`].
    pub flags: u8,
    /// Ticks since the last packet of this direction.
    pub idle_ticks: u32,
}

impl FlowEntry {
    fn new<F: Family>(entry: &Entry<F>, tick: u32) -> Self {
        let socket = |address: &F::Addr, port_be| SocketAddr::new(F::widen(address).into(), u16::from_be(port_be));
        let idle = lb_common::clock::elapsed(tick, entry.control.last_seen());
        Self {
            protocol: entry.protocol,
            arrives: [socket(&entry.src, entry.sport_be), socket(&entry.dst, entry.dport_be)],
            leaves: [socket(&entry.new_src, entry.new_sport_be), socket(&entry.new_dst, entry.new_dport_be)],
            backend: entry.backend,
            generation: entry.generation,
            state: entry.control.state(),
            flags: entry.flags(),
            idle_ticks: u32::try_from(idle).unwrap_or(0),
        }
    }

    /// Whether the backend sees another address than the client's. At the net that does not follow from how packets are sent on.
    #[must_use]
    pub fn has_other_source(&self) -> bool {
        if self.flags & flow_flags::NET == 0 {
            return self.flags & flow_flags::SNAT != 0;
        }
        let client = usize::from(!self.is_original());
        self.arrives[client].ip() != self.leaves[client].ip()
    }

    /// Whether it is the client's direction: every flow has one such entry.
    const fn is_original(&self) -> bool {
        self.flags & flow_flags::REPLY == 0
    }
}

/// The flows of a backend, as `ipvsadm` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlows {
    /// Those of established connections and of UDP both ways ([`FlowState::is_active`]).
    pub active: u64,
    /// Those that begin or end.
    pub inactive: u64,
}

/// What one walk through the flow tables finds. Expired entries are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Entries of each family; a flow has two.
    pub entries: [u64; 2],
    /// Flows of each family.
    pub flows: [u64; 2],
    /// Flows by index of their backend, unless that has gone.
    pub backends: HashMap<u32, OpenFlows>,
    /// Source ports in use towards that endpoint, from that address of this node, towards which most are: each such pair has all
    /// source ports to itself.
    pub source_ports: u64,
}

impl Census {
    /// Of these flows; `backends` are those of now, by index.
    fn of(flows: impl Iterator<Item = FlowEntry>, backends: impl Fn(u32) -> Backend) -> Self {
        let mut census = Self::default();
        let mut ports: HashMap<(u8, SocketAddr, IpAddr), u64> = HashMap::new();
        for flow in flows {
            let family = family_index(flow.arrives[0].is_ipv4());
            census.entries[family] += 1;
            if !flow.is_original() {
                continue;
            }
            census.flows[family] += 1;
            let backend = backends(flow.backend);
            if backend.state != backend_state::FREE && backend.generation == flow.generation {
                let open = census.backends.entry(flow.backend).or_default();
                *(if flow.state.is_active() { &mut open.active } else { &mut open.inactive }) += 1;
            }
            if flow.has_other_source() && flow.flags & flow_flags::NET == 0 {
                *ports.entry((flow.protocol, flow.leaves[1], flow.leaves[0].ip())).or_default() += 1;
            }
        }
        census.source_ports = ports.into_values().max().unwrap_or(0);
        census
    }
}

/// Where a flow's client sent its packets.
fn asked<F: Family>(entry: &Entry<F>) -> FrontendKey {
    let mut peer = *entry;
    let original = match entry.direction() {
        Direction::Original => entry,
        Direction::Reply => {
            entry.write_peer(&mut peer);
            &peer
        }
    };
    FrontendKey::new(F::widen(&original.dst), original.dport_be, original.protocol)
}

/// Makes the entry in a slot look idle for as long as that, unless it is another's by now.
fn end<F: Family>(slot: &[AtomicU64], entry: &Entry<F>, last_seen: u32) -> bool
where
    Entry<F>: Pod,
{
    let mut control = entry.control;
    // Its time may be stored meanwhile.
    for _ in 0..ATTEMPTS {
        let ended = control.to_bits() & !u64::from(u32::MAX) | u64::from(last_seen);
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        match slot[word::CONTROL].compare_exchange(control.to_bits(), ended, order.0, order.1) {
            Ok(_) => return true,
            Err(now) if control.is_same_entry(Control::from_bits(now)) => control = Control::from_bits(now),
            Err(_) => return false,
        }
    }
    false
}

impl Maps {
    /// Ends the UDP flows of these frontends, unless they are those of the Service that the frontend is of now. Returns how many
    /// entries that were.
    ///
    /// # Errors
    /// When the time can't be told, or a map can't be read.
    pub fn end_udp_flows(&self, frontends: &BTreeSet<FrontendKey>) -> Result<usize, MapError> {
        let tick = self.ticker.now()?.tick;
        Ok(self.end_udp_flows_of(&self.flows_v4, frontends, tick)?
            + self.end_udp_flows_of(&self.flows_v6, frontends, tick)?)
    }

    fn end_udp_flows_of<F: Family>(
        &self,
        table: &FlowTable<F>,
        frontends: &BTreeSet<FrontendKey>,
        tick: u32,
    ) -> Result<usize, MapError>
    where
        Entry<F>: Pod,
    {
        // Longer than any time-out, and a quarter of it that an entry gets on top.
        let long_ago = tick.wrapping_sub(i32::MAX as u32 / 2);
        let mut count = 0;
        for slot in table.sets.long_words().chunks_exact(word::stride::<F>()) {
            // Flows without a backend are no Service's.
            let is_ours = |entry: &Entry<F>| entry.protocol == protocol::UDP && entry.backend != NO_BACKEND;
            let Some(entry) = read::<F>(slot).filter(is_ours) else { continue };
            let key = asked(&entry);
            let is_concerned = frontends.contains(&key)
                || frontends.contains(&key.to_node_port()) && self.has_node_ports(key.address)?;
            if !is_concerned {
                continue;
            }
            let of = self.backends.get(entry.backend).unwrap_or_default().service;
            if self.frontend_at(&key)?.is_none_or(|frontend| frontend.service != of) && end(slot, &entry, long_ago) {
                count += 1;
            }
        }
        Ok(count)
    }

    /// All flows that have not expired, both directions of each, in the tables' order: read one by one as they are asked for.
    ///
    /// # Errors
    /// When the time can't be told.
    pub fn flows(&self) -> Result<impl Iterator<Item = FlowEntry>, MapError> {
        let tick = self.ticker.now()?.tick;
        let timeouts = self.config.get(0).unwrap_or_default().timeouts;
        let is_there = move |control: Control| !is_expired(control, timeouts[control.state().index()], tick);
        let v4 = self.flows_v4.entries().filter(move |entry| is_there(entry.control));
        let v6 = self.flows_v6.entries().filter(move |entry| is_there(entry.control));
        let v4 = v4.map(move |entry| FlowEntry::new::<V4>(&entry, tick));
        Ok(v4.chain(v6.map(move |entry| FlowEntry::new::<V6>(&entry, tick))))
    }

    /// Counts the flows: a walk through both tables.
    ///
    /// # Errors
    /// When the time can't be told.
    pub fn census(&self) -> Result<Census, MapError> {
        Ok(Census::of(self.flows()?, |index| self.backends.get(index).unwrap_or_default()))
    }

    /// Takes out of the filter what nothing needs any more: neither `needed`, nor a flow. Returns what is left.
    ///
    /// A flow that begins meanwhile belongs to a frontend and backend of now, and those are in `needed`. But of clients of the net only
    /// the flow tells, for which the programs have set the bits after it stood in the table: they are looked for once more.
    pub fn sweep_filter(&self, needed: &Filter) -> Filter {
        let mut keep = needed.clone();
        self.flows_v4.entries().flat_map(|entry| concerns::<V4>(&entry)).for_each(|concern| keep.insert(concern));
        self.flows_v6.entries().flat_map(|entry| concerns::<V6>(&entry)).for_each(|concern| keep.insert(concern));
        let words = self.filter.long_words().iter().zip(keep.words()).enumerate();
        let of_agent = words.filter(|(index, _)| !filter::Filter::is_programs(*index));
        of_agent.for_each(|(_, (word, &keep))| word.store(keep, Ordering::Release));
        let mut let_pass = |concern| {
            if !keep.contains(concern) {
                self.pass(concern);
                keep.insert(concern);
            }
        };
        let is_nets = |flags: u8| flags & flow_flags::NET != 0;
        let v4 = self.flows_v4.entries().filter(|entry| is_nets(entry.flags()));
        v4.flat_map(|entry| concerns::<V4>(&entry)).for_each(&mut let_pass);
        let v6 = self.flows_v6.entries().filter(|entry| is_nets(entry.flags()));
        v6.flat_map(|entry| concerns::<V6>(&entry)).for_each(&mut let_pass);
        keep
    }
}

/// What lets the packets of an entry's flow pass the filter, those of the other direction too: its entry may be missing for a while.
fn concerns<F: Family>(entry: &Entry<F>) -> impl Iterator<Item = Concern> + use<F> {
    let mut peer = *entry;
    entry.write_peer(&mut peer);
    concerns_of_direction(entry).chain(concerns_of_direction(&peer))
}

fn concerns_of_direction<F: Family>(entry: &Entry<F>) -> impl Iterator<Item = Concern> + use<F> {
    let (src, dst): (Address, Address) = (F::widen(&entry.src), F::widen(&entry.dst));
    let (first, second) = match entry.direction() {
        // To the backend itself: the programs know of it.
        Direction::Original if entry.backend == NO_BACKEND => (None, None),
        Direction::Original => (Some(Concern::Frontend(dst, entry.dport_be, entry.protocol)), None),
        Direction::Reply if flow_flags::is_at(entry.flags(), Hook::Egress) => {
            (Some(Concern::Backend(src, entry.sport_be, entry.protocol)), None)
        }
        // By the net's device.
        Direction::Reply if flow_flags::is_at(entry.flags(), Hook::Net) => (None, None),
        // From elsewhere to a client of the net, whose address and port may be any.
        Direction::Reply if entry.flags() & flow_flags::NET != 0 => {
            (Some(Concern::Frontend(dst, entry.dport_be, entry.protocol)), None)
        }
        // To a source port.
        Direction::Reply => {
            (Some(Concern::Node(dst)), Some(Concern::NodePort(u16::from_be(entry.dport_be), entry.protocol)))
        }
    };
    first.into_iter().chain(second)
}

#[cfg(test)]
mod tests;
