// SPDX-License-Identifier: MIT OR Apache-2.0
//! All counters, and what moved between two readings.

use std::{collections::BTreeMap, fmt};

use lb_common::{
    counters::{BackendCounters, ServiceCounters},
    verdict::Reason,
};

use super::verdict::End;

/// Values of all counters that are not zero, summed over CPUs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By [`Reason::as_str`].
    pub reasons: BTreeMap<&'static str, u64>,
    /// Flows that had to yield to others, by what they were.
    pub evictions: BTreeMap<&'static str, u64>,
    /// By index of the Service port.
    pub services: BTreeMap<u32, ServiceCounters>,
    /// By index of the backend.
    pub backends: BTreeMap<u32, BackendCounters>,
}

impl Counters {
    /// Counts why a packet ended early, if that is counted.
    pub(super) fn count(&mut self, end: End) {
        let reason = match end {
            End::NotOurs => return,
            End::LeaveToTc => Reason::LeftToTc,
            End::Pass(reason) | End::Reject(reason) | End::Reset(reason) | End::Drop(reason) => reason,
        };
        *self.reasons.entry(reason.as_str()).or_default() += 1;
    }

    /// A Service port's counters.
    pub(super) fn service(&mut self, index: u32) -> &mut ServiceCounters {
        self.services.entry(index).or_default()
    }

    /// A backend's counters.
    pub(super) fn backend(&mut self, index: u32) -> &mut BackendCounters {
        self.backends.entry(index).or_default()
    }

    /// What moved since an earlier reading. Counters never go down.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let labels = |now: &BTreeMap<&'static str, u64>, before: &BTreeMap<&'static str, u64>| {
            let moved = now.iter().map(|(&label, &now)| (label, now - before.get(label).unwrap_or(&0)));
            moved.filter(|(_, moved)| *moved != 0).collect()
        };
        let services = self.services.iter().map(|(&index, now)| {
            let before = before.services.get(&index).copied().unwrap_or_default();
            let moved = ServiceCounters {
                flows: now.flows - before.flows,
                rejected: now.rejected - before.rejected,
                dropped: now.dropped - before.dropped,
            };
            (index, moved)
        });
        let backends = self.backends.iter().map(|(&index, now)| {
            let before = before.backends.get(&index).copied().unwrap_or_default();
            let moved = BackendCounters {
                packets: [0, 1].map(|direction| now.packets[direction] - before.packets[direction]),
                bytes: [0, 1].map(|direction| now.bytes[direction] - before.bytes[direction]),
                flows: now.flows - before.flows,
            };
            (index, moved)
        });
        Self {
            reasons: labels(&self.reasons, &before.reasons),
            evictions: labels(&self.evictions, &before.evictions),
            services: services.filter(|(_, moved)| *moved != ServiceCounters::default()).collect(),
            backends: backends.filter(|(_, moved)| *moved != BackendCounters::default()).collect(),
        }
    }
}

/// One word per counter that is not zero, like `no-route=1 service2.flows=1 backend3.packets=1/0`.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.reasons.iter().map(|(label, count)| format!("{label}={count}")).collect();
        words.extend(self.evictions.iter().map(|(label, count)| format!("evicted.{label}={count}")));
        for (index, service) in &self.services {
            let counts = [("flows", service.flows), ("rejected", service.rejected), ("dropped", service.dropped)];
            let counts = counts.iter().filter(|(_, count)| *count != 0);
            words.extend(counts.map(|(name, count)| format!("service{index}.{name}={count}")));
        }
        for (index, backend) in &self.backends {
            let BackendCounters { packets, bytes, flows } = backend;
            for (direction, name) in ["original", "reply"].into_iter().enumerate() {
                if packets[direction] != 0 {
                    words.push(format!("backend{index}.{name}={}x{}B", packets[direction], bytes[direction]));
                }
            }
            if *flows != 0 {
                words.push(format!("backend{index}.flows={flows}"));
            }
        }
        f.write_str(&words.join(" "))
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
