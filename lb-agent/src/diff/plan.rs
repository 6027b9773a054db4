// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plans one Service: what must be written so that the maps hold exactly its units.
//!
//! Where a map has no room for that, what has gone goes first, which needs none, and then comes as much as fits: no table ever
//! names an endpoint because its successor has no room.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use litemap::LiteMap;

use super::{
    FrontendText, Operation, State,
    claims::Judgement,
    draft::{Draft, Room},
    pools::Release,
    shortage::{Order, Shortage},
    state::{Record, UnitRecord},
};
use crate::{
    compile::{ServiceKey, Unit, UnitId},
    problem::Problem,
};

/// What to write for one Service, and what is wrong with it. [`State`] counts on it: give it to [`State::carry_out`].
#[derive(Debug)]
#[must_use = "the state counts on its being carried out"]
pub struct Plan {
    /// The Service.
    pub service: ServiceKey,
    /// The writes, in the order that keeps the packet path right at every moment.
    pub operations: Vec<Operation>,
    /// What is wrong with the Service as it stands now; nothing is remembered from one plan to the next.
    pub problems: Vec<Problem>,
    /// What there was not enough of for all that is desired.
    pub(super) lacking: BTreeSet<Shortage>,
    pub(super) release: Release,
}

impl Plan {
    /// Whether all the Service's endpoints are served at all its addresses and ports once this is written, but for those that
    /// another Service has.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lacking.iter().all(|shortage| shortage.is_bearable())
    }
}

/// What a Service holds, and shall hold.
struct Change<'a> {
    old: &'a Record,
    desired: &'a BTreeMap<UnitId, Unit>,
    now: Instant,
}

/// A draft that has come to its end.
struct Drafted {
    record: Record,
    operations: Vec<Operation>,
    release: Release,
    reserved: Release,
    lacking: BTreeSet<Shortage>,
}

impl State {
    /// Plans what makes the maps hold exactly `desired` for one Service; nothing desired = the Service is gone.
    ///
    /// `created` is the Service's creation time in seconds: of several Services that want one frontend the oldest gets
    /// it (rule 18). A Service for which a map has no room gets as much as fits, and is planned again when there may be more;
    /// until then it takes no frontend from another.
    pub fn plan(&mut self, service: &ServiceKey, created: i64, desired: &BTreeMap<UnitId, Unit>, now: Instant) -> Plan {
        let old = self.records.remove(service).unwrap_or_default();
        let wanted = desired.values().flat_map(|unit| unit.frontends.keys());
        let mut judgement = self.claims.judge(service, created, wanted);
        let mut problems = lost_frontends(service, &judgement);
        let change = Change { old: &old, desired, now };
        let mut drafted = self.draft(&change, &judgement, Order::AddFirst);
        if !drafted.lacking.is_empty() {
            self.pools.give_back(&drafted.reserved);
            drafted = self.draft(&change, &judgement, Order::RemoveFirst);
        }
        if !drafted.lacking.is_empty() {
            self.pools.give_back(&drafted.reserved);
            let lacking = std::mem::take(&mut drafted.lacking);
            judgement.retain(|key| self.claims.is_free_for(service, key));
            drafted = self.draft(&change, &judgement, Order::RemoveFirst);
            drafted.lacking.extend(lacking);
        }
        let Drafted { record, operations, release, lacking, .. } = drafted;
        judgement.retain(|key| record.frontends.binary_search(key).is_ok());
        self.dirty.extend(self.claims.settle(&judgement));
        if lacking.is_empty() {
            self.starved.remove(service);
        } else {
            self.starved.insert(service.clone());
        }
        if record != Record::default() {
            self.records.insert(service.clone(), record);
        }
        problems.extend(lacking.iter().map(|shortage| shortage.problem(service)));
        Plan { service: service.clone(), operations, problems, lacking, release }
    }

    fn draft(&mut self, change: &Change<'_>, judgement: &Judgement, order: Order) -> Drafted {
        let old = change.old;
        let services: BTreeSet<u32> = old.units.values().map(|unit| unit.service).collect();
        let is_own = |service: u32| services.contains(&service) || old.withheld.services.contains(&service);
        let gone = old.frontends.iter().chain(&old.withheld.frontends).filter(|key| !judgement.has_won(key));
        let gone: BTreeSet<_> = gone.copied().collect();
        let mut room = Room {
            frontends: (self.capacities.frontends as usize).saturating_sub(self.mirror.frontends.len()),
            source_ranges: (self.capacities.source_ranges as usize).saturating_sub(self.mirror.count_source_ranges()),
        };
        if order == Order::RemoveFirst {
            let held = |key| self.mirror.frontends.get(key).is_some_and(|frontend| is_own(frontend.service));
            room.frontends += gone.iter().filter(|key| held(key)).count();
        }
        let mut draft = Draft::new(&self.mirror, &mut self.pools, change.now, self.clock, old).within(room, order);
        let units = plan_units(&mut draft, change, judgement);
        let left_out = std::mem::take(&mut draft.left_out);
        let frontends: Vec<_> = judgement.won().iter().filter(|key| !left_out.contains(key)).copied().collect();
        draft.release.frontends.extend(&old.frontends);
        draft.release.frontends.retain(|key| frontends.binary_search(key).is_err());
        let (reserved, lacking) = (draft.reserved.clone(), std::mem::take(&mut draft.lacking));
        let (operations, release) = draft.finish(is_own);
        let record = Record { units, frontends, withheld: Release::default() };
        Drafted { record, operations, release, reserved, lacking }
    }
}

fn plan_units(draft: &mut Draft<'_>, change: &Change<'_>, judgement: &Judgement) -> LiteMap<UnitId, UnitRecord> {
    let Change { old, desired, .. } = change;
    let mut units = LiteMap::with_capacity(desired.len());
    for (id, unit) in *desired {
        if let Some(unit) = draft.unit(id, unit, old.units.get(id), judgement) {
            units.insert(id.clone(), unit);
        }
    }
    for (_, gone) in old.units.iter().filter(|(id, _)| !desired.contains_key(id)) {
        draft.forget(gone);
    }
    units
}

/// The reason of a problem that a Service has with another one: it may be over when that one is planned.
pub const FRONTEND_TAKEN: &str = "FrontendTaken";

fn lost_frontends(service: &ServiceKey, judgement: &Judgement) -> Vec<Problem> {
    let problem = |(owner, keys): (&ServiceKey, Vec<_>)| {
        let keys: Vec<_> = keys.iter().map(|key| FrontendText(key).to_string()).collect();
        Problem::new(
            format!("Service {service}"),
            format!("{} belongs to Service {owner}, which comes first by age, then name", keys.join(", ")),
            format!("change one of the two; it is served here as soon as {owner} gives it up"),
        )
        .with_reason(FRONTEND_TAKEN)
    };
    judgement.losses().into_iter().map(problem).collect()
}
