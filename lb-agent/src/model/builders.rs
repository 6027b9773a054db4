// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kubernetes objects for tests, in as few words as the test needs. Everything is in the namespace `default`.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::source::{Event, Kind, ObjectId};

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some("default".into()), name: Some(name.into()), ..Default::default() }
}

fn strings(texts: &[&str]) -> Option<Vec<String>> {
    Some(texts.iter().map(ToString::to_string).collect())
}

/// The event that an object of that name is gone.
pub(crate) fn deleted(kind: Kind, name: &str) -> Event {
    let namespace = if kind.is_namespaced() { "default".into() } else { String::new() };
    Event::Delete(ObjectId { kind, namespace, name: name.into() })
}

/// A ClusterIP Service at 10.96.0.1 without ports.
pub(crate) fn service(name: &str) -> ServiceBuilder {
    let object = core::Service { metadata: metadata(name), spec: Some(Default::default()), status: None };
    ServiceBuilder(object).cluster_ips(&["10.96.0.1"])
}

#[derive(Clone, Debug)]
pub(crate) struct ServiceBuilder(pub(crate) core::Service);

impl ServiceBuilder {
    /// Changes whatever has no method of its own.
    pub(crate) fn edit(mut self, edit: impl FnOnce(&mut core::ServiceSpec)) -> Self {
        edit(self.0.spec.as_mut().unwrap());
        self
    }

    pub(crate) fn cluster_ips(self, ips: &[&str]) -> Self {
        self.edit(|spec| {
            spec.cluster_ip = ips.first().map(ToString::to_string);
            spec.cluster_ips = strings(ips);
        })
    }

    pub(crate) fn of_type(self, type_: &str) -> Self {
        self.edit(|spec| spec.type_ = Some(type_.into()))
    }

    pub(crate) fn tcp(self, name: &str, port: i32) -> Self {
        self.port(name, port, "TCP")
    }

    pub(crate) fn udp(self, name: &str, port: i32) -> Self {
        self.port(name, port, "UDP")
    }

    pub(crate) fn port(self, name: &str, port: i32, protocol: &str) -> Self {
        let port =
            core::ServicePort { name: Some(name.into()), port, protocol: Some(protocol.into()), ..Default::default() };
        self.edit(|spec| spec.ports.get_or_insert_default().push(port))
    }

    /// Gives the last port a NodePort.
    pub(crate) fn node_port(self, number: i32) -> Self {
        self.edit(|spec| spec.ports.as_mut().unwrap().last_mut().unwrap().node_port = Some(number))
    }

    pub(crate) fn external_ips(self, ips: &[&str]) -> Self {
        self.edit(|spec| spec.external_ips = strings(ips))
    }

    pub(crate) fn source_ranges(self, ranges: &[&str]) -> Self {
        self.edit(|spec| spec.load_balancer_source_ranges = strings(ranges))
    }

    /// Session affinity, with a timeout or without.
    pub(crate) fn affinity(self, timeout_seconds: Option<i32>) -> Self {
        self.edit(|spec| {
            spec.session_affinity = Some("ClientIP".into());
            spec.session_affinity_config =
                Some(core::SessionAffinityConfig { client_ip: Some(core::ClientIPConfig { timeout_seconds }) });
        })
    }

    pub(crate) fn internal_policy(self, policy: &str) -> Self {
        self.edit(|spec| spec.internal_traffic_policy = Some(policy.into()))
    }

    pub(crate) fn external_policy(self, policy: &str) -> Self {
        self.edit(|spec| spec.external_traffic_policy = Some(policy.into()))
    }

