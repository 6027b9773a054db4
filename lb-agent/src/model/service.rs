// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Service, reduced to what forwarding needs and checked field by field.
//!
//! In: the Kubernetes object, of which nothing is taken for granted. Out: a value that `compile` can use as it stands,
//! and the problems of what had to be left out. It must not know of endpoints or of the node.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1 as core;

use self::options::{Annotations, parse_affinity};
pub use self::source_ranges::SourceRanges;
use super::{
    ServiceKey,
    fault::Faults,
    health_check::parse_health_check_port,
    split::Split,
    value::{is_dns_label, parse_port, parse_protocol, parse_unicast},
};
use crate::problem::Problem;

mod options;
mod source_ranges;

/// Hides a Service from us, with any value (rule 1).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service that is load-balanced here.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its identity.
    pub key: ServiceKey,
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
    /// Whose endpoints serve, where those are not its own (`shunt.dev/split`).
    pub split: Option<Split>,
    /// What had to be left out.
    pub problems: Vec<Problem>,
    /// Whether some of the problems are impossible values, and not just limits of this version.
    pub is_impossible: bool,
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
    /// Reads an object; `None` where it isn't ours to serve (rules 1 and 3).
    #[must_use]
    pub fn parse(object: &core::Service) -> Option<Self> {
        let spec = object.spec.as_ref().filter(|_| !is_hidden(object))?;
        if spec.type_.as_deref() == Some("ExternalName") || !has_cluster_ip(spec) {
            return None;
        }
        let key = ServiceKey::of(&object.metadata);
        let mut faults = Faults::new(format!("Service {key}"));
        let Annotations { resets_on_removal, split } = Annotations::parse(object, &mut faults);
        let are_names_good =
            check_name("namespace", &key.namespace, &mut faults) & check_name("name", &key.name, &mut faults);
        let service_type = parse_type(spec, &mut faults);
        let created = object.metadata.creation_timestamp.as_ref();
        Some(Self {
            creation_secs: created.map_or(i64::MAX, |time| time.0.as_second()),
            service_type,
            cluster_ips: parse_cluster_ips(spec, &mut faults),
            external_ips: parse_addresses("spec.externalIPs", spec.external_ips.iter().flatten(), &mut faults),
            load_balancer_ips: parse_load_balancer_ips(object, &mut faults),
            source_ranges: SourceRanges::parse(spec, &mut faults),
            ports: if are_names_good { parse_ports(spec, service_type, &mut faults) } else { Vec::new() },
            internal_policy: parse_policy("internal", spec.internal_traffic_policy.as_deref(), &mut faults),
            external_policy: parse_policy("external", spec.external_traffic_policy.as_deref(), &mut faults),
            health_check_port: parse_health_check_port(spec),
            affinity_secs: parse_affinity(spec, &mut faults),
            resets_on_removal,
            split,
            is_impossible: faults.is_impossible(),
            problems: faults.into_problems(),
            key,
        })
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
        faults.impossible(
            format!("its {field} \"{name}\" is not a DNS label"),
            "use at most 63 lower-case letters, digits and '-', without '-' at either end",
        );
    }
    is_good
}

fn parse_type(spec: &core::ServiceSpec, faults: &mut Faults) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some(other) => {
            faults.impossible(
                format!("spec.type \"{other}\" is unknown; only the ClusterIP is served"),
                "use ClusterIP, NodePort, LoadBalancer or ExternalName",
            );
            ServiceType::ClusterIp
        }
    }
}

/// `Local` only where it is said so; an unknown policy is a fault, and the more restrictive one is taken.
fn parse_policy(which: &str, value: Option<&str>, faults: &mut Faults) -> Policy {
    match value {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            faults.impossible(
                format!("spec.{which}TrafficPolicy \"{other}\" is unknown and taken for Local"),
                "use Cluster or Local",
            );
            Policy::Local
        }
    }
}

/// Rule 27: `clusterIPs[i]` is paired with `ipFamilies[i]`; without `ipFamilies` the addresses tell their families.
fn parse_cluster_ips(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<IpAddr> {
    let only = spec.cluster_ip.as_slice();
    let listed = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(only);
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let count = if families.is_empty() { listed.len() } else { families.len() };
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in listed.iter().enumerate().take(count) {
        let family = families.get(index).map(String::as_str);
        match parse_cluster_ip(text, family, &found) {
            Ok(ip) => found.push(ip),
            Err(cause) => faults.impossible(
                format!("spec.clusterIPs[{index}]: {cause}"),
                "give one valid address of each family, in the order of spec.ipFamilies",
            ),
        }
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

/// Rule 33: addresses of ingress entries in VIP mode.
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
            Err(cause) => faults.impossible(format!("{field}: {cause}, and is skipped"), "correct or remove it"),
        }
    }
    found
}

fn parse_ports(spec: &core::ServiceSpec, service_type: ServiceType, faults: &mut Faults) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut node_ports = BTreeSet::new();
    for object in spec.ports.iter().flatten() {
        let Some(mut port) = parse_service_port(object, faults) else { continue };
        if ports
            .iter()
            .any(|other| other.protocol == port.protocol && (other.name == port.name || other.port == port.port))
        {
            faults.impossible(
                format!(
                    "port \"{}\" ({}) repeats the name or number of another one, and is skipped",
                    port.name, port.port
                ),
                "give each port a name of its own, and each protocol and number just once",
            );
            continue;
        }
        port.node_port = parse_node_port(object, service_type, faults)
            .filter(|number| is_new_node_port(*number, &port, &mut node_ports, faults));
        ports.push(port);
    }
    ports
}

/// The port without its `node_port`; `None` where it can't be served.
fn parse_service_port(object: &core::ServicePort, faults: &mut Faults) -> Option<ServicePort> {
    let name = object.name.clone().unwrap_or_default();
    if !name.is_empty() && !check_name("port name", &name, faults) {
        return None;
    }
    let Some(port) = parse_port(object.port) else {
        faults.impossible(format!("port {} is out of range, and is skipped", object.port), "use 1 to 65535");
        return None;
    };
    match parse_protocol(object.protocol.as_deref()) {
        Some(protocol) => Some(ServicePort { name, protocol, port, node_port: None }),
        None => {
            let given = object.protocol.as_deref().unwrap_or_default();
            faults.impossible(
                format!("port {port}: protocol \"{given}\" is unknown, and is skipped"),
                "use TCP, UDP or SCTP",
            );
            None
        }
    }
}

/// Rule 34: 0 means that there is none.
fn parse_node_port(object: &core::ServicePort, service_type: ServiceType, faults: &mut Faults) -> Option<u16> {
    let number = object.node_port.filter(|number| *number != 0)?;
    let parsed = parse_port(number);
    if parsed.is_none() {
        faults.impossible(format!("nodePort {number} is out of range, and is skipped"), "use 1 to 65535");
    } else if service_type == ServiceType::ClusterIp {
        faults.impossible(
            format!("nodePort {number} is skipped: the Service is of type ClusterIP"),
            "set spec.type to NodePort, or remove nodePort",
        );
        return None;
    }
    parsed
}

fn is_new_node_port(number: u16, port: &ServicePort, seen: &mut BTreeSet<(u8, u16)>, faults: &mut Faults) -> bool {
    let is_new = seen.insert((port.protocol, number));
    if !is_new {
        faults.impossible(
            format!("nodePort {number} of port \"{}\" is another port's already, and is skipped", port.name),
            "give each port a nodePort of its own",
        );
    }
    is_new
}

#[cfg(test)]
mod tests;
