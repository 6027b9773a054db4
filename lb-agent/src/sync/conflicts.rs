// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frontends that a Service does not get because another one has them: told only when that lasts. Pure: `now` comes in.
//!
//! In a burst (a restart, a resumed watch, a list anew) the new owner of a frontend may be planned before the old one gives it
//! up. That is over when the burst is, and no conflict.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{compile::ServiceKey, problem::Problem};

/// How long a conflict must last to be one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Services that lack a frontend.
#[derive(Debug, Default)]
pub struct Conflicts(BTreeMap<ServiceKey, Conflict>);

#[derive(Debug)]
struct Conflict {
    problems: Vec<Problem>,
    since: Instant,
    is_told: bool,
}

impl Conflicts {
    /// What a Service lacks as of its latest plan. Returns whether what was told of it is to be taken back.
    pub fn set(&mut self, key: &ServiceKey, problems: Vec<Problem>, now: Instant) -> bool {
        match self.0.get_mut(key) {
            Some(conflict) if conflict.problems == problems => false,
            _ if problems.is_empty() => self.0.remove(key).is_some_and(|conflict| conflict.is_told),
            Some(conflict) => {
                // Something of it may be told already, and stays so until the rest is.
                (conflict.problems, conflict.is_told) = (problems, false);
                false
            }
            None => {
                self.0.insert(key.clone(), Conflict { problems, since: now, is_told: false });
                false
            }
        }
    }

    /// What has lasted, and was not told yet. To be asked when nothing waits to be planned.
    pub fn take_due(&mut self, now: Instant) -> Vec<(ServiceKey, Vec<Problem>)> {
        let is_due = |conflict: &Conflict| !conflict.is_told && conflict.since + PATIENCE <= now;
        let due = self.0.iter_mut().filter(|(_, conflict)| is_due(conflict));
        due.map(|(key, conflict)| {
            conflict.is_told = true;
            (key.clone(), conflict.problems.clone())
        })
        .collect()
    }

    /// When the next one has lasted long enough.
    pub fn wake_at(&self) -> Option<Instant> {
        self.0.values().filter(|conflict| !conflict.is_told).map(|conflict| conflict.since + PATIENCE).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_told_once_it_has_lasted_and_taken_back() {
        let (mut conflicts, start) = (Conflicts::default(), Instant::now());
        let (key, lost) =
            (ServiceKey::new("default", "web"), vec![Problem::new("Service default/web", "lost", "wait")]);
        assert!(!conflicts.set(&key, lost.clone(), start));
        assert!(conflicts.take_due(start).is_empty());
        assert_eq!(conflicts.wake_at(), Some(start + PATIENCE));
        // Planned again meanwhile, for another reason.
        assert!(!conflicts.set(&key, lost.clone(), start + PATIENCE / 2));
        assert_eq!(conflicts.take_due(start + PATIENCE), [(key.clone(), lost.clone())]);
        assert!(conflicts.take_due(start + 2 * PATIENCE).is_empty() && conflicts.wake_at().is_none());
        assert!(conflicts.set(&key, vec![], start + 2 * PATIENCE));
        assert!(!conflicts.set(&key, lost, start + 2 * PATIENCE) && !conflicts.set(&key, vec![], start + 2 * PATIENCE));
    }
}
