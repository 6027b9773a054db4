// SPDX-License-Identifier: MIT OR Apache-2.0
//! The resident memory of a process.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// In KiB.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Resident {
    /// All of it: what `ps` shows.
    pub all_kib: u64,
    /// Of that, BPF maps that are mapped into the process: they belong to the kernel, and stay when the process ends.
    pub maps_kib: u64,
}

impl Resident {
    /// Of a process, by PID or `self`.
    pub fn of(process: &str) -> Result<Self> {
        let path = format!("/proc/{process}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
        let mut resident = Self { all_kib: 0, maps_kib: 0 };
        let mut is_map = false;
        for line in text.lines() {
            if let Some(kib) = line.strip_prefix("Rss:") {
                let kib: u64 = kib.trim_end_matches("kB").trim().parse().with_context(|| format!("{path}: {line}"))?;
                resident.all_kib += kib;
                resident.maps_kib += if is_map { kib } else { 0 };
            } else if line.starts_with(|first: char| first.is_ascii_hexdigit() && !first.is_ascii_uppercase()) {
                // The first line of a mapping: addresses, then what it is of.
                is_map = line.contains("bpf-map");
            }
        }
        Ok(resident)
    }

    /// What the process itself takes, in MiB.
    pub fn own_mebibytes(self) -> f64 {
        (self.all_kib - self.maps_kib) as f64 / 1024.0
    }

    /// What of the maps is mapped into it, in MiB.
    pub fn maps_mebibytes(self) -> f64 {
        self.maps_kib as f64 / 1024.0
    }
}
