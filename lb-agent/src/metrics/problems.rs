// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which objects have problems now, by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::maps::gauges;
use crate::problem::Problem;

/// Pairs of object and reason from which on no further object is named: the rest are counted together, so that a cluster full
/// of mistakes makes no thousands of series.
const MOST_NAMED: usize = 100;
/// The rest's name.
const OTHERS: &str = "others";

/// Problems by object and reason. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct NamedProblems(Arc<Mutex<BTreeMap<(String, &'static str), u64>>>);

impl NamedProblems {
    /// These stand now, and no others.
    pub(super) fn set<'a>(&self, problems: impl Iterator<Item = &'a Problem>) {
        let mut counts: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
        for problem in problems {
            let is_named = |(object, _): &(String, &str)| *object == problem.subject;
            let has_room = counts.len() < MOST_NAMED || counts.keys().any(is_named);
            let object = if has_room { &problem.subject } else { OTHERS };
            *counts.entry((object.to_owned(), problem.reason)).or_default() += 1;
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }
}

impl Collector for NamedProblems {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labelled = |((object, reason), count): ((String, &'static str), u64)| {
            ([("object", object), ("reason", reason.to_owned())], count)
        };
        let help = "Problems that stand now, by the object that has them";
        gauges(&mut encoder, "shunt_object_problems", help, counts.into_iter().map(labelled))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    fn text(problems: &[Problem]) -> String {
        let named = NamedProblems::default();
        named.set(problems.iter());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(named));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn an_object_with_problems_is_named() {
        let problem = |subject: &str| Problem::new(subject, "cause", "remedy");
        let text = text(&[
            problem("Service default/web"),
            problem("Service default/web"),
            problem("device eth0").with_reason("Refused"),
        ]);
        for line in [
            "shunt_object_problems{object=\"Service default/web\",reason=\"NotServedAsSpecified\"} 2\n",
            "shunt_object_problems{object=\"device eth0\",reason=\"Refused\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn of_many_objects_the_rest_is_counted_together() {
        let problems: Vec<_> =
            (0..1000).map(|number| Problem::new(format!("Service default/web-{number}"), "cause", "remedy")).collect();
        let text = text(&problems);
        assert_eq!(text.lines().filter(|line| line.starts_with("shunt_object_problems{")).count(), MOST_NAMED + 1);
        let others = "shunt_object_problems{object=\"others\",reason=\"NotServedAsSpecified\"} 900\n";
        assert!(text.contains(others), "{text}");
    }
}
