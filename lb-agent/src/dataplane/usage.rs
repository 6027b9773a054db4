// SPDX-License-Identifier: MIT OR Apache-2.0
//! How full the maps are, and what memory they take.

use std::{fs, os::fd::AsRawFd as _};

use lb_common::{
    config::family_index,
    flow::table::WAYS,
    frontend::backend_state,
    maps::{self, SLOTS_PER_CHUNK},
};

use super::{
    flows::Census,
    maps::{MapError, Maps, open_map},
    pins::Pins,
};

/// One map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUsage {
    /// Its name.
    pub name: &'static str,
    /// Elements in use; `None` for arrays that are always whole.
    pub entries: Option<u64>,
    /// Most elements; slots for the tables, flow entries for the flow tables.
    pub capacity: u64,
    /// As the kernel accounts for it, exactly since Linux 6.4.
    pub memory_bytes: u64,
}

impl Maps {
    /// Looks at all pinned maps.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn usage(&self, pins: &Pins) -> Result<Vec<MapUsage>, MapError> {
        let census = self.census()?;
        maps::PINNED.into_iter().map(|name| self.usage_of(pins, name, &census)).collect()
    }

    fn usage_of(&self, pins: &Pins, name: &'static str, census: &Census) -> Result<MapUsage, MapError> {
        let path = pins.map(name);
        let (fd, info) = open_map(&path).map_err(|cause| MapError::Open { path: path.display().to_string(), cause })?;
        let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
        let entries = match name {
            maps::FRONTENDS => Some(self.frontends.count()?),
            maps::FLOWS_V4 => Some(census.entries[family_index(true)]),
            maps::FLOWS_V6 => Some(census.entries[family_index(false)]),
            maps::AFFINITY => Some(self.affinity.count()?),
            maps::FRAGMENTS => Some(self.fragments.count()?),
            maps::SOURCE_RANGES => Some(self.source_ranges.entries()?.len() as u64),
            maps::SOCKETS => Some(self.sockets.count()?),
            maps::TALKS => Some(self.talks.count()?),
            maps::NODE_ADDRESSES => Some(self.node_addresses.count()?),
            maps::INTERFACES => Some(self.interfaces.count()?),
            maps::SERVICE_NAMES => Some(self.names.count()?),
            maps::BACKENDS => {
                Some(self.live_backends().iter().filter(|backend| backend.state != backend_state::FREE).count() as u64)
            }
            maps::TABLES => Some(self.slots_in_use()?),
            _ => None,
        };
        let unit = match name {
            maps::TABLES => SLOTS_PER_CHUNK,
            maps::FLOWS_V4 | maps::FLOWS_V6 => WAYS,
            _ => 1,
        };
        let capacity = u64::from(info.max_entries) * u64::from(unit);
        Ok(MapUsage { name, entries, capacity, memory_bytes: memory_in(&fdinfo) })
    }

    /// Slots of all tables that a frontend refers to.
    fn slots_in_use(&self) -> Result<u64, MapError> {
        let dump = self.dump()?;
        Ok(dump.tables.values().map(|slots| slots.len() as u64).sum())
    }
}

/// The line `memlock:` of `/proc/PID/fdinfo/FD`, in bytes.
fn memory_in(fdinfo: &str) -> u64 {
    let value = fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_a_map_takes() {
        assert_eq!(memory_in("pos:\t0\nmap_type:\t2\nmemlock:\t528384\nmap_id:\t7\n"), 528_384);
        assert_eq!(memory_in("pos:\t0\n"), 0);
    }
}
