// SPDX-License-Identifier: MIT OR Apache-2.0
//! When to sweep the address filter. Bits are only ever added while Services come and go, because flows outlive them; too
//! many would let other traffic pass the filter, which costs it a look-up or two.

use std::time::{Duration, Instant};

use lb_common::maps::{FILTER_EGRESS, FILTER_INGRESS};

use super::{Maps, doors::Doors, report::Reporter};
use crate::diff::Filter;

/// How often to look.
pub const PERIOD: Duration = Duration::from_secs(3600);

/// Bits that may be too many: under 1 % of a plane.
const TOLERABLE: u32 = 4096;

/// When to look next.
#[derive(Debug, Default)]
pub struct Sweep {
    due: Option<Instant>,
}

impl Sweep {
    /// Whether it is time to look.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due || self.due.is_none() {
            self.due = Some(now + PERIOD);
        }
        is_due
    }

    /// When it will be.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.due
    }
}

/// Sweeps if that is worth while: all flows are read for it. `needed` is what must pass in any case.
pub fn sweep(needed: &Filter, maps: &mut Maps<impl Doors>, reporter: &mut Reporter, now: Instant) {
    let filter = maps.state.filter();
    let excess = |plane| filter.count(plane).saturating_sub(needed.count(plane));
    if excess(FILTER_INGRESS) <= TOLERABLE && excess(FILTER_EGRESS) <= TOLERABLE {
        return;
    }
    match maps.doors.sweep_filter(needed) {
        Ok(left) => maps.state.set_filter(left),
        Err(problem) => reporter.note(problem, now),
    }
}
