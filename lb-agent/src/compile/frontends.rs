// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a Service port is reached, and which list of endpoints serves there (rules 27, 31 to 34, 37 to 42).
//!
//! In: a Service port and the lists of its unit. Out: the frontends of one family. Which local addresses answer a
//! NodePort is the node's business: here it stands once.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::frontend::{FrontendKey, frontend_flags};

use super::{FrontendPlan, List, topology::Lists};
use crate::model::service::{Policy, Service, ServicePort, ServiceType};

/// The frontends of a Service port in one family, in which the Service has a ClusterIP.
///
/// An address that stands twice belongs to the first of: ClusterIP, external IPs, load-balancer IPs.
pub(super) fn plan(
    service: &Service,
    port: &ServicePort,
    is_v4: bool,
    lists: &Lists,
) -> BTreeMap<FrontendKey, FrontendPlan> {
    let inside = plan_of(internal_lists(service), lists);
    let outside = plan_of(external_lists(service), lists);
    let at = |ip: &IpAddr| FrontendKey::new((*ip).into(), port.port.to_be(), port.protocol);
    let is_ours = |ip: &&IpAddr| ip.is_ipv4() == is_v4;

    let mut frontends = BTreeMap::new();
    for ip in service.cluster_ips.iter().filter(is_ours) {
        frontends.insert(at(ip), inside);
    }
    for ip in service.external_ips.iter().chain(&service.load_balancer_ips).filter(is_ours) {
        frontends.entry(at(ip)).or_insert(outside);
    }
    if let Some(number) = port.node_port {
        frontends.insert(FrontendKey::node_port(is_v4, number.to_be(), port.protocol), outside);
    }
    frontends
}

/// Rule 37: the internal policy governs the ClusterIP, for whoever reaches it.
fn internal_lists(service: &Service) -> (List, List) {
    match service.internal_policy {
        Policy::Cluster => (List::Cluster, List::Cluster),
        Policy::Local => (List::Local, List::Local),
    }
}

/// Rule 38: with the policy Local, clients on this node still reach endpoints anywhere.
fn external_lists(service: &Service) -> (List, List) {
    let is_local = service.external_policy == Policy::Local && honours_external_policy(service);
    (List::Cluster, if is_local { List::Local } else { List::Cluster })
}

/// Rule 39.
fn honours_external_policy(service: &Service) -> bool {
    match service.service_type {
        ServiceType::NodePort | ServiceType::LoadBalancer => true,
        ServiceType::ClusterIp => !service.external_ips.is_empty(),
    }
}

fn plan_of((internal, external): (List, List), lists: &Lists) -> FrontendPlan {
    let mut flags = 0;
    if is_drop(internal, lists) {
        flags |= frontend_flags::INTERNAL_DROP;
    }
    if is_drop(external, lists) {
        flags |= frontend_flags::EXTERNAL_DROP;
    }
    FrontendPlan { internal, external, flags }
}

/// Without any endpoint clients are told so (rule 40); where only others may use the endpoints, silence (rules 41, 42):
/// a load balancer's probe or a retry may find the node that has one.
fn is_drop(list: List, lists: &Lists) -> bool {
    list == List::Local && lists.local.is_empty() && !lists.cluster.is_empty()
}

#[cfg(test)]
mod tests;
