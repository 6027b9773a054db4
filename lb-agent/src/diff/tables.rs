// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lookup tables of a plan: which stay, which are built, and where, down to what fits into the room that there is.

use std::collections::BTreeMap;

use lb_common::maglev;
use litemap::LiteMap;

use super::{
    Operation,
    draft::Draft,
    extent::Extent,
    shortage::Shortage,
    state::{Content, Table},
};
use crate::compile::BackendKey;

/// A list with weights, without what makes no difference to its table.
type Shares = BTreeMap<BackendKey, u32>;

impl Draft<'_> {
    /// One table for each list: those of before where they hold the same, else new ones. The unit's only table, if it is
    /// `changeable` and keeps its size, is changed in place: a new one would take as much room again and a write to each
    /// frontend, and a packet, which reads one slot, sees no difference.
    ///
    /// A list for which there is no room at all has no table; whoever asks for it is refused.
    pub(super) fn tables(
        &mut self,
        lists: &[&Shares],
        backends: &LiteMap<BackendKey, u32>,
        old: &[Table],
        changeable: Option<Extent>,
    ) -> Vec<Table> {
        let lists: Vec<_> = lists.iter().map(|shares| (*shares, candidates(shares, backends))).collect();
        let kept: Vec<_> = lists.iter().map(|(shares, list)| self.kept(shares, list, old)).collect();
        let mut spare: Vec<_> = old.iter().filter(|table| !kept.contains(&Some(table.extent))).collect();
        let mut tables = Vec::new();
        for ((shares, list), kept) in lists.iter().zip(kept) {
            let placed =
                kept.or_else(|| self.place(list, changeable)).or_else(|| self.squeeze(shares, list, &mut spare));
            let table = |extent| Table { extent, content: Content::of_list(shares) };
            tables.extend(placed.map(table));
        }
        for table in old {
            if tables.iter().all(|kept: &Table| kept.extent != table.extent) {
                self.release.add_extent(table.extent);
            }
        }
        tables
    }

    /// The table of before that is as it would be built now.
    fn kept(&self, shares: &Shares, list: &[maglev::Candidate], old: &[Table]) -> Option<Extent> {
        let size = table_size(shares);
        let is_kept = |table: &&Table| table.extent.slots == size && self.holds(table, shares, list);
        old.iter().find(is_kept).map(|table| table.extent)
    }

    /// Whether a table of before holds this list already, whatever its size.
    fn holds(&self, table: &Table, shares: &Shares, list: &[maglev::Candidate]) -> bool {
        let is_written = || self.mirror.tables.contains(&table.extent.offset);
        let is_same = |content: &Content| content.is_adopted(&maglev::build_sized(list, table.extent.slots));
        table.content.is_list(shares) && is_written() || table.content.is_found() && is_same(&table.content)
    }

    /// A table of the size that it should have.
    fn place(&mut self, list: &[maglev::Candidate], changeable: Option<Extent>) -> Option<Extent> {
        let slots = maglev::build(list);
        match changeable.filter(|extent| extent.slots as usize == slots.len()) {
            Some(extent) => Some(self.change(extent, slots)),
            None => self.take(slots.len() as u32).map(|extent| self.fill(extent, slots)),
        }
    }

    /// A table of another size than it should have: one that is there already; else in place of one of before, which needs no
    /// room; else a smaller one.
    ///
    /// A frontend that leads to the table of before may serve the new list with its old flags until it is written itself, a
    /// moment later: what has gone must not be served because there is no room.
    fn squeeze(&mut self, shares: &Shares, list: &[maglev::Candidate], spare: &mut Vec<&Table>) -> Option<Extent> {
        self.lacking.insert(Shortage::FullTables);
        spare.retain(|table| maglev::SIZES.contains(&table.extent.slots));
        if let Some(same) = spare.iter().position(|table| self.holds(table, shares, list)) {
            return Some(spare.remove(same).extent);
        }
        if !spare.is_empty() {
            let extent = spare.remove(0).extent;
            return Some(self.change(extent, maglev::build_sized(list, extent.slots)));
        }
        let full = table_size(shares);
        let mut sizes = maglev::SIZES.into_iter().rev().filter(|&size| size < full && size as usize >= list.len());
        let found = sizes.find_map(|size| self.take(size));
        if found.is_none() {
            self.lacking.insert(Shortage::Tables);
        }
        found.map(|extent| self.fill(extent, maglev::build_sized(list, extent.slots)))
    }

    fn change(&mut self, extent: Extent, slots: Vec<u32>) -> Extent {
        // Not before all that it names, nor what it names no more after that has gone: at the commit point.
        self.steps.frontends.push(Operation::ChangeTable { offset: extent.offset, slots });
        extent
    }

    fn take(&mut self, slots: u32) -> Option<Extent> {
        let extent = self.pools.extents.take(slots, self.now)?;
        self.reserved.add_extent(extent);
        Some(extent)
    }

    fn fill(&mut self, extent: Extent, slots: Vec<u32>) -> Extent {
        self.steps.tables.push(Operation::FillTable { offset: extent.offset, slots });
        extent
    }
}

/// The slots that a table for this list should have.
fn table_size(shares: &Shares) -> u32 {
    maglev::table_size(shares.values().copied().map(u64::from).sum())
}

/// The list as Maglev wants it.
pub(super) fn candidates(
    list: &BTreeMap<BackendKey, u32>,
    backends: &LiteMap<BackendKey, u32>,
) -> Vec<maglev::Candidate> {
    let candidate = |(key, &weight): (&BackendKey, &u32)| {
        let index = *backends.get(key)?;
        Some(maglev::Candidate { address: key.address, port: key.port, weight, index })
    };
    list.iter().filter_map(candidate).collect()
}
