// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who owns a frontend that several Services want: the older Service, then the lesser `namespace/name`. The others wait,
//! and are planned again when the owner gives it up.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use lb_common::frontend::FrontendKey;

use crate::compile::ServiceKey;

/// All frontends that are claimed.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    owners: BTreeMap<FrontendKey, Arc<ServiceKey>>,
    waiting: BTreeMap<FrontendKey, BTreeSet<Arc<ServiceKey>>>,
    parties: HashMap<Arc<ServiceKey>, Party>,
}

/// One Service's side.
#[derive(Clone, Debug, Default, PartialEq)]
struct Party {
    /// Creation time in seconds; `None` for an adopted Service that was not planned yet, which keeps what it holds.
    created: Option<i64>,
    owned: Vec<FrontendKey>,
    lost: Vec<FrontendKey>,
}

/// What a Service would get of what it wants.
#[derive(Debug)]
pub struct Judgement {
    service: Arc<ServiceKey>,
    created: i64,
    /// In order.
    won: Vec<FrontendKey>,
    lost: BTreeMap<FrontendKey, Arc<ServiceKey>>,
}

impl Judgement {
    /// Whether the Service owns this frontend.
    pub fn has_won(&self, key: &FrontendKey) -> bool {
        self.won.binary_search(key).is_ok()
    }

    /// The frontends it gets, in order.
    pub fn won(&self) -> &[FrontendKey] {
        &self.won
    }

    /// Makes it get no more than these of them.
    pub fn retain(&mut self, is_wanted: impl Fn(&FrontendKey) -> bool) {
        self.won.retain(is_wanted);
    }

    /// The frontends it does not get, by their owners.
    pub fn losses(&self) -> BTreeMap<&ServiceKey, Vec<FrontendKey>> {
        let mut losses: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, owner) in &self.lost {
            losses.entry(owner.as_ref()).or_default().push(*key);
        }
        losses
    }
}

impl Claims {
    /// Records that an adopted Service holds a frontend.
    pub fn adopt(&mut self, service: &ServiceKey, key: FrontendKey) {
        let service = Arc::new(service.clone());
        self.parties.entry(Arc::clone(&service)).or_default().owned.push(key);
        self.owners.insert(key, service);
    }

