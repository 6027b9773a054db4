// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP flows whose frontend has gone, or has become another Service's, while their backend still serves (rule 85): they end at their
//! next packet. Flows whose backend has gone need none of this: the programs see that by its generation.
//!
//! To end a flow is to make it look idle for too long: the time of last use is what anybody may store at any moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_common::{
    flow::protocol,
    frontend::{Frontend, FrontendKey},
};
use tracing::{debug, warn};

use super::MapError;
use crate::diff::{GRACE, Operation};

/// Between two walks over the flow tables, however many frontends go.
const REST: Duration = Duration::from_secs(1);

/// Frontends whose flows are to be ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// When they are due for the second time; `None` where that was not even once. A packet may have been decided just before the
    /// change, and its flow be in the table only after the first walk; or it has stored its time after that. So there is a second one.
    waiting: BTreeMap<FrontendKey, Option<Instant>>,
    /// When the tables may be walked over again.
    rested: Option<Instant>,
}

impl Ended {
    /// Takes note of a write. `before` is what the frontend was.
    pub fn note(&mut self, operation: &Operation, before: impl FnOnce(&FrontendKey) -> Option<Frontend>) {
        let key = match operation {
            Operation::RemoveFrontend { key } => key,
            Operation::UpsertFrontend { key, frontend } if key.protocol == protocol::UDP => {
                if before(key).is_none_or(|before| before.service == frontend.service) {
                    return;
                }
                key
            }
            _ => return,
        };
        if key.protocol == protocol::UDP {
            self.waiting.insert(*key, None);
        }
    }

    /// Ends what is to be ended, by a walk over the flow tables that gives the number of entries. Returns when to come back.
    pub fn end(
        &mut self,
        now: Instant,
        walk: impl FnOnce(&BTreeSet<FrontendKey>) -> Result<usize, MapError>,
    ) -> Option<Instant> {
        let may_walk = self.rested.is_none_or(|at| at <= now);
        let is_due = |at: &Option<Instant>| at.is_none_or(|at| at <= now);
        let due: BTreeSet<_> =
            self.waiting.iter().filter(|(_, at)| may_walk && is_due(at)).map(|(key, _)| *key).collect();
        if !due.is_empty() {
            match walk(&due) {
                Ok(0) => {}
                Ok(count) => debug!("{count} entries of UDP flows ended: their frontends have gone"),
                Err(error) => warn!("UDP flows of frontends that have gone go on until they are idle: {error}"),
            }
            self.rested = Some(now + REST);
            self.waiting.retain(|key, at| !due.contains(key) || at.is_none());
            self.waiting.values_mut().for_each(|at| *at = Some(at.unwrap_or(now + GRACE)));
        }
        let first = self.waiting.values().map(|at| at.unwrap_or(now)).min()?;
        self.rested.map(|at| at.max(first))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::address::Address;

    use super::*;

    #[test]
    fn rule_85_frontends_that_go_or_change_hands_are_noted() {
        let key = |protocol| FrontendKey::new(Address::UNSPECIFIED, 53, protocol);
        let of = |service| Frontend { service, ..Frontend::default() };
        let upsert = |service| Operation::UpsertFrontend { key: key(protocol::UDP), frontend: of(service) };
        for (operation, before, is_noted) in [
            (Operation::RemoveFrontend { key: key(protocol::UDP) }, Some(1), true),
            (Operation::RemoveFrontend { key: key(protocol::TCP) }, Some(1), false),
            (upsert(1), None, false),
            (upsert(1), Some(1), false),
            (upsert(2), Some(1), true),
        ] {
            let mut ended = Ended::default();
            ended.note(&operation, |_| before.map(of));
            assert_eq!(!ended.waiting.is_empty(), is_noted, "{operation}");
        }
    }

    #[test]
    fn rule_85_each_frontend_is_seen_to_twice_and_none_waits_for_the_next() {
        let key = |port: u16| FrontendKey::new(Address::UNSPECIFIED, port.to_be(), protocol::UDP);
        let (start, mut ended) = (Instant::now(), Ended::default());
        let mut walks: BTreeMap<FrontendKey, Vec<u64>> = BTreeMap::new();
        // One goes each tenth of a second, for five seconds; then there is peace.
        for tenth in 0..100_u64 {
            if tenth < 50 {
                ended.note(&Operation::RemoveFrontend { key: key(tenth as u16) }, |_| None);
            }
            let now = start + Duration::from_millis(100 * tenth);
            ended.end(now, |due| {
                due.iter().for_each(|&key| walks.entry(key).or_default().push(tenth));
                Ok(0)
            });
        }
        assert_eq!(walks.len(), 50);
        for (number, times) in (0..).zip(walks.values()) {
            let [first, second] = times[..] else { panic!("{number}: {times:?}") };
            assert!(first - number <= 10 && (20..=30).contains(&(second - first)), "{number}: {times:?}");
        }
        let all: BTreeSet<_> = walks.values().flatten().collect();
        assert!(all.len() <= 10, "{all:?}");
        assert_eq!(ended.end(start + Duration::from_secs(60), |_| unreachable!()), None);
    }
}
