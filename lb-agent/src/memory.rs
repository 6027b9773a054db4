// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory that the maps will take, known before they are made (cilium 37935, 39070). Pure.
//!
//! The sums follow the kernel's own layout (`kernel/bpf/hashtab.c`, `arraymap.c`, as of 6.18) and are upper bounds: hash
//! maps without preallocation grow towards them.

use std::fmt;

use lb_common::{
    address::{Address, V4, V6},
    config::Interface,
    counters::{BackendCounters, ServiceCounters},
    filter::Filter,
    flow::next_hop::{self, NextHop},
    fragment::{Fragment, FragmentKey},
    frontend::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange},
    maps::{self, FlowSet, ServiceName},
    socket::{SocketEntry, TalkEntry, TalkKey},
};

use crate::diff::Capacities;

/// `struct htab_elem`, before key and value.
const HASH_ELEMENT: u64 = 48;
/// `struct bucket`.
const HASH_BUCKET: u64 = 16;
/// `struct lpm_trie_node`, before data and value.
const TRIE_NODE: u64 = 40;

/// What each map costs at most, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    lines: Vec<(&'static str, u64)>,
}

/// The maps would take more than they may.
#[derive(Debug, thiserror::Error)]
#[error(
    "the maps would take up to {} MiB of memory, more than the {limit_mib} MiB of --max-map-memory ({bill}); raise it, \
     or lower --max-flows, --max-backends or --max-table-slots",
    mebibytes(bill.total())
)]
pub struct TooMuchMemory {
    bill: Bill,
    limit_mib: u32,
}

impl Bill {
    /// For maps of these capacities on a machine with so many possible CPUs.
    #[must_use]
    pub fn new(capacities: &Capacities, cpus: u32) -> Self {
        let cpus = u64::from(cpus);
        let Capacities {
            frontends,
            backends,
            table_slots,
            flows: _,
            families: _,
            services,
            source_ranges,
            affinity,
            fragments,
            interfaces,
            node_addresses,
            sockets,
        } = *capacities;
        let lines = vec![
            (maps::FLOWS_V4, u64::from(capacities.flow_sets(true)) * size_of::<FlowSet<V4>>() as u64),
            (maps::FLOWS_V6, u64::from(capacities.flow_sets(false)) * size_of::<FlowSet<V6>>() as u64),
            (maps::NEXT_HOPS_V4, u64::from(next_hop::CAPACITY) * size_of::<NextHop>() as u64),
            (maps::NEXT_HOPS_V6, u64::from(next_hop::CAPACITY) * size_of::<NextHop>() as u64),
            (maps::BACKEND_COUNTERS, u64::from(backends) * size_of::<BackendCounters>() as u64 * cpus),
            (maps::SERVICE_COUNTERS, u64::from(services) * size_of::<ServiceCounters>() as u64 * cpus),
            (maps::TABLES, u64::from(table_slots) * size_of::<u32>() as u64),
            (maps::FRONTENDS, hash(frontends, size_of::<FrontendKey>(), size_of::<Frontend>())),
            (maps::AFFINITY, hash(affinity, size_of::<AffinityKey>(), size_of::<Affinity>())),
            (maps::FRAGMENTS, hash(fragments, size_of::<FragmentKey>(), size_of::<Fragment>())),
            (maps::SOURCE_RANGES, trie(source_ranges, size_of::<SourceRange>(), size_of::<u32>())),
            (maps::SERVICE_NAMES, hash(services, size_of::<u32>(), size_of::<ServiceName>())),
            (maps::BACKENDS, u64::from(backends) * size_of::<Backend>() as u64),
            (maps::INTERFACES, hash(interfaces, size_of::<u32>(), size_of::<Interface>())),
            (maps::NODE_ADDRESSES, hash(node_addresses, size_of::<Address>(), size_of::<u32>())),
            (maps::SOCKETS, hash(sockets, size_of::<u64>(), size_of::<SocketEntry>())),
            (maps::TALKS, hash(sockets, size_of::<TalkKey>(), size_of::<TalkEntry>())),
            (maps::FILTER, size_of::<Filter>() as u64),
        ];
        Self { lines }
    }

    /// All of it, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lines.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Refuses more than so many MiB.
    ///
    /// # Errors
    /// Where it is more.
    pub fn check(self, limit_mib: u32) -> Result<Self, TooMuchMemory> {
        if mebibytes(self.total()) > u64::from(limit_mib) {
            return Err(TooMuchMemory { bill: self, limit_mib });
        }
        Ok(self)
    }
}

impl fmt::Display for Bill {
    /// The maps that matter: `FLOWS_V4 73 MiB, FLOWS_V6 85 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let large = self.lines.iter().filter(|(_, bytes)| mebibytes(*bytes) > 1);
        let lines: Vec<String> = large.map(|(map, bytes)| format!("{map} {} MiB", mebibytes(*bytes))).collect();
        f.write_str(&lines.join(", "))
    }
}

/// Rounded up.
#[must_use]
pub const fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn hash(entries: u32, key: usize, value: usize) -> u64 {
    let element = HASH_ELEMENT + key.next_multiple_of(8) as u64 + value.next_multiple_of(8) as u64;
    u64::from(entries) * element + u64::from(entries).next_power_of_two() * HASH_BUCKET
}

/// A prefix takes a leaf, and at most one inner node where it parts from another.
fn trie(entries: u32, data: usize, value: usize) -> u64 {
    2 * u64::from(entries) * (TRIE_NODE + data.next_multiple_of(8) as u64 + value.next_multiple_of(8) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads cilium 37935 and 39070.
    #[test]
    fn pitfall_17_counters_count_for_every_cpu() {
        let small = Bill::new(&Capacities::default(), 1).total();
        let large = Bill::new(&Capacities::default(), 64).total();
        let counters = 64 * (131_072 * 40 + 65_536 * 24);
        assert!(large > counters && large - small > counters / 2, "{large}");
    }

    #[test]
    fn a_bill_that_is_too_high_names_what_to_lower() {
        let bill = Bill::new(&Capacities::default(), 2);
        assert!(bill.clone().check(512).is_ok(), "{bill}: {}", bill.total());
        let error = bill.check(64).unwrap_err().to_string();
        assert!(error.contains("--max-flows") && error.contains("FLOWS_V6"), "{error}");
    }

    #[test]
    fn flow_entries_take_whole_cache_lines_and_a_family_that_is_not_there_takes_none() {
        let of = |flows, families| {
            let Bill { lines } = Bill::new(&Capacities { flows, families, ..Capacities::default() }, 2);
            [maps::FLOWS_V4, maps::FLOWS_V6].map(|map| lines.iter().find(|(name, _)| *name == map).unwrap().1)
        };
        assert_eq!(of(1 << 20, [true; 2]).map(mebibytes), [64, 128]);
        assert_eq!(of((1 << 19) + 1, [true; 2]).map(mebibytes), [64, 128], "a power of two");
        assert_eq!(of(1 << 20, [true, false]), [64 << 20, 4 * 128]);
        assert_eq!(of(0, [true; 2]), [8 * 64, 8 * 128]);
    }
}
