// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs count, summed over all CPUs.

use std::{collections::BTreeMap, ops::AddAssign};

use lb_common::{
    counters::{BackendCounters, ServiceCounters},
    flow::Evicted,
    frontend::backend_state,
    verdict::Reason,
};

use super::maps::{MapError, Maps};

/// All counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that left the pipeline early.
    pub reasons: Vec<(Reason, u64)>,
    /// By index of the Service port, for those that have a name.
    pub services: BTreeMap<u32, ServiceCounters>,
    /// By index of the backend, for those that are not free.
    pub backends: BTreeMap<u32, BackendCounters>,
    /// Flows that were alive, and had to yield their place in the flow table.
    pub evictions: Vec<(Evicted, u64)>,
}

impl Maps {
    /// How many packets left the pipeline for one reason.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn count_of(&self, reason: Reason) -> Result<u64, MapError> {
        Ok(sum(self.reasons.get(reason as u32)?))
    }

    /// Reads all counters.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn counters(&self) -> Result<Counters, MapError> {
        let mut counters = Counters::default();
        for &reason in Reason::ALL {
            counters.reasons.push((reason, self.count_of(reason)?));
        }
        for evicted in Evicted::ALL {
            counters.evictions.push((evicted, sum(self.evictions.get(evicted as u32)?)));
        }
        for service in self.names.entries()?.into_keys() {
            counters.services.insert(service, sum(self.service_counters.get(service)));
        }
        for (index, backend) in (0..).zip(self.live_backends()) {
            if backend.state != backend_state::FREE {
                counters.backends.insert(index, sum(self.backend_counters.get(index)));
            }
        }
        Ok(counters)
    }
}

fn sum<V: Default + AddAssign>(values: impl IntoIterator<Item = V>) -> V {
    values.into_iter().fold(V::default(), |mut sum, value| {
        sum += value;
        sum
    })
}
