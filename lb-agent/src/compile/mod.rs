// SPDX-License-Identifier: MIT OR Apache-2.0
//! Desired state to map contents: which frontends a Service port has, and which backends serve each of them. Pure.
//!
//! In: one Service of the model, its endpoints, and what there is to know of the node. Out: [`Unit`]s, without indices
//! or offsets: those are `diff`'s, which knows what the maps hold already.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{
    address::Address,
    frontend::{FrontendKey, frontend_flags},
};

use crate::model::{
    endpoints::{self, Endpoint, Slice},
    node::Node,
    service::{Service, ServicePort},
};

mod frontends;
mod topology;
mod weights;

use topology::Lists;

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
    /// Idle time in seconds for which a client stays with its backend; 0 without session affinity.
    pub affinity_secs: u32,
    /// Sources that are admitted where a frontend asks for that ([`lb_common::frontend::frontend_flags::SOURCE_RANGES`]).
    pub source_ranges: BTreeSet<IpNet>,
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
    /// [`lb_common::frontend::frontend_flags`], but for those that say which list it is.
    pub flags: u32,
}

impl FrontendPlan {
    /// For packets that nobody serves.
    pub const REFUSED: Self = Self { internal: List::Nobody, external: List::Nobody, flags: 0 };
}

/// One of the two lists of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// All usable endpoints.
    Cluster,
    /// Those on this node.
    Local,
    /// No endpoint: packets are refused.
    Nobody,
}

/// A Service whose endpoints serve the one that is compiled: itself, unless its traffic is split.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Its ports: their names find the endpoints.
    pub ports: &'a [ServicePort],
    /// Its slices, by their names.
    pub slices: Vec<&'a Slice>,
    /// Its share of the traffic in comparison with the others'.
    pub weight: u32,
}

impl Part<'_> {
    /// The endpoints for a port of the Service that is compiled. The part's port is the one of the same name, else of the
    /// same number, else its only one.
    fn endpoints(&self, port: &ServicePort, is_v4: bool) -> BTreeMap<(IpAddr, u16), &Endpoint> {
        let of_protocol = || self.ports.iter().filter(|own| own.protocol == port.protocol);
        let by_name = of_protocol().find(|own| own.name == port.name);
        let by_number = || of_protocol().find(|own| own.port == port.port);
        let only = || of_protocol().next().filter(|_| of_protocol().count() == 1);
        let own = by_name.or_else(by_number).or_else(only);
        let endpoints = own.map(|own| endpoints::merge(self.slices.iter().copied(), &own.name, own.protocol, is_v4));
        endpoints.unwrap_or_default()
    }
}

/// What the maps should hold for a Service: a unit for each of its ports in each family of its ClusterIPs (rules 10, 80).
///
/// Whatever else is sent to a ClusterIP is refused (rule 44): the first unit of the family has that frontend.
#[must_use]
pub fn compile(service: &Service, parts: &[Part<'_>], node: &Node) -> BTreeMap<UnitId, Unit> {
    let families = service.cluster_ips.iter().map(|ip| ip.is_ipv4());
    let pairs = families.flat_map(|is_v4| service.ports.iter().map(move |port| (is_v4, port)));
    let mut units: BTreeMap<_, _> =
        pairs.map(|(is_v4, port)| compile_unit(service, port, is_v4, parts, node)).collect();
    for ip in &service.cluster_ips {
        if let Some((_, first)) = units.iter_mut().find(|(id, _)| id.is_v4 == ip.is_ipv4()) {
            first.frontends.insert(FrontendKey::any_port((*ip).into()), FrontendPlan::REFUSED);
        }
    }
    units
}

fn compile_unit(service: &Service, port: &ServicePort, is_v4: bool, parts: &[Part<'_>], node: &Node) -> (UnitId, Unit) {
    let id = UnitId {
        namespace: service.key.namespace.clone(),
        name: service.key.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        is_v4,
    };
    let merged: Vec<_> = parts.iter().map(|part| (part.weight, part.endpoints(port, is_v4))).collect();
    let (weights, drawn): (Vec<_>, Vec<_>) =
        merged.iter().filter(|(weight, _)| *weight > 0).map(|(w, m)| (*w, m)).unzip();
    let lists = topology::categorize(&drawn, node);
    let own = &node.internal_addresses;
    let admitted = service.source_ranges.admitted(is_v4, own, &service.load_balancer_ips);
    let frontends = frontends::plan(service, port, is_v4, &Lists::union(&lists), admitted.is_some());
    let share = |list: List, of: fn(&Lists) -> &[BackendKey]| {
        let is_used = frontends.values().any(|plan| plan.internal == list || plan.external == list);
        let parts: Vec<_> = weights.iter().copied().zip(lists.iter().map(of)).collect();
        if is_used { weights::share(&parts) } else { BTreeMap::new() }
    };
    let cluster = share(List::Cluster, |lists| &lists.cluster);
    let local = share(List::Local, |lists| &lists.local);
    let serving = merged.iter().flat_map(|(_, merged)| merged).filter(|(_, one)| one.ready || one.serving);
    let backends = serving.map(|(place, endpoint)| {
        let key = BackendKey::from(*place);
        let active = cluster.contains_key(&key) || local.contains_key(&key);
        (key, BackendSpec { active, local: topology::is_local(endpoint, node) })
    });
    let backends = backends.collect();
    let is_restricted = frontends.values().any(|plan| plan.flags & frontend_flags::SOURCE_RANGES != 0);
    let source_ranges = admitted.filter(|_| is_restricted).unwrap_or_default();
    let affinity_secs = service.affinity_secs.unwrap_or(0);
    (id, Unit { backends, cluster, local, frontends, affinity_secs, source_ranges })
}

#[cfg(test)]
mod tests;
