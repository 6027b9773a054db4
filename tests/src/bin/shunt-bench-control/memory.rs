// SPDX-License-Identifier: MIT OR Apache-2.0
//! The resident memory of a process.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// In KiB, as `/proc/PID/status` tells it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Resident {
    /// All of it: what `ps` and the kubelet count.
    pub all_kib: u64,
    /// Of that, heap and stacks; the rest are files and memory-mapped BPF maps.
    pub anonymous_kib: u64,
    /// The most that it ever was.
    pub peak_kib: u64,
}

impl Resident {
    /// Of a process, by PID or `self`.
    pub fn of(process: &str) -> Result<Self> {
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let fields =
            || Some(Self { all_kib: field("VmRSS:")?, anonymous_kib: field("RssAnon:")?, peak_kib: field("VmHWM:")? });
        fields().with_context(|| format!("{path} lacks what memory is in use"))
    }
}
