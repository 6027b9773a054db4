// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which endpoints take new connections, seen from this node (rules 17 and 20 to 24).
//!
//! In: the merged endpoints of one unit. Out: its two lists. Which clients get which list is `frontends`' business.

use std::{collections::BTreeMap, net::IpAddr};

use super::BackendKey;
use crate::model::{endpoints::Endpoint, node::Node};

/// The usable endpoints of a unit, or of one part of a split one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    /// Those for clients that may be sent anywhere. Empty only where nothing serves at all.
    pub(super) cluster: Vec<BackendKey>,
    /// Those on this node.
    pub(super) local: Vec<BackendKey>,
}

impl Lists {
    /// Those of all parts.
    pub(super) fn union(parts: &[Self]) -> Self {
        Self {
            cluster: parts.iter().flat_map(|part| &part.cluster).copied().collect(),
            local: parts.iter().flat_map(|part| &part.local).copied().collect(),
        }
    }
}

type Merged<'a> = BTreeMap<(IpAddr, u16), &'a Endpoint>;

/// Sorts the endpoints of each part into its lists. Parts are told apart for their shares alone: an endpoint that
/// terminates serves only where there is no ready one in any part.
///
/// Both hold the ready ones; where there are none of these, those that serve while they terminate (KEP-1669), so that a
/// rolling update with one pod per node loses nothing. An endpoint that is neither is never a fallback (rule 22). Topology
/// hints narrow the ready endpoints of the cluster list only.
pub(super) fn categorize(parts: &[&Merged<'_>], node: &Node) -> Vec<Lists> {
    let scopes: Vec<_> = parts.iter().map(|merged| Scope::choose(merged, node)).collect();
    let pick = |admits: &dyn Fn(Scope, &Endpoint) -> bool| -> Vec<Vec<BackendKey>> {
        let of_part = |(merged, scope): (&&Merged<'_>, &Scope)| {
            let admitted = merged.iter().filter(|(_, endpoint)| admits(*scope, endpoint));
            admitted.map(|(place, _)| BackendKey::from(*place)).collect()
        };
        parts.iter().zip(&scopes).map(of_part).collect()
    };
    let mut cluster = pick(&|scope, endpoint| endpoint.ready && scope.admits(endpoint, node));
    if cluster.iter().all(Vec::is_empty) {
        cluster = pick(&|_, endpoint| serves_while_terminating(endpoint));
    }
    let mut local = pick(&|_, endpoint| endpoint.ready && is_local(endpoint, node));
    if local.iter().all(Vec::is_empty) {
        local = pick(&|_, endpoint| serves_while_terminating(endpoint) && is_local(endpoint, node));
    }
    cluster.into_iter().zip(local).map(|(cluster, local)| Lists { cluster, local }).collect()
}

fn serves_while_terminating(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Whether an endpoint runs on this node (rule 17); never where its node is not known.
pub(super) fn is_local(endpoint: &Endpoint, node: &Node) -> bool {
    endpoint.node.as_ref() == Some(&node.name)
}

/// How far topology hints let clients of this node go (rule 24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// To endpoints meant for this node.
    SameNode,
    /// To endpoints meant for this node's zone.
    SameZone,
    /// Anywhere.
    Everywhere,
}

impl Scope {
    /// Hints count only where every ready endpoint has them and at least one is meant for us: half-written hints, or hints
    /// that forget a zone, must not leave anybody without endpoints.
    fn choose(merged: &Merged<'_>, node: &Node) -> Self {
        let ready = || merged.values().filter(|endpoint| endpoint.ready);
        let narrows = |scope: Self, has_hint: fn(&Endpoint) -> bool| {
            ready().all(|endpoint| has_hint(endpoint)) && ready().any(|endpoint| scope.admits(endpoint, node))
        };
        if narrows(Self::SameNode, |endpoint| !endpoint.for_nodes.is_empty()) {
            Self::SameNode
        } else if narrows(Self::SameZone, |endpoint| !endpoint.for_zones.is_empty()) {
            Self::SameZone
        } else {
            Self::Everywhere
        }
    }

    fn admits(self, endpoint: &Endpoint, node: &Node) -> bool {
        match self {
            Self::SameNode => endpoint.for_nodes.contains(&node.name),
            Self::SameZone => node.zone.as_ref().is_some_and(|zone| endpoint.for_zones.contains(zone)),
            Self::Everywhere => true,
        }
    }
}

#[cfg(test)]
mod tests;
