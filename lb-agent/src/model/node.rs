// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent's own Node object says: the zone, for topology hints, and the node's addresses (rule 5).

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::value::parse_unicast;

/// Well-known label of a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Taint of a node that the cluster autoscaler is about to remove.
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The node on which the agent runs. Without a Node object it has a name and nothing else, which is enough to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// Whether there is an object for it.
    pub is_known: bool,
    /// Its zone, if labelled.
    pub zone: Option<String>,
    /// Its addresses of type InternalIP, in the object's order: the first of each family is the primary one.
    pub internal_addresses: Vec<IpAddr>,
    /// Those of type ExternalIP. They may be some router's, which translates them.
    pub external_addresses: Vec<IpAddr>,
    /// Whether it is being removed from the cluster: deleted, or chosen by the cluster autoscaler (rule 69).
    pub is_leaving: bool,
}

impl Node {
    /// A node of which only the name is known.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// Reads the node's object. Addresses that can't be its own are left out: the kubelet wrote them, nobody can mend them.
    #[must_use]
    pub fn parse(name: String, object: &core::Node) -> Self {
        let labels = object.metadata.labels.as_ref();
        let zone = labels.and_then(|labels| labels.get(ZONE_LABEL)).filter(|zone| !zone.is_empty()).cloned();
        let status = object.status.as_ref();
        let addresses_of = |type_: &str| {
            let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
            let own = addresses.filter(|address| address.type_ == type_);
            own.filter_map(|address| parse_unicast(&address.address).ok()).collect()
        };
        let (internal_addresses, external_addresses) = (addresses_of("InternalIP"), addresses_of("ExternalIP"));
        let spec = object.spec.as_ref();
        let mut taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let is_chosen = taints.any(|taint| taint.key == AUTOSCALER_TAINT);
        let is_leaving = is_chosen || object.metadata.deletion_timestamp.is_some();
        Self { name, is_known: true, zone, internal_addresses, external_addresses, is_leaving }
    }
}
