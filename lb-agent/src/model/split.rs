// SPDX-License-Identifier: MIT OR Apache-2.0
//! Traffic splits (`shunt.dev/split`): which other Services' endpoints serve a Service, and in which proportion. Pure.
//!
//! A split is in force once all the Services that it names have been there at the same time. One that names a Service
//! that isn't there must not change what works: the last one that was in force stays. Where none was, the named Services
//! that are there share the traffic, as if the others had no endpoints.

use std::collections::{BTreeMap, BTreeSet};

use super::{ServiceKey, value::is_dns_label};

/// Largest weight of a part.
const MAX_WEIGHT: u32 = 10_000;

/// Weights of Services, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// At least one of the weights is not 0.
    pub weights: BTreeMap<String, u32>,
}

impl Split {
    /// Reads `web-v1=90,web-v2=10`, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or(format!("\"{}\" is no name=weight", part.trim()))?;
            let (name, weight) = (name.trim(), weight.trim());
            if !is_dns_label(name) {
                return Err(format!("\"{name}\" is no name of a Service"));
            }
            let value = weight.parse().ok().filter(|value| *value <= MAX_WEIGHT);
            let value = value.ok_or(format!("weight \"{weight}\" of {name} is not a number from 0 to {MAX_WEIGHT}"))?;
            if weights.insert(name.to_owned(), value).is_some() {
                return Err(format!("{name} stands there twice"));
            }
        }
        if weights.values().all(|weight| *weight == 0) {
            return Err("all weights are 0, so nobody would serve".into());
        }
        Ok(Self { weights })
    }

    /// The Services that it names, in the namespace of the Service that it is of.
    fn keys(&self, namespace: &str) -> impl Iterator<Item = ServiceKey> {
        self.weights.keys().map(move |name| ServiceKey::new(namespace, name.as_str()))
    }
}

/// The splits of all Services.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Splits {
    in_force: BTreeMap<ServiceKey, Split>,
    /// Each Service that a split names -> those whose splits name it.
    users: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
    /// The other way round.
    parts: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
}

impl Splits {
    /// Takes in what a Service wants now; `None` where that is no split.
    pub(super) fn update(&mut self, key: &ServiceKey, wanted: Option<&Split>, is_there: impl Fn(&ServiceKey) -> bool) {
        for part in self.parts.remove(key).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&part) {
                users.remove(key);
                if users.is_empty() {
                    self.users.remove(&part);
                }
            }
        }
        let Some(wanted) = wanted else {
            self.in_force.remove(key);
            return;
        };
        if wanted.keys(&key.namespace).all(|part| is_there(&part)) {
            self.in_force.insert(key.clone(), wanted.clone());
        }
        let held = self.in_force.get(key).into_iter();
        let parts: BTreeSet<_> = held.chain([wanted]).flat_map(|split| split.keys(&key.namespace)).collect();
        for part in &parts {
            self.users.entry(part.clone()).or_default().insert(key.clone());
        }
        self.parts.insert(key.clone(), parts);
    }

    /// The split by which a Service is served that wants this one.
    pub(super) fn in_force<'a>(&'a self, key: &ServiceKey, wanted: &'a Split) -> &'a Split {
        self.in_force.get(key).unwrap_or(wanted)
    }

    /// Whether a split of this Service has ever been in force.
    pub(super) fn has_good(&self, key: &ServiceKey) -> bool {
        self.in_force.contains_key(key)
    }

    /// The Services whose splits name this one.
    pub(super) fn users(&self, part: &ServiceKey) -> BTreeSet<ServiceKey> {
        self.users.get(part).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
