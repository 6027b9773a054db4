// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a Service port is reached, and which list of endpoints serves there (rules 27, 31 to 35, 37 to 42).
//!
//! In: a Service port, the lists of its unit, and whether its load-balancer addresses are for some clients only. Out: the
//! frontends of one family. Which local addresses answer a NodePort is the node's business: here it stands once.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::frontend::{FrontendKey, frontend_flags};

use super::{FrontendPlan, List, topology::Lists};
use crate::model::service::{Policy, Service, ServicePort, ServiceType};

/// The frontends of a Service port in one family, in which the Service has a ClusterIP.
///
/// An address that stands twice is a ClusterIP first of all, then a load-balancer IP, then an external IP: what restricts
/// its clients counts.
pub(super) fn plan(
    service: &Service,
    port: &ServicePort,
    is_v4: bool,
    lists: &Lists,
    is_restricted: bool,
) -> BTreeMap<FrontendKey, FrontendPlan> {
    let own = if service.resets_on_removal { frontend_flags::RESET_ON_REMOVAL } else { 0 };
    let inside = plan_of(internal_lists(service), lists, own);
    let outside = plan_of(external_lists(service), lists, own);
    let restriction = if is_restricted { frontend_flags::SOURCE_RANGES } else { 0 };
    let external_ip = FrontendPlan { flags: outside.flags | failover(service, outside), ..outside };
    let load_balancer = FrontendPlan { flags: external_ip.flags | restriction, ..external_ip };
    let at = |ip: &IpAddr| FrontendKey::new((*ip).into(), port.port.to_be(), port.protocol);
    let is_ours = |ip: &&IpAddr| ip.is_ipv4() == is_v4;

    let mut frontends = BTreeMap::new();
    for (ips, plan) in [
        (&service.external_ips, external_ip),
        (&service.load_balancer_ips, load_balancer),
        (&service.cluster_ips, inside),
    ] {
        frontends.extend(ips.iter().filter(is_ours).map(|ip| (at(ip), plan)));
    }
    if let Some(number) = port.node_port {
        frontends.insert(FrontendKey::node_port(is_v4, number.to_be(), port.protocol), outside);
    }
    frontends
}

/// Rule 86: with the policy Local, what finds no endpoint here goes on by the node's routes, if the Service wants that. Not at
/// NodePorts, which are the node's own.
fn failover(service: &Service, outside: FrontendPlan) -> u32 {
    if service.passes_on_failover && outside.external == List::Local { frontend_flags::EXTERNAL_PASS } else { 0 }
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

fn plan_of((internal, external): (List, List), lists: &Lists, mut flags: u32) -> FrontendPlan {
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
