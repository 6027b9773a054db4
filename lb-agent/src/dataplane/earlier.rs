// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an agent of an earlier layout has left, as far as this one can use it: the seed by which backends are chosen, and how
//! many flows there are. Its maps are read by what the kernel says of their sizes: no type of that layout is known here.

use std::{fs, os::fd::AsFd as _, path::PathBuf, sync::atomic::Ordering};

use lb_common::maps::LAYOUT_VERSION;

use super::{
    maps::{count_elements, open_map},
    pins::{Pins, version_of},
    sys::Mapping,
};

/// Flow tables of layouts before 4: LRU hashes, those of new flows apart.
const FLOW_TABLES: [&str; 4] = ["FLOWS_V4", "FLOWS_V6", "YOUNG_V4", "YOUNG_V6"];

/// The maps of the newest layout before this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    version: u32,
    maps: PathBuf,
}

impl Earlier {
    /// What is pinned below a directory.
    #[must_use]
    pub fn find(pins: &Pins) -> Option<Self> {
        let layouts = fs::read_dir(pins.root()).ok()?.flatten().map(|entry| entry.path());
        let earlier = layouts.filter_map(|path| Some((version_of(&path)?, path.join("maps"))));
        let earlier = earlier.filter(|(version, maps)| *version < LAYOUT_VERSION && maps.join("CONFIG").exists());
        let (version, maps) = earlier.max()?;
        Some(Self { version, maps })
    }

    /// Its number.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The key of its choice of backends: with the same one a flow that is decided anew gets the backend that it had.
    #[must_use]
    pub fn seed(&self) -> Option<[u64; 2]> {
        // The first field of the configuration in every layout.
        let (map, info) = open_map(&self.maps.join("CONFIG")).ok()?;
        let mapping = Mapping::new(map.as_fd(), info.value_size as usize).ok()?;
        let [first, second, ..] = mapping.long_words() else { return None };
        let seed = [first, second].map(|word| word.load(Ordering::Relaxed));
        (seed != [0; 2]).then_some(seed)
    }

    /// How many flows it has; each has two entries. Those that have expired are among them. A table that can't be read counts as
    /// empty: nothing hangs on the number.
    #[must_use]
    pub fn count_flows(&self) -> u64 {
        let count = |name| count_elements(&self.maps.join(name)).unwrap_or(0);
        FLOW_TABLES.into_iter().map(count).sum::<u64>().div_ceil(2)
    }
}
