// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP flows whose frontend has gone, or has become another Service's, while their backend still serves (rule 85): they end at their
//! next packet. Flows whose backend has gone need none of this: the programs see that by its generation.
//!
//! To end a flow is to make it look idle for too long: the time of last use is what anybody may store at any moment.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lb_common::{
    flow::protocol,
    frontend::{Frontend, FrontendKey},
};
use tracing::{debug, warn};

use super::maps::Maps;
use crate::diff::{GRACE, Operation};

/// Frontends whose flows are to be ended, and when.
#[derive(Debug, Default)]
pub struct Ended {
    /// Since the last walk.
    new: BTreeSet<FrontendKey>,
    /// A packet may have been decided just before the change, and its flow be in the table only after the first walk; or it has
    /// stored its time after that. So there is a second one.
    again: Option<(Instant, BTreeSet<FrontendKey>)>,
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
            self.new.insert(*key);
        }
    }

    /// Ends what is to be ended. Returns when to come back.
    pub fn end(&mut self, maps: &Maps, now: Instant) -> Option<Instant> {
        let mut due = std::mem::take(&mut self.new);
        let is_new = !due.is_empty();
        let first = due.clone();
        if let Some((_, again)) = self.again.take_if(|(at, _)| *at <= now) {
            due.extend(again);
        }
        if !due.is_empty() {
            match maps.end_udp_flows(&due) {
                Ok(0) => {}
                Ok(count) => debug!("{count} entries of UDP flows ended: their frontends have gone"),
                Err(error) => warn!("UDP flows of frontends that have gone go on until they are idle: {error}"),
            }
        }
        if is_new {
            let (at, again) = self.again.get_or_insert_with(|| (now + GRACE, BTreeSet::new()));
            *at = (*at).max(now + Duration::from_secs(1));
            again.extend(first);
        }
        self.again.as_ref().map(|(at, _)| *at)
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
            assert_eq!(!ended.new.is_empty(), is_noted, "{operation}");
        }
    }
}
