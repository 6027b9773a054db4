// SPDX-License-Identifier: MIT OR Apache-2.0
//! Services whose traffic policy asks for endpoints on this node, which has none (rule 73): their traffic is dropped here.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::frontend::frontend_flags::{EXTERNAL_DROP, INTERNAL_DROP};

use crate::compile::{FrontendPlan, List, ServiceKey, Unit, UnitId};

/// Which of the two policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyKind {
    /// Of the ClusterIP.
    Internal,
    /// Of everything else.
    External,
}

/// One policy in one family (`true`: IPv4).
type Group = (PolicyKind, bool);

/// Those Services, by policy and family.
#[derive(Debug, Default)]
pub struct NoLocalEndpoints(BTreeMap<Group, BTreeSet<ServiceKey>>);

impl NoLocalEndpoints {
    /// All groups.
    pub const GROUPS: [Group; 4] = [
        (PolicyKind::Internal, true),
        (PolicyKind::Internal, false),
        (PolicyKind::External, true),
        (PolicyKind::External, false),
    ];

    /// What a Service is now.
    pub fn set(&mut self, key: &ServiceKey, units: &BTreeMap<UnitId, Unit>) {
        for (kind, is_v4) in Self::GROUPS {
            let of_family = units.iter().filter(|(id, _)| id.is_v4 == is_v4);
            let is_in = of_family.flat_map(|(_, unit)| unit.frontends.values()).any(|plan| is_dropped(kind, plan));
            let group = self.0.entry((kind, is_v4)).or_default();
            if is_in {
                group.insert(key.clone());
            } else {
                group.remove(key);
            }
        }
    }

    /// How many there are in a group.
    #[must_use]
    pub fn count(&self, group: Group) -> usize {
        self.0.get(&group).map_or(0, BTreeSet::len)
    }
}

/// The internal policy is that of the ClusterIP, whose two lists are alike; the external one spares clients on this node.
fn is_dropped(kind: PolicyKind, plan: &FrontendPlan) -> bool {
    match kind {
        PolicyKind::Internal => plan.internal == List::Local && plan.flags & INTERNAL_DROP != 0,
        PolicyKind::External => plan.internal == List::Cluster && plan.flags & EXTERNAL_DROP != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Model,
        builders::{endpoint, service, slice},
    };

    #[test]
    fn rule_73_services_without_local_endpoints_are_counted_by_policy() {
        let key = ServiceKey::new("default", "web");
        let mut counted = NoLocalEndpoints::default();
        let mut counts = |internal: &str, external: &str, node: &str| {
            let mut model = Model::new("node-1".into());
            let web = service("web").of_type("NodePort").tcp("http", 80).node_port(30_080);
            model.handle(web.internal_policy(internal).external_policy(external).applied());
            model.handle(slice("web-1", "web").tcp("http", 80).with(endpoint("10.0.0.1").on(node)).applied());
            counted.set(&key, &model.compile(&key).0);
            NoLocalEndpoints::GROUPS.map(|group| counted.count(group))
        };
        assert_eq!(counts("Local", "Local", "node-2"), [1, 0, 1, 0]);
        assert_eq!(counts("Local", "Cluster", "node-2"), [1, 0, 0, 0]);
        assert_eq!(counts("Cluster", "Local", "node-2"), [0, 0, 1, 0]);
        assert_eq!(counts("Local", "Local", "node-1"), [0; 4]);
    }
}
