// SPDX-License-Identifier: MIT OR Apache-2.0
//! Desired state to map contents: which frontends a Service port has, and which backends serve each of them. Pure.
//!
//! In: one Service of the model, its endpoints, and what there is to know of the node. Out: [`Unit`]s, without indices
//! or offsets: those are `diff`'s, which knows what the maps hold already.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use lb_common::{address::Address, frontend::FrontendKey};

use crate::model::{
    endpoints::{self, Slice},
    node::Node,
    service::{Service, ServicePort},
};

mod frontends;
mod topology;

/// Identity of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceKey {
    /// The Service `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The unit that is load-balanced (rule 10): a Service port of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; may be empty when it is the only one.
    pub port_name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Family of its frontends and backends.
    pub is_v4: bool,
}

impl fmt::Display for UnitId {
    /// `namespace/name:port`, without the colon where the port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if self.port_name.is_empty() { Ok(()) } else { write!(f, ":{}", self.port_name) }
    }
}

/// What the maps should hold for one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Every endpoint that serves: those that get new flows, and those that only keep theirs.
    pub backends: BTreeMap<BackendKey, BackendSpec>,
    /// The cluster list (rule 20) with weights.
    pub cluster: BTreeMap<BackendKey, u32>,
    /// The local list (rule 21) with weights.
    pub local: BTreeMap<BackendKey, u32>,
    /// Where the unit is reached, and which list serves there.
    pub frontends: BTreeMap<FrontendKey, FrontendPlan>,
}

/// Identity of a backend within its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// Address of the endpoint.
    pub address: Address,
    /// Its port, host byte order.
    pub port: u16,
}

impl From<(IpAddr, u16)> for BackendKey {
    fn from((ip, port): (IpAddr, u16)) -> Self {
        Self { address: ip.into(), port }
    }
}

/// What is to know of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Whether it stands in a list; else it only keeps the flows that it has.
    pub active: bool,
    /// Whether it runs on this node (rule 17).
    pub local: bool,
}

/// Which list serves a frontend's clients, by where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendPlan {
    /// Pods and processes of this node.
    pub internal: List,
    /// Everybody else.
    pub external: List,
    /// [`lb_common::frontend::frontend_flags`].
    pub flags: u32,
}

/// One of the two lists of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// All usable endpoints.
    Cluster,
    /// Those on this node.
    Local,
}

/// What the maps should hold for a Service: a unit for each of its ports in each family of its ClusterIPs (rules 10, 80).
#[must_use]
pub fn compile(service: &Service, slices: &BTreeMap<String, Slice>, node: &Node) -> BTreeMap<UnitId, Unit> {
    let families = service.cluster_ips.iter().map(|ip| ip.is_ipv4());
    let pairs = families.flat_map(|is_v4| service.ports.iter().map(move |port| (is_v4, port)));
    pairs.map(|(is_v4, port)| compile_unit(service, port, is_v4, slices, node)).collect()
}

fn compile_unit(
    service: &Service,
    port: &ServicePort,
    is_v4: bool,
    slices: &BTreeMap<String, Slice>,
    node: &Node,
) -> (UnitId, Unit) {
    let id = UnitId {
        namespace: service.key.namespace.clone(),
        name: service.key.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        is_v4,
    };
    let merged = endpoints::merge(slices.values(), &port.name, port.protocol, is_v4);
    let lists = topology::categorize(&merged, node);
    let frontends = frontends::plan(service, port, is_v4, &lists);
    let uses = |list| frontends.values().any(|plan| plan.internal == list || plan.external == list);
    let cluster = weigh(if uses(List::Cluster) { &lists.cluster } else { &[] });
    let local = weigh(if uses(List::Local) { &lists.local } else { &[] });
    let serving = merged.iter().filter(|(_, endpoint)| endpoint.ready || endpoint.serving);
    let backends = serving.map(|(place, endpoint)| {
        let key = BackendKey::from(*place);
        let active = cluster.contains_key(&key) || local.contains_key(&key);
        (key, BackendSpec { active, local: topology::is_local(endpoint, node) })
    });
    (id, Unit { backends: backends.collect(), cluster, local, frontends })
}

/// Every endpoint of a list counts alike (rule 26).
fn weigh(list: &[BackendKey]) -> BTreeMap<BackendKey, u32> {
    list.iter().map(|key| (*key, 1)).collect()
}

#[cfg(test)]
mod tests;
