// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Service, reduced to what forwarding needs and checked field by field.
//!
//! In: the Kubernetes object, of which nothing is taken for granted. Out: a value that `compile` can use as it stands,
//! and the problems of what had to be left out. It must not know of endpoints or of the node.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1 as core;
use lb_common::frontend::FrontendKey;

use self::options::{Annotations, parse_affinity};
pub use self::source_ranges::SourceRanges;
use super::{
    ServiceKey,
    fault::{Bad, Faults, Field},
    health_check::parse_health_check_port,
    split::Split,
    value::{is_dns_label, parse_unicast},
};
use crate::problem::Problem;

mod options;
mod ports;
mod source_ranges;

/// Hides a Service from us, with any value (rule 1).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service that is load-balanced here.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its identity.
    pub key: ServiceKey,
    /// Tells it from an earlier one of the same name; `None` where there is no API server.
    pub uid: Option<Box<str>>,
    /// `metadata.creationTimestamp` in seconds since 1970; [`i64::MAX`] where there is none. The older Service keeps a
    /// contested frontend (rule 18).
    pub creation_secs: i64,
    /// What it opens beside its ClusterIP.
    pub service_type: ServiceType,
    /// At most one address of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` of both families.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer addresses that are served on this node (rule 33).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use them.
    pub source_ranges: SourceRanges,
    /// Ports, unique by name and protocol, and by number and protocol.
    pub ports: Vec<ServicePort>,
    /// Which endpoints clients of the ClusterIP get.
    pub internal_policy: Policy,
    /// Which endpoints outside clients get, where the Service has any ([`crate::compile`] decides that).
    pub external_policy: Policy,
    /// `spec.healthCheckNodePort`, host byte order.
    pub health_check_port: Option<u16>,
    /// Seconds for which a client stays with its endpoint; `None` without session affinity.
    pub affinity_secs: Option<u32>,
    /// Whether established TCP connections are reset when their endpoint goes (`shunt.dev/on-backend-removal: reset`).
    pub resets_on_removal: bool,
    /// Whether packets for its external and load-balancer addresses go on where the policy Local finds no endpoint
    /// (`spec.externalFailoverPolicy: Passthrough`, or `shunt.dev/external-failover: passthrough`).
    pub passes_on_failover: bool,
    /// Whose endpoints serve, where those are not its own (`shunt.dev/split`).
    pub split: Option<Split>,
    /// What had to be left out.
    pub problems: Vec<Problem>,
    /// Fields that could not be read and have never been good: what stands there says as little as it can.
    pub stopgaps: BTreeSet<Field>,
}

/// `spec.type`, without ExternalName, which is DNS's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// Reached at its ClusterIP.
    ClusterIp,
    /// Also at a port of every node.
    NodePort,
    /// Also at addresses of a load balancer.
    LoadBalancer,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Endpoints anywhere.
    Cluster,
    /// Endpoints on the client's (or the receiving) node.
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where it has none. Endpoint ports are found by it, never by `targetPort` (rule 11).
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, host byte order.
    pub port: u16,
    /// Port on node addresses, host byte order.
    pub node_port: Option<u16>,
}

impl Service {
    /// Reads an object; `None` where it isn't ours to serve (rules 1 and 3). Where a field can't be read, it stays as it was
    /// `before`.
    #[must_use]
    pub fn parse(object: &core::Service, before: Option<&Self>) -> Option<Self> {
        let spec = object.spec.as_ref().filter(|_| !is_hidden(object))?;
        if spec.type_.as_deref() == Some("ExternalName") || !has_cluster_ip(spec) {
            return None;
        }
        let key = ServiceKey::of(&object.metadata);
        let uid = object.metadata.uid.as_deref().map(Box::from);
        let before = before.filter(|before| before.uid == uid);
        let good = |field| before.filter(|before| !before.stopgaps.contains(&field));
        let mut faults = Faults::new(format!("Service {key}"));
        let Annotations { resets_on_removal, passes_on_failover, split } =
            Annotations::parse(object, good, &mut faults);
        let are_names_good =
            check_name("namespace", &key.namespace, &mut faults) & check_name("name", &key.name, &mut faults);
        let service_type = parse_type(spec, good(Field::Type), &mut faults);
        let created = object.metadata.creation_timestamp.as_ref();
        let own = Self {
            uid,
            creation_secs: created.map_or(i64::MAX, |time| time.0.as_second()),
            service_type,
            cluster_ips: parse_cluster_ips(spec, good(Field::ClusterIps), &mut faults),
            external_ips: parse_addresses("spec.externalIPs", spec.external_ips.iter().flatten(), &mut faults),
            load_balancer_ips: parse_load_balancer_ips(object, &mut faults),
            source_ranges: SourceRanges::parse(
                spec,
                good(Field::SourceRanges).map(|good| &good.source_ranges),
                &mut faults,
            ),
            ports: if are_names_good { ports::parse(spec, service_type, before, &mut faults) } else { Vec::new() },
            internal_policy: parse_policy(
                (Field::InternalPolicy, "internal"),
                spec.internal_traffic_policy.as_deref(),
                good(Field::InternalPolicy).map(|good| good.internal_policy),
                &mut faults,
            ),
            external_policy: parse_policy(
                (Field::ExternalPolicy, "external"),
                spec.external_traffic_policy.as_deref(),
                good(Field::ExternalPolicy).map(|good| good.external_policy),
                &mut faults,
            ),
            health_check_port: parse_health_check_port(spec),
            affinity_secs: parse_affinity(spec, good(Field::Affinity), &mut faults),
            resets_on_removal,
            passes_on_failover,
            split,
            problems: Vec::new(),
            stopgaps: BTreeSet::new(),
            key,
        };
        let (problems, stopgaps) = faults.finish();
        Some(Self { problems, stopgaps, ..own })
    }

