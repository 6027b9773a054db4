// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a load balancer learns at a Service's `healthCheckNodePort`: how many endpoints this node has (rules 65 and 67).

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1 as core;

use super::{
    endpoints::Slice,
    node::Node,
    service::{Policy, Service, ServiceType},
    value::parse_port,
};

/// What there is to answer for one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where it is asked, host byte order.
    pub port: u16,
    /// Distinct addresses of endpoints on this node that are ready, IPv4 and IPv6; `None` where the Service has no
    /// address of that family. Terminating endpoints don't count, even while they serve.
    pub local_endpoints: [Option<usize>; 2],
}

impl HealthCheck {
    /// The same for a node that has none of the endpoints.
    #[must_use]
    pub fn without_endpoints(self) -> Self {
        Self { local_endpoints: self.local_endpoints.map(|count| count.map(|_| 0)), ..self }
    }
}

/// The port of the object, if it has one.
pub(super) fn parse_health_check_port(spec: &core::ServiceSpec) -> Option<u16> {
    spec.health_check_node_port.and_then(parse_port)
}

/// Only a load balancer that must avoid nodes without endpoints has to ask.
pub(super) fn health_check<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &Node,
) -> Option<HealthCheck> {
    let is_asked = service.service_type == ServiceType::LoadBalancer && service.external_policy == Policy::Local;
    let port = service.health_check_port.filter(|_| is_asked)?;
    let local_endpoints = [true, false].map(|is_v4| {
        let has_family = service.cluster_ips.iter().any(|ip| ip.is_ipv4() == is_v4);
        has_family.then(|| count_local(slices.clone(), node, is_v4))
    });
    Some(HealthCheck { port, local_endpoints })
}

fn count_local<'a>(slices: impl Iterator<Item = &'a Slice>, node: &Node, is_v4: bool) -> usize {
    // A slice without ports leads nowhere.
    let endpoints = slices.filter(|slice| !slice.ports.is_empty()).flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|one| one.ready && one.node.as_deref() == Some(&*node.name));
    local.map(|one| one.address).filter(|ip| ip.is_ipv4() == is_v4).collect::<BTreeSet<IpAddr>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builders::{ServiceBuilder, endpoint, service, slice};

    fn checked(builder: ServiceBuilder) -> Option<HealthCheck> {
        let slices = [
            slice("web-1", "web")
                .tcp("http", 8080)
                .with(endpoint("10.0.0.1").on("node-1"))
                .with(endpoint("10.0.0.2").on("node-1").terminating())
                .with(endpoint("10.0.0.3").on("node-1").unready())
                .with(endpoint("10.0.0.4").on("node-2")),
            slice("web-2", "web").tcp("admin", 9090).with(endpoint("10.0.0.1").on("node-1")),
            slice("web-3", "web").with(endpoint("10.0.0.5").on("node-1")),
        ];
        let slices: Vec<Slice> = slices.iter().filter_map(|slice| Slice::parse(&slice.0, None)).collect();
        health_check(&Service::parse(&builder.0, None).unwrap(), slices.iter(), &Node::new("node-1".into()))
    }

    fn balanced() -> ServiceBuilder {
        let local = service("web").of_type("LoadBalancer").external_policy("Local");
        local.edit(|spec| spec.health_check_node_port = Some(32_000))
    }

    #[test]
    fn rule_65_only_load_balancers_with_a_local_policy_are_asked() {
        assert_eq!(checked(balanced()).map(|check| check.port), Some(32_000));
        assert_eq!(checked(balanced().of_type("NodePort")), None);
        assert_eq!(checked(balanced().external_policy("Cluster")), None);
        assert_eq!(checked(balanced().edit(|spec| spec.health_check_node_port = Some(0))), None);
    }

    #[test]
    fn rule_67_distinct_addresses_of_ready_local_endpoints_count() {
        assert_eq!(checked(balanced()).unwrap().local_endpoints, [Some(1), None]);
        let dual = balanced().cluster_ips(&["10.96.0.1", "fd00::1"]);
        assert_eq!(checked(dual).unwrap().local_endpoints, [Some(1), Some(0)]);
    }
}