    /// Adds an address of a load balancer.
    pub(crate) fn ingress(mut self, ip: &str, mode: Option<&str>) -> Self {
        let entry =
            core::LoadBalancerIngress { ip: Some(ip.into()), ip_mode: mode.map(Into::into), ..Default::default() };
        let status = self.0.status.get_or_insert_default();
        status.load_balancer.get_or_insert_default().ingress.get_or_insert_default().push(entry);
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    pub(crate) fn applied(self) -> Event {
        Event::Apply(self.0.into())
    }
}

/// An IPv4 slice of a Service, without ports and endpoints.
pub(crate) fn slice(name: &str, service: &str) -> SliceBuilder {
    let mut object =
        discovery::EndpointSlice { metadata: metadata(name), address_type: "IPv4".into(), ..Default::default() };
    object.metadata.labels = Some(BTreeMap::from([("kubernetes.io/service-name".into(), service.into())]));
    SliceBuilder(object)
}

#[derive(Clone, Debug)]
pub(crate) struct SliceBuilder(pub(crate) discovery::EndpointSlice);

impl SliceBuilder {
    pub(crate) fn address_type(mut self, address_type: &str) -> Self {
        self.0.address_type = address_type.into();
        self
    }

    pub(crate) fn tcp(self, name: &str, port: i32) -> Self {
        self.port(Some(name), Some(port), Some("TCP"))
    }

    pub(crate) fn udp(self, name: &str, port: i32) -> Self {
        self.port(Some(name), Some(port), Some("UDP"))
    }

    pub(crate) fn port(mut self, name: Option<&str>, port: Option<i32>, protocol: Option<&str>) -> Self {
        let port = discovery::EndpointPort {
            name: name.map(Into::into),
            port,
            protocol: protocol.map(Into::into),
            ..Default::default()
        };
        self.0.ports.get_or_insert_default().push(port);
        self
    }

    pub(crate) fn with(mut self, endpoint: EndpointBuilder) -> Self {
        self.0.endpoints.get_or_insert_default().push(endpoint.0);
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    pub(crate) fn applied(self) -> Event {
        Event::Apply(self.0.into())
    }
}

/// An endpoint with nothing but its address: ready, of no node.
pub(crate) fn endpoint(address: &str) -> EndpointBuilder {
    EndpointBuilder(discovery::Endpoint { addresses: vec![address.into()], ..Default::default() })
}

#[derive(Clone, Debug)]
pub(crate) struct EndpointBuilder(pub(crate) discovery::Endpoint);

impl EndpointBuilder {
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.0.node_name = Some(node.into());
        self
    }

    pub(crate) fn conditions(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        self.0.conditions = Some(discovery::EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        });
        self
    }

    /// Serves its last clients.
    pub(crate) fn terminating(self) -> Self {
        self.conditions(false, true, true)
    }

    /// Fails its readiness probe.
    pub(crate) fn unready(self) -> Self {
        self.conditions(false, false, false)
    }

    pub(crate) fn for_zones(mut self, zones: &[&str]) -> Self {
        let zones = zones.iter().map(|zone| discovery::ForZone { name: (*zone).into() }).collect();
        self.0.hints.get_or_insert_default().for_zones = Some(zones);
        self
    }

    pub(crate) fn for_nodes(mut self, nodes: &[&str]) -> Self {
        let nodes = nodes.iter().map(|node| discovery::ForNode { name: (*node).into() }).collect();
        self.0.hints.get_or_insert_default().for_nodes = Some(nodes);
        self
    }
}

/// The event that a node is there, with a zone and InternalIPs.
pub(crate) fn node(name: &str, zone: Option<&str>, addresses: &[&str]) -> Event {
    let address = |ip: &&str| core::NodeAddress { type_: "InternalIP".into(), address: ip.to_string() };
    let mut object = core::Node::default();
    object.metadata.name = Some(name.into());
    object.metadata.labels =
        zone.map(|zone| BTreeMap::from([("topology.kubernetes.io/zone".into(), zone.to_string())]));
    object.status.get_or_insert_default().addresses = Some(addresses.iter().map(address).collect());
    Event::Apply(object.into())
}

/// The event that there is a ServiceCIDR of that name.
pub(crate) fn service_cidr(name: &str, cidrs: &[&str]) -> Event {
    let mut object = networking::ServiceCIDR::default();
    object.metadata.name = Some(name.into());
    object.spec.get_or_insert_default().cidrs = strings(cidrs);
    Event::Apply(object.into())
}