    /// Says which of the wanted frontends the Service gets. Changes nothing.
    pub fn judge<'a>(
        &self,
        service: &ServiceKey,
        created: i64,
        wanted: impl Iterator<Item = &'a FrontendKey>,
    ) -> Judgement {
        let mut judgement = Judgement {
            service: self
                .parties
                .get_key_value(service)
                .map_or_else(|| Arc::new(service.clone()), |(service, _)| Arc::clone(service)),
            created,
            won: Vec::new(),
            lost: BTreeMap::new(),
        };
        for key in wanted {
            match self.owners.get(key) {
                Some(owner) if **owner != *service && !self.beats((created, service), owner) => {
                    judgement.lost.insert(*key, Arc::clone(owner));
                }
                _ => judgement.won.push(*key),
            }
        }
        judgement.won.sort_unstable();
        judgement.won.dedup();
        judgement
    }

    /// Whether no other Service owns a frontend.
    pub fn is_free_for(&self, service: &ServiceKey, key: &FrontendKey) -> bool {
        self.owners.get(key).is_none_or(|owner| **owner == *service)
    }

    /// Makes a judgement true. Returns the Services for which it changes something.
    pub fn settle(&mut self, judgement: &Judgement) -> BTreeSet<ServiceKey> {
        let mut affected = BTreeSet::new();
        let service = &judgement.service;
        let before = self.parties.remove(service).unwrap_or_default();
        for key in before.owned.iter().filter(|key| !judgement.has_won(key)) {
            self.owners.remove(key);
            affected.extend(self.waiting.remove(key).into_iter().flatten());
        }
        for key in before.lost.iter().filter(|key| !judgement.lost.contains_key(key)) {
            self.stop_waiting(key, service);
        }
        for key in &judgement.won {
            if let Some(loser) = self.owners.insert(*key, Arc::clone(service)).filter(|owner| owner != service) {
                self.take_from(&loser, *key);
                affected.insert(loser);
            } else if before.created != Some(judgement.created) {
                // Its age is news to those who wait: they may be older.
                affected.extend(self.waiting.get(key).into_iter().flatten().cloned());
            }
        }
        for key in judgement.lost.keys() {
            self.waiting.entry(*key).or_default().insert(Arc::clone(service));
        }
        let lost: Vec<_> = judgement.lost.keys().copied().collect();
        if !judgement.won.is_empty() || !lost.is_empty() {
            let party = Party { created: Some(judgement.created), owned: judgement.won.clone(), lost };
            self.parties.insert(Arc::clone(service), party);
        }
        affected.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    fn beats(&self, challenger: (i64, &ServiceKey), owner: &ServiceKey) -> bool {
        let created = self.parties.get(owner).and_then(|party| party.created);
        created.is_some_and(|created| challenger < (created, owner))
    }

    fn take_from(&mut self, loser: &Arc<ServiceKey>, key: FrontendKey) {
        if let Some(party) = self.parties.get_mut(loser) {
            party.owned.retain(|owned| *owned != key);
            party.lost.push(key);
        }
        self.waiting.entry(key).or_default().insert(Arc::clone(loser));
    }

    fn stop_waiting(&mut self, key: &FrontendKey, service: &Arc<ServiceKey>) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.remove(service);
            if waiting.is_empty() {
                self.waiting.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::address::Address;

    use super::*;

    fn key(port: u16) -> FrontendKey {
        FrontendKey::new(Address::UNSPECIFIED, port, 6)
    }

    fn service(name: &str) -> ServiceKey {
        ServiceKey::new("default", name)
    }

    /// The Service wants these; returns what it won, and whom that concerns.
    fn want(claims: &mut Claims, name: &str, created: i64, ports: &[u16]) -> (Vec<u16>, Vec<String>) {
        let keys: Vec<_> = ports.iter().copied().map(key).collect();
        let judgement = claims.judge(&service(name), created, keys.iter());
        let affected = claims.settle(&judgement);
        let won = judgement.won.iter().map(|key| key.port_be).collect();
        (won, affected.into_iter().map(|service| service.name).collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn rule_18_the_older_wins_whatever_the_order() {
        let mut claims = Claims::default();
        assert_eq!(want(&mut claims, "young", 20, &[1, 2]), (vec![1, 2], vec![]));
        assert_eq!(want(&mut claims, "old", 10, &[1]), (vec![1], names(&["young"])));
        assert_eq!(want(&mut claims, "young", 20, &[1, 2]), (vec![2], vec![]));
    }

    #[test]
    fn rule_18_the_lesser_name_wins_among_equals() {
        let mut claims = Claims::default();
        want(&mut claims, "b", 10, &[1]);
        assert!(want(&mut claims, "c", 10, &[1]).0.is_empty());
        assert_eq!(want(&mut claims, "a", 10, &[1]).0, vec![1]);
    }

    #[test]
    fn rule_18_the_loser_takes_over_when_the_winner_goes() {
        let mut claims = Claims::default();
        want(&mut claims, "old", 10, &[1]);
        want(&mut claims, "young", 20, &[1]);
        assert_eq!(want(&mut claims, "old", 10, &[]), (vec![], names(&["young"])));
        assert_eq!(want(&mut claims, "young", 20, &[1]), (vec![1], vec![]));
        assert!(claims.waiting.is_empty());
        assert_eq!(claims.parties.len(), 1);
    }

    #[test]
    fn an_adopted_owner_keeps_its_frontend_until_its_age_is_known() {
        let mut claims = Claims::default();
        claims.adopt(&service("adopted"), key(1));
        assert_eq!(want(&mut claims, "older", 5, &[1]), (vec![], vec![]));
        assert_eq!(want(&mut claims, "adopted", 10, &[1]), (vec![1], names(&["older"])));
        assert_eq!(want(&mut claims, "older", 5, &[1]), (vec![1], names(&["adopted"])));
    }

    #[test]
    fn who_no_longer_wants_it_no_longer_waits() {
        let mut claims = Claims::default();
        want(&mut claims, "old", 10, &[1]);
        want(&mut claims, "young", 20, &[1]);
        want(&mut claims, "young", 20, &[]);
        assert_eq!(want(&mut claims, "old", 10, &[]), (vec![], vec![]));
        assert!(claims.parties.is_empty() && claims.owners.is_empty());
    }
}
