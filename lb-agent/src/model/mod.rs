// SPDX-License-Identifier: MIT OR Apache-2.0
//! Desired state: what the sources have told so far, keyed and deduplicated. Pure: no I/O, no clock.
//!
//! In: [`Event`]s, in any order. Out: which Services a change concerns, and what the maps should hold for each of them.
//! The cost of an event is that of the Services it concerns, not of the cluster. It must not know of the maps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_common::frontend::FrontendKey;
use litemap::LiteMap;

use crate::{
    compile::{self, BackendKey, Part, ServiceKey, Unit, UnitId},
    hash_seed::HashSeed,
    problem::Problem,
    source::{Event, Kind, Object, ObjectId},
};

#[cfg(test)]
pub(crate) mod builders;
pub mod endpoints;
mod fault;
pub mod health_check;
pub mod node;
pub mod service;
mod service_cidrs;
mod split;
mod value;

use endpoints::Slice;
use fault::Field;
use health_check::{HealthCheck, health_check};
use node::Node;
use service::Service;
use service_cidrs::ServiceCidrs;
use split::{Split, Splits};

impl ServiceKey {
    /// The namespace and name of an object; its source has filled in the defaults.
    fn of(metadata: &ObjectMeta) -> Self {
        Self::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
    }
}

/// The desired state.
pub struct Model {
    node: Node,
    /// Hashed, as are those below: to find a name in a tree of many takes a cache miss for every name on the way.
    services: HashMap<ServiceKey, Service>,
    /// Slices of each Service, by namespace and its name, by their own names; the Service may not be there.
    /// In a list, because a tree sets room aside for eleven, and most Services have one; boxed, to be moved cheaply in it.
    slices: HashMap<String, HashMap<String, LiteMap<String, Box<Slice>>>>,
    /// The name of each slice's Service, by the slice's namespace, which is the Service's too, and name.
    slice_owners: HashMap<(String, String), String>,
    splits: Splits,
    service_cidrs: ServiceCidrs,
    dirty: BTreeSet<ServiceKey>,
    are_service_cidrs_unknown: bool,
    has_external_ips: bool,
    /// ClusterIPs at which the node answers itself.
    left: BTreeSet<(ServiceKey, IpAddr)>,
    hash_seed: Option<HashSeed>,
    is_synced: bool,
    is_incomplete: bool,
}

impl Model {
    /// Nothing known yet, seen from the node of that name.
    #[must_use]
    pub fn new(node_name: String) -> Self {
        Self {
            node: Node::new(node_name),
            services: HashMap::new(),
            slices: HashMap::new(),
            slice_owners: HashMap::new(),
            splits: Splits::default(),
            service_cidrs: ServiceCidrs::default(),
            dirty: BTreeSet::new(),
            are_service_cidrs_unknown: false,
            has_external_ips: true,
            left: BTreeSet::new(),
            hash_seed: None,
            is_synced: false,
            is_incomplete: false,
        }
    }

    /// The ClusterIPs of Services among these addresses.
    #[must_use]
    pub fn cluster_ips_among<T>(&self, addresses: &BTreeMap<IpAddr, T>) -> BTreeSet<(ServiceKey, IpAddr)> {
        if addresses.is_empty() {
            return BTreeSet::new();
        }
        let of_service = |service: &Service| {
            let ips = service.cluster_ips.iter().filter(|ip| addresses.contains_key(ip));
            ips.map(|ip| (service.key.clone(), *ip)).collect::<Vec<_>>()
        };
        self.services.values().flat_map(of_service).collect()
    }

    /// Leaves these ClusterIPs to the node, and serves those again that were left to it before, which are returned.
    pub fn leave_to_node(&mut self, left: BTreeSet<(ServiceKey, IpAddr)>) -> BTreeSet<(ServiceKey, IpAddr)> {
        self.dirty.extend(self.left.symmetric_difference(&left).map(|(key, _)| key.clone()));
        std::mem::replace(&mut self.left, left)
    }

    /// Whether external IPs are served (rule 87).
    #[must_use]
    pub fn serving_external_ips(self, has_external_ips: bool) -> Self {
        Self { has_external_ips, ..self }
    }

