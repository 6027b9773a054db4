// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Counters of each CPU. Hot ones stand per backend; a Service's traffic is the sum over its backends.

use bytemuck::{Pod, Zeroable};

/// Where the element of an index stands for a CPU, in an array that has so many elements for each.
#[inline(always)]
#[must_use]
pub const fn place(cpu: u32, elements: u32, index: u32) -> u32 {
    cpu * elements + index
}

/// Traffic of one backend, index 0 the original direction, 1 the reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendCounters {
    /// Packets translated.
    pub packets: [u64; 2],
    /// Their bytes, from the Ethernet header on.
    pub bytes: [u64; 2],
    /// New flows.
    pub flows: u64,
}

/// Decisions of one Service port that found no backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceCounters {
    /// New flows for which a backend was chosen.
    pub flows: u64,
    /// Packets rejected with an ICMP error.
    pub rejected: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Token bucket of one CPU for ICMP errors: as many in a tick as the configuration says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RejectBudget {
    /// The tick that `sent` counts.
    pub tick: u32,
    /// Errors sent in it.
    pub sent: u32,
}

impl RejectBudget {
    /// Takes a token; false where none is left in this tick.
    #[inline(always)]
    pub fn take(&mut self, now: u32, limit: u32) -> bool {
        if self.tick != now {
            *self = Self { tick: now, sent: 0 };
        }
        if self.sent >= limit {
            return false;
        }
        self.sent += 1;
        true
    }
}

impl core::ops::AddAssign for BackendCounters {
    fn add_assign(&mut self, other: Self) {
        for direction in 0..2 {
            self.packets[direction] += other.packets[direction];
            self.bytes[direction] += other.bytes[direction];
        }
        self.flows += other.flows;
    }
}

impl core::ops::AddAssign for ServiceCounters {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.rejected += other.rejected;
        self.dropped += other.dropped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_refills_with_the_next_tick() {
        let mut budget = RejectBudget::default();
        assert!(budget.take(7, 2) && budget.take(7, 2));
        assert!(!budget.take(7, 2));
        assert!(budget.take(8, 2));
    }
}
