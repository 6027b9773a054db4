// SPDX-License-Identifier: MIT OR Apache-2.0
//! When to sweep the filter. Bits are only ever added while Services come and go, because flows outlive them; too many would let
//! other traffic pass the filter, which costs it a look-up or two.

use std::time::{Duration, Instant};

use super::{Maps, doors::Doors};
use crate::diff::Filter;

/// How often to look.
pub const PERIOD: Duration = Duration::from_secs(3600);

/// Bits that may be too many: under 1 % of each part.
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
pub fn sweep(needed: &Filter, maps: &mut Maps<impl Doors>) {
    let (held, needed_counts) = (maps.state.filter().counts(), needed.counts());
    if held.iter().zip(needed_counts).any(|(held, needed)| held.saturating_sub(needed) > TOLERABLE) {
        let left = maps.doors.sweep_filter(needed);
        maps.state.set_filter(left);
    }
}