    /// Takes in what a source says. Returns the problems that concern no Service; those of a Service are
    /// [`Model::compile`]'s, for as long as they last.
    pub fn handle(&mut self, event: Event) -> Vec<Problem> {
        match event {
            Event::Apply(Object::Service(object)) => self.apply_service(&object),
            Event::Apply(Object::EndpointSlice(object)) => self.apply_slice(&object),
            Event::Apply(Object::Node(object)) => self.apply_node(&object),
            Event::Apply(Object::ServiceCidr(object)) => return self.service_cidrs.apply(&object),
            Event::Delete(id) => self.delete(id),
            Event::Synced => self.is_synced = true,
            Event::Incomplete(is_incomplete) => self.is_incomplete = is_incomplete,
            Event::ServiceCidrsUnknown(are_unknown) => self.are_service_cidrs_unknown = are_unknown,
            Event::HashSeed(seed) => self.hash_seed = Some(seed),
            Event::Relisting(_) => {}
            Event::Problem(problem) => return vec![problem],
        }
        Vec::new()
    }

    /// Whether all sources have delivered what existed at the start. Until then nothing may be written (rule 7).
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Whether all that existed at the start is known: what has not been told of isn't there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_synced && !self.is_incomplete
    }

    /// Whether what is told of a Service may take the place of what an earlier agent was told: not where a field can't be read
    /// and its last good value is not known here, nor where something may be lacking only because a source could not read it.
    #[must_use]
    pub fn is_certain(&self, key: &ServiceKey) -> bool {
        let is_told = |key: &ServiceKey| self.services.contains_key(key) && self.slices(key).next().is_some();
        let Some(service) = self.services.get(key) else { return !self.is_incomplete };
        let is_all_told = || match &service.split {
            Some(split) => split.weights.keys().all(|name| is_told(&ServiceKey::new(&*key.namespace, &**name))),
            None => is_told(key),
        };
        let is_held = |field: &Field| *field != Field::OnBackendRemoval;
        let is_readable =
            !service.stopgaps.iter().any(is_held) && self.slices(key).all(|slice| slice.stopgaps.is_empty());
        is_readable && (!self.is_incomplete || is_all_told())
    }

    /// Whether what becomes of a Service's connections can't be read, and was never told since the start.
    #[must_use]
    pub fn lacks_good_removal(&self, key: &ServiceKey) -> bool {
        self.services.get(key).is_some_and(|service| service.stopgaps.contains(&Field::OnBackendRemoval))
    }

    /// What an earlier agent was told of that is the last good value.
    pub fn recover_removal(&mut self, key: &ServiceKey, resets_on_removal: bool) {
        if let Some(service) = self.services.get_mut(key) {
            service.resets_on_removal = resets_on_removal;
            service.stopgaps.remove(&Field::OnBackendRemoval);
        }
    }

    /// Whether a Service wants a split that names Services which have not been there since the start: an earlier agent may
    /// have known a better one.
    #[must_use]
    pub fn lacks_good_split(&self, key: &ServiceKey) -> bool {
        self.services.get(key).is_some_and(|service| service.split.is_some()) && !self.splits.has_good(key)
    }

    /// Whether any slice of a namespace has an endpoint that is ready there.
    #[must_use]
    pub fn has_ready_endpoint(&self, namespace: &str, backend: &BackendKey) -> bool {
        let services = self.slices.get(namespace).into_iter().flat_map(HashMap::values);
        services.flat_map(LiteMap::values).any(|slice| slice.has_ready(backend))
    }

    /// Services that must be compiled again, deleted ones among them; none of them the next time.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    /// Whether a Service is load-balanced here.
    #[must_use]
    pub fn has_service(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }

    /// Whether a Service wants one of these frontends.
    #[must_use]
    pub fn wants_any(&self, key: &ServiceKey, frontends: &BTreeSet<FrontendKey>) -> bool {
        self.services.get(key).is_some_and(|service| service.frontends().any(|own| frontends.contains(&own)))
    }

    /// All Services that are load-balanced here.
    #[must_use]
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        self.services.keys().cloned().collect()
    }

    /// Creation of a Service in seconds since 1970; [`i64::MAX`] where that is not known, or there is no such Service.
    /// The older one keeps a contested frontend, then the one with the lesser key (rule 18).
    #[must_use]
    pub fn creation_secs(&self, key: &ServiceKey) -> i64 {
        self.services.get(key).map_or(i64::MAX, |service| service.creation_secs)
    }

    /// What the maps should hold for a Service, and what is wrong with it and its slices at present. Empty for a
    /// Service that isn't there.
    #[must_use]
    pub fn compile(&self, key: &ServiceKey) -> (BTreeMap<UnitId, Unit>, Vec<Problem>) {
        let Some(service) = self.services.get(key) else { return Default::default() };
        let mut problems = self.object_problems(service);
        problems.extend(service.split.as_ref().and_then(|split| self.split_problem(key, split, None)));
        let mut units = compile::compile(service, &self.all_parts(service), &self.node);
        let is_left = |frontend: &FrontendKey| self.left.contains(&(key.clone(), frontend.address.into()));
        units.values_mut().filter(|_| !self.left.is_empty()).for_each(|unit| {
            unit.frontends.retain(|frontend, _| !is_left(frontend));
        });
        (units, problems)
    }

    /// What is wrong with a Service that stays as an earlier agent left it.
    #[must_use]
    pub fn problems_while_kept(&self, key: &ServiceKey) -> Vec<Problem> {
        const MEANWHILE: &str = "the Service stays as it was before the agent started";
        let Some(service) = self.services.get(key) else { return Vec::new() };
        let mut problems = self.object_problems(service);
        problems.iter_mut().for_each(|problem| problem.remedy.push_str(&format!("; until then {MEANWHILE}")));
        problems.extend(service.split.as_ref().and_then(|split| self.split_problem(key, split, Some(MEANWHILE))));
        problems
    }

    /// What is wrong with the objects themselves.
    fn object_problems(&self, service: &Service) -> Vec<Problem> {
        let of_slices = self.slices(&service.key).flat_map(|slice| &slice.problems);
        service.problems.iter().chain(of_slices).cloned().collect()
    }

    /// What load balancers learn of a Service at its `healthCheckNodePort`; `None` where it has none.
    #[must_use]
    pub fn health_check(&self, key: &ServiceKey) -> Option<HealthCheck> {
        let service = self.services.get(key)?;
        let parts = self.all_parts(service);
        // A part without weight gets no new connection, so whoever asks must not be told of its endpoints.
        let slices = parts.iter().filter(|part| part.weight > 0).flat_map(|part| part.slices.iter().copied());
        health_check(service, slices, &self.node)
    }

    /// Whether a Service must be compiled again.
    #[must_use]
    pub fn is_dirty(&self, key: &ServiceKey) -> bool {
        self.dirty.contains(key)
    }

    /// Whose endpoints serve: the Service's own, or those of the Services of its split.
    fn all_parts<'a>(&'a self, service: &'a Service) -> Vec<Part<'a>> {
        match &service.split {
            Some(split) => self.parts(&service.key, self.splits.in_force(&service.key, split)),
            None => vec![self.part(service, 1)],
        }
    }

    /// The Services that share the traffic of one with a split; those that are not there have no endpoints.
    fn parts(&self, key: &ServiceKey, split: &Split) -> Vec<Part<'_>> {
        let there = |(name, &weight): (&String, &u32)| {
            Some(self.part(self.services.get(&ServiceKey::new(&*key.namespace, &**name))?, weight))
        };
        split.weights.iter().filter_map(there).collect()
    }

    /// The slices of a Service.
    fn slices(&self, key: &ServiceKey) -> impl Iterator<Item = &Slice> {
        let slices = self.slices.get(&key.namespace).and_then(|services| services.get(&key.name));
        slices.into_iter().flat_map(LiteMap::values).map(Box::as_ref)
    }

    fn part<'a>(&'a self, service: &'a Service, weight: u32) -> Part<'a> {
        Part { ports: &service.ports, slices: self.slices(&service.key).collect(), weight }
    }

    /// `meanwhile` is how it is served then, if not by what is known here.
    fn split_problem(&self, key: &ServiceKey, split: &Split, meanwhile: Option<&str>) -> Option<Problem> {
        let is_missing = |name: &&String| !self.services.contains_key(&ServiceKey::new(&*key.namespace, &***name));
        let missing: Vec<_> = split.weights.keys().filter(is_missing).map(String::as_str).collect();
        let is_in_force = self.splits.in_force(key, split) == split;
        let known = if is_in_force { "the others get their share" } else { "the last good split stays in force" };
        let meanwhile = meanwhile.unwrap_or(known);
        (!missing.is_empty()).then(|| {
            Problem::new(
                format!("Service {key}"),
                format!("its traffic is split among Services that are not there: {}", missing.join(", ")),
                format!("create them, or correct the annotation shunt.dev/split; until then {meanwhile}"),
            )
        })
    }

    /// What the agent's own Node object says; of an unknown one, the name alone.
    #[must_use]
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The ranges from which ClusterIPs are allocated; `None` where that is not known.
    #[must_use]
    pub fn service_cidrs(&self) -> Option<BTreeSet<IpNet>> {
        (!self.are_service_cidrs_unknown).then(|| self.service_cidrs.ranges())
    }

    /// The key of the flow hash, if the sources know one.
    #[must_use]
    pub const fn hash_seed(&self) -> Option<HashSeed> {
        self.hash_seed
    }

    /// Whether there is a Node object for the agent's own node.
    #[must_use]
    pub fn is_node_known(&self) -> bool {
        self.node.is_known
    }

    /// Whether the agent's own Node is being removed from the cluster.
    #[must_use]
    pub fn is_node_leaving(&self) -> bool {
        self.node.is_leaving
    }

    /// A change that concerns forwarding makes the Service dirty; any other (an annotation, a resourceVersion) costs nothing.
    fn apply_service(&mut self, object: &core::Service) {
        let key = ServiceKey::of(&object.metadata);
        let old = self.services.get(&key);
        let Some(mut next) = Service::parse(object, old) else { return self.remove_service(key) };
        if !self.has_external_ips {
            next.drop_external_ips();
        }
        if old != Some(&next) {
            if old.is_some_and(|old| old.uid != next.uid) {
                // Another Service of the same name: the split that was in force is not its own.
                self.splits.update(&key, None, |_| false);
            }
            self.services.insert(key.clone(), next);
            self.note_service(key);
        }
    }

    fn remove_service(&mut self, key: ServiceKey) {
        if self.services.remove(&key).is_some() {
            self.note_service(key);
        }
    }

    /// A Service has changed, and with it those whose split names it.
    fn note_service(&mut self, key: ServiceKey) {
        let mut concerned = self.splits.users(&key);
        concerned.insert(key);
        for key in &concerned {
            let wanted = self.services.get(key).and_then(|service| service.split.as_ref());
            self.splits.update(key, wanted, |part| self.services.contains_key(part));
        }
        self.dirty.extend(concerned);
    }

    fn apply_slice(&mut self, object: &discovery::EndpointSlice) {
        let own = ServiceKey::of(&object.metadata);
        let id = (own.namespace, own.name);
        let owner = self.slice_owners.get(&id);
        let before = owner.and_then(|owner| self.slices.get(&id.0)?.get(owner)?.get(&id.1)).map(Box::as_ref);
        let Some(slice) = Slice::parse(object, before) else { return self.remove_slice(&id) };
        if self.slice_owners.get(&id).is_some_and(|owner| *owner != slice.service.name) {
            self.remove_slice(&id);
        }
        let key = slice.service.clone();
        let siblings = self.slices.entry(key.namespace.clone()).or_default().entry(key.name.clone()).or_default();
        if siblings.get(&id.1).map(Box::as_ref) != Some(&slice) {
            siblings.insert(id.1.clone(), Box::new(slice));
            self.slice_owners.insert(id, key.name.clone());
            self.touch(key);
        }
    }

    fn remove_slice(&mut self, id: &(String, String)) {
        let Some(owner) = self.slice_owners.remove(id) else { return };
        let owner = ServiceKey::new(&*id.0, owner);
        if let Some(services) = self.slices.get_mut(&owner.namespace) {
            if let Some(siblings) = services.get_mut(&owner.name) {
                siblings.remove(&id.1);
                if siblings.is_empty() {
                    services.remove(&owner.name);
                }
            }
            if services.is_empty() {
                self.slices.remove(&owner.namespace);
            }
        }
        self.touch(owner);
    }

    /// Endpoints of a Service that isn't there concern nobody yet.
    fn touch(&mut self, key: ServiceKey) {
        self.dirty.extend(self.splits.users(&key));
        if self.services.contains_key(&key) {
            self.dirty.insert(key);
        }
    }

    fn apply_node(&mut self, object: &core::Node) {
        if object.metadata.name.as_deref() == Some(&self.node.name) {
            self.replace_node(Node::parse(self.node.name.clone(), object));
        }
    }

    /// Any Service may hang on the zone (rule 5); those with source ranges hang on the addresses, too (rule 35).
    fn replace_node(&mut self, node: Node) {
        let has_moved = node.zone != self.node.zone;
        let has_other_addresses = node.internal_addresses != self.node.internal_addresses;
        let is_concerned = |service: &&Service| has_moved || (has_other_addresses && !service.source_ranges.is_empty());
        self.dirty.extend(self.services.values().filter(is_concerned).map(|service| service.key.clone()));
        self.node = node;
    }

    fn delete(&mut self, id: ObjectId) {
        match id.kind {
            Kind::Service => self.remove_service(ServiceKey { namespace: id.namespace, name: id.name }),
            Kind::EndpointSlice => self.remove_slice(&(id.namespace, id.name)),
            Kind::Node if id.name == self.node.name => self.replace_node(Node::new(id.name)),
            Kind::Node => {}
            Kind::ServiceCidr => self.service_cidrs.remove(&id.name),
        }
    }
}

#[cfg(test)]
mod tests;
