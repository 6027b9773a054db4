// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plans one Service: what must be written so that the maps hold exactly its units.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use litemap::LiteMap;

use super::{
    Capacities, FrontendText, Operation, State,
    claims::Judgement,
    draft::{Draft, NO_FRONTENDS, NO_SOURCE_RANGES, Shortage},
    mirror::Mirror,
    pools::Release,
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
    pub(super) release: Release,
}

impl State {
    /// Plans what makes the maps hold exactly `desired` for one Service; nothing desired = the Service is gone.
    ///
    /// `created` is the Service's creation time in seconds: of several Services that want one frontend the oldest gets
    /// it (rule 18). A Service for which a map has no room keeps what it has.
    pub fn plan(&mut self, service: &ServiceKey, created: i64, desired: &BTreeMap<UnitId, Unit>, now: Instant) -> Plan {
        let old = self.records.remove(service).unwrap_or_default();
        let wanted = desired.values().flat_map(|unit| unit.frontends.keys());
        let judgement = self.claims.judge(service, created, wanted);
        let mut problems = lost_frontends(service, &judgement);
        match self.draft(&old, desired, &judgement, now) {
            Ok((record, operations, release)) => {
                self.dirty.extend(self.claims.settle(&judgement));
                self.starved.remove(service);
                if record != Record::default() {
                    self.records.insert(service.clone(), record);
                }
                Plan { service: service.clone(), operations, problems, release }
            }
            Err(shortage) => {
                problems.push(no_room(service, shortage));
                self.starved.insert(service.clone());
                self.records.insert(service.clone(), old);
                Plan { service: service.clone(), operations: Vec::new(), problems, release: Release::default() }
            }
        }
    }

    fn draft(
        &mut self,
        old: &Record,
        desired: &BTreeMap<UnitId, Unit>,
        judgement: &Judgement,
        now: Instant,
    ) -> Result<(Record, Vec<Operation>, Release), Shortage> {
        let mut draft = Draft::new(&self.mirror, &mut self.pools, now, old);
        let units = plan_units(&mut draft, old, desired, judgement);
        let units = match units.and_then(|units| fits(&self.mirror, &draft, &self.capacities).map(|()| units)) {
            Ok(units) => units,
            Err(shortage) => {
                let reserved = std::mem::take(&mut draft.reserved);
                self.pools.give_back(&reserved);
                return Err(shortage);
            }
        };
        let frontends = judgement.won().to_vec();
        draft.release.frontends.extend(&old.frontends);
        draft.release.frontends.retain(|key| !judgement.has_won(key));
        let own: BTreeSet<u32> = old.units.values().chain(units.values()).map(|unit| unit.service).collect();
        let withheld = &old.withheld.services;
        let (operations, release) = draft.finish(|service| own.contains(&service) || withheld.contains(&service));
        Ok((Record { units, frontends, withheld: Release::default() }, operations, release))
    }
}

fn plan_units(
    draft: &mut Draft<'_>,
    old: &Record,
    desired: &BTreeMap<UnitId, Unit>,
    judgement: &Judgement,
) -> Result<LiteMap<UnitId, UnitRecord>, Shortage> {
    let mut units = LiteMap::with_capacity(desired.len());
    for (id, unit) in desired {
        let unit = draft.unit(id, unit, old.units.get(id), judgement)?;
        units.insert(id.clone(), unit);
    }
    for (_, gone) in old.units.iter().filter(|(id, _)| !desired.contains_key(id)) {
        draft.forget(gone);
    }
    Ok(units)
}

/// Whether the maps have room for what is written before anything is removed.
fn fits(mirror: &Mirror, draft: &Draft<'_>, capacities: &Capacities) -> Result<(), Shortage> {
    if mirror.frontends.len() + draft.new_frontends() > capacities.frontends as usize {
        return Err(NO_FRONTENDS);
    }
    let new_ranges = draft.new_source_ranges();
    if new_ranges > 0 && mirror.count_source_ranges() + new_ranges > capacities.source_ranges as usize {
        return Err(NO_SOURCE_RANGES);
    }
    Ok(())
}

fn lost_frontends(service: &ServiceKey, judgement: &Judgement) -> Vec<Problem> {
    let problem = |(owner, keys): (&ServiceKey, Vec<_>)| {
        let keys: Vec<_> = keys.iter().map(|key| FrontendText(key).to_string()).collect();
        Problem::new(
            format!("Service {service}"),
            format!("{} belongs to Service {owner}, which comes first by age, then name", keys.join(", ")),
            format!("change one of the two; it is served here as soon as {owner} gives it up"),
        )
    };
    judgement.losses().into_iter().map(problem).collect()
}

fn no_room(service: &ServiceKey, shortage: Shortage) -> Problem {
    Problem::new(
        format!("Service {service}"),
        format!("there is no room for its {}, so it stays as it was", shortage.what),
        format!("raise {} and run `lb-agent cleanup` before the next start", shortage.flag),
    )
}