    /// Where it wants to be reached, in the families of its ClusterIPs and perhaps others.
    pub fn frontends(&self) -> impl Iterator<Item = FrontendKey> {
        let ips = self.cluster_ips.iter().chain(&self.external_ips).chain(&self.load_balancer_ips);
        let at = |ip: IpAddr| {
            self.ports.iter().map(move |port| FrontendKey::new(ip.into(), port.port.to_be(), port.protocol))
        };
        let own = self.cluster_ips.iter().map(|ip| FrontendKey::any_port((*ip).into()));
        let node_ports = self.ports.iter().filter_map(|port| Some((port.node_port?.to_be(), port.protocol)));
        let node_ports = node_ports
            .flat_map(|(port, protocol)| [true, false].map(|is_v4| FrontendKey::node_port(is_v4, port, protocol)));
        ips.copied().flat_map(at).chain(own).chain(node_ports)
    }

    /// Leaves its external IPs out, and says so.
    pub(super) fn drop_external_ips(&mut self) {
        if !std::mem::take(&mut self.external_ips).is_empty() {
            self.problems.push(Problem::new(
                format!("Service {}", self.key),
                "its spec.externalIPs are not served: the agents run with --external-ips=false",
                "remove them, or use addresses of a load balancer",
            ));
        }
    }
}

fn is_hidden(object: &core::Service) -> bool {
    object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL))
}

fn has_cluster_ip(spec: &core::ServiceSpec) -> bool {
    spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty() && ip != "None")
}

fn check_name(field: &str, name: &str, faults: &mut Faults) -> bool {
    let is_good = is_dns_label(name);
    if !is_good {
        faults.tell(
            format!("its {field} \"{name}\" is not a DNS label"),
            "use at most 63 lower-case letters, digits and '-', without '-' at either end",
        );
    }
    is_good
}

fn parse_type(spec: &core::ServiceSpec, good: Option<&Service>, faults: &mut Faults) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some(other) => {
            let bad = Bad {
                cause: format!("spec.type \"{other}\" is unknown"),
                stopgap: ServiceType::ClusterIp,
                stopgap_text: "; only the ClusterIP is served".into(),
                remedy: "use ClusterIP, NodePort, LoadBalancer or ExternalName".into(),
            };
            faults.hold(Field::Type, bad, good.map(|good| good.service_type))
        }
    }
}

/// `Local` only where it is said so; an unknown policy is a fault, and the more restrictive one is taken.
fn parse_policy(
    (field, which): (Field, &str),
    value: Option<&str>,
    good: Option<Policy>,
    faults: &mut Faults,
) -> Policy {
    match value {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            let bad = Bad {
                cause: format!("spec.{which}TrafficPolicy \"{other}\" is unknown"),
                stopgap: Policy::Local,
                stopgap_text: " and taken for Local".into(),
                remedy: "use Cluster or Local".into(),
            };
            faults.hold(field, bad, good)
        }
    }
}

/// Rule 27: `clusterIPs[i]` is paired with `ipFamilies[i]`; without `ipFamilies` the addresses tell their families.
fn parse_cluster_ips(spec: &core::ServiceSpec, good: Option<&Service>, faults: &mut Faults) -> Vec<IpAddr> {
    let only = spec.cluster_ip.as_slice();
    let listed = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(only);
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let count = if families.is_empty() { listed.len() } else { families.len() };
    let mut found: Vec<IpAddr> = Vec::new();
    let mut bad = Vec::new();
    for (index, text) in listed.iter().enumerate().take(count) {
        let family = families.get(index).map(String::as_str);
        match parse_cluster_ip(text, family, &found) {
            Ok(ip) => found.push(ip),
            Err(cause) => bad.push(format!("spec.clusterIPs[{index}]: {cause}")),
        }
    }
    for cause in bad {
        let remedy = "give one valid address of each family, in the order of spec.ipFamilies".into();
        let bad = Bad { cause, stopgap: found, stopgap_text: String::new(), remedy };
        found = faults.hold(Field::ClusterIps, bad, good.map(|good| good.cluster_ips.clone()));
    }
    found
}

fn parse_cluster_ip(text: &str, family: Option<&str>, found: &[IpAddr]) -> Result<IpAddr, String> {
    let ip = parse_unicast(text)?;
    let own = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    if let Some(family) = family.filter(|family| *family != own) {
        return Err(format!("{text} is {own}, but spec.ipFamilies says {family}"));
    }
    if found.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
        return Err(format!("{text} is a second address of {own}"));
    }
    Ok(ip)
}

/// Rule 33: addresses of ingress entries in VIP mode. One that can't be served is no edit of the owner's (rule 90).
fn parse_load_balancer_ips(object: &core::Service, faults: &mut Faults) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let served = entries.filter(|entry| matches!(entry.ip_mode.as_deref(), None | Some("VIP")));
    let ips = served.filter_map(|entry| entry.ip.as_ref()).filter(|ip| !ip.is_empty());
    parse_addresses("status.loadBalancer.ingress", ips, faults)
}

fn parse_addresses<'a>(field: &str, texts: impl Iterator<Item = &'a String>, faults: &mut Faults) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in texts {
        match parse_unicast(text) {
            Ok(ip) if found.contains(&ip) => {}
            Ok(ip) => found.push(ip),
            Err(cause) => faults.skip(format!("{field}: {cause}"), "correct or remove it"),
        }
    }
    found
}

#[cfg(test)]
mod tests;
