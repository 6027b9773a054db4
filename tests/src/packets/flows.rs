// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow table of a family and its table of next hops: read out as the reference model has them, and changed as time and the table
//! itself would.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Context, Result, ensure};
use bytemuck::{Pod, Zeroable};
use lb_common::{
    address::Family,
    flow::{Entry, next_hop, table},
    maps::FlowSet,
};

use super::{
    bpf::Map,
    convert::{entry_of, flow_key_of, is_next_hop_for, next_hop_of},
    object::Object,
};
use crate::reference::{self, Tuple};

/// Both tables of a family.
pub struct FlowTable<F: Family> {
    sets: Map<u32, FlowSet<F>>,
    next_hops: Map<u32, next_hop::NextHop>,
    mask: u32,
}

/// Key of the table's hash in tests.
pub const TABLE_KEY: [u64; 2] = [0x6b65_7920_6f66_2061, 0x7461_626c_6521_0a00];

/// Where an entry stands.
#[derive(Clone, Copy)]
struct Place {
    set: u32,
    way: usize,
}

impl Place {
    const fn index(self) -> u32 {
        self.set * table::WAYS + self.way as u32
    }
}

impl<F: Family + Debug> FlowTable<F>
where
    Entry<F>: Pod,
    FlowSet<F>: Pod,
{
    /// Those of these names, with so many sets.
    pub fn of(object: &Object, flows: &str, next_hops: &str, sets: u32) -> Result<Self> {
        Ok(Self { sets: object.map(flows, 1)?, next_hops: object.map(next_hops, 1)?, mask: sets - 1 })
    }

    /// All entries that live.
    fn live(&self) -> Result<Vec<(Place, Entry<F>)>> {
        let mut live = Vec::new();
        for (set, entries) in self.sets.pairs()? {
            for (way, entry) in entries.into_iter().enumerate() {
                ensure!(!entry.control.is_claimed(), "somebody has claimed a slot and gone away: {entry:?}");
                if entry.control.is_live() {
                    live.push((Place { set, way }, entry));
                }
            }
        }
        Ok(live)
    }

    /// All entries, after a look whether the table is sound: each tuple once, in one of its sets.
    pub fn entries(&self) -> Result<BTreeMap<Tuple, reference::Entry>> {
        let live = self.live()?;
        let mut entries = BTreeMap::new();
        for (place, entry) in &live {
            let sets = table::Sets::of(&entry.key(), TABLE_KEY, self.mask);
            ensure!(sets.0.contains(&place.set), "{entry:?} is in set {}, not one of {sets:?}", place.set);
            let (tuple, converted) = entry_of(entry, self.next_hop(entry)?)?;
            ensure!(entries.insert(tuple, converted).is_none(), "{tuple:?} stands in the table twice");
        }
        Ok(entries)
    }

    /// Whether the two entries of each flow know where the other one stands. Where CPUs race, they need not.
    pub fn check_peers(&self) -> Result<()> {
        let live = self.live()?;
        let converted = live.iter().map(|(place, entry)| {
            let (tuple, converted) = entry_of(entry, None)?;
            Ok((tuple, (*place, converted.to, entry.peer)))
        });
        let places: BTreeMap<Tuple, (Place, Tuple, u32)> = converted.collect::<Result<_>>()?;
        for (tuple, (_, to, hint)) in &places {
            if let Some((place, back, _)) = places.get(&to.reversed())
                && *back == tuple.reversed()
            {
                let place = place.index();
                ensure!(*hint == place, "{tuple:?} looks for its other half at {hint}, which stands at {place}");
            }
        }
        Ok(())
    }

    /// The next hop of an entry, if what stands there is for its destination.
    fn next_hop(&self, entry: &Entry<F>) -> Result<Option<reference::NextHop>> {
        let next_hop = self.next_hops.get(&u32::from(entry.next_hop))?.context("an array has all of its elements")?;
        Ok(is_next_hop_for::<F>(&next_hop, &entry.new_dst).then(|| next_hop_of(&next_hop)))
    }

    /// Removes an entry.
    pub fn evict(&self, tuple: Tuple) -> Result<()> {
        let key = flow_key_of::<F>(tuple);
        for set in table::Sets::of(&key, TABLE_KEY, self.mask).0 {
            let mut entries = self.set(set)?;
            let found = entries.iter_mut().find(|entry| entry.control.is_live() && entry.key().is(&key));
            if let Some(entry) = found {
                entry.control = entry.control.released();
                return Ok(self.sets.put(&set, &entries)?);
            }
        }
        anyhow::bail!("no flow {tuple:?}")
    }

    /// Makes all flows older: so many ticks since their last packet, so many jiffies since their first.
    pub fn age(&self, ticks: u32, jiffies: u32) -> Result<()> {
        for set in self.live_sets()? {
            let mut entries = self.set(set)?;
            for entry in entries.iter_mut().filter(|entry| entry.control.is_live()) {
                let (state, flags) = (entry.control.state(), entry.flags());
                entry.control = entry.control.published(state, flags, entry.control.last_seen().wrapping_sub(ticks));
                entry.peer_seen = entry.peer_seen.wrapping_sub(ticks);
                entry.born = entry.born.wrapping_sub(jiffies);
            }
            self.sets.put(&set, &entries)?;
        }
        Ok(())
    }

    /// Removes all flows, and all next hops: another setup may have the same generation of routes.
    pub fn clear(&self) -> Result<()> {
        let empty = FlowSet::<F>::zeroed();
        self.live_sets()?.into_iter().try_for_each(|set| self.sets.put(&set, &empty))?;
        let known =
            self.next_hops.pairs()?.into_iter().filter(|(_, next_hop)| *next_hop != next_hop::NextHop::default());
        Ok(known.map(|(index, _)| index).try_for_each(|index| self.next_hops.zero(&index))?)
    }

    fn live_sets(&self) -> Result<Vec<u32>> {
        let mut sets: Vec<u32> = self.live()?.into_iter().map(|(place, _)| place.set).collect();
        sets.dedup();
        Ok(sets)
    }

    fn set(&self, set: u32) -> Result<FlowSet<F>> {
        self.sets.get(&set)?.context("an array has all of its elements")
    }
}
