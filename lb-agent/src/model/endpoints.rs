// SPDX-License-Identifier: MIT OR Apache-2.0
//! EndpointSlices, reduced to what forwarding needs, and their merge into the endpoints of one Service port.
//!
//! In: the Kubernetes objects. Out: values without impossible endpoints, and the problems of those. Which endpoints are
//! used is `compile`'s business; which node they are seen from is not known here.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::discovery::v1 as discovery;
use lb_common::address::Address;

use super::{
    ServiceKey,
    fault::{Bad, Faults, Field},
    value::{parse_port, parse_protocol, parse_unicast},
};
use crate::{compile::BackendKey, problem::Problem};

/// Names the Service of a slice (rule 4).
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Hides a slice from us, with any value (rule 2).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Some of the endpoints of a Service, in one family.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The Service, which may not exist (yet).
    pub service: ServiceKey,
    /// Tells it from an earlier one of the same name; `None` where there is no API server.
    pub uid: Option<Box<str>>,
    /// Its family; `None` where that was never told.
    pub is_v4: Option<bool>,
    /// Ports that each of the endpoints has.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
    /// What had to be left out.
    pub problems: Vec<Problem>,
    /// Fields that could not be read and have never been good.
    pub stopgaps: BTreeSet<Field>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service port that it stands for; may be empty.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, host byte order.
    pub port: u16,
}

/// One endpoint: a pod, or whatever else serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its first address; the others mean nothing (rule 12).
    pub address: IpAddr,
    /// Takes new connections (rule 13).
    pub ready: bool,
    /// Answers, though it may be about to end.
    pub serving: bool,
    /// Is about to end.
    pub terminating: bool,
    /// Where it runs, if that is known.
    pub node: Option<String>,
    /// Zones whose clients it is meant for; empty without such a hint.
    pub for_zones: Vec<String>,
    /// Nodes whose clients it is meant for; empty without such a hint.
    pub for_nodes: Vec<String>,
}

impl Slice {
    /// Reads an object; `None` where it isn't ours to use (rules 2 and 4). Where its family or a port can't be read, it stays as
    /// it was `before`; an endpoint that can't be served is left out alone.
    #[must_use]
    pub fn parse(object: &discovery::EndpointSlice, before: Option<&Self>) -> Option<Self> {
        let labels = object.metadata.labels.as_ref()?;
        let service = labels.get(SERVICE_LABEL).filter(|name| !name.is_empty())?;
        if labels.contains_key(HEADLESS_LABEL) || object.address_type == "FQDN" {
            return None;
        }
        let own = ServiceKey::of(&object.metadata);
        let mut faults = Faults::new(format!("EndpointSlice {own}"));
        let uid = object.metadata.uid.as_deref().map(Box::from);
        let before = before.filter(|before| before.uid == uid && before.service.name == *service);
        let is_v4 = parse_address_type(&object.address_type, before.and_then(|before| before.is_v4), &mut faults);
        let of_before = before.map(|before| &before.ports[..]).unwrap_or_default();
        let ports = object.ports.iter().flatten();
        let ports = ports.filter_map(|port| parse_slice_port(port, of_before, &mut faults)).collect();
        let endpoints =
            object.endpoints.iter().flatten().filter_map(|one| parse_endpoint(one, is_v4?, &mut faults)).collect();
        let (problems, stopgaps) = faults.finish();
        let service = ServiceKey { namespace: own.namespace, name: service.clone() };
        Some(Self { service, uid, is_v4, ports, endpoints, problems, stopgaps })
    }

    /// Whether an endpoint of it takes connections there.
    #[must_use]
    pub fn has_ready(&self, backend: &BackendKey) -> bool {
        let is_it = |endpoint: &Endpoint| Address::from(endpoint.address) == backend.address && endpoint.ready;
        self.ports.iter().any(|port| port.port == backend.port) && self.endpoints.iter().any(is_it)
    }

    /// The port numbers that stand for a Service port (rule 11).
    fn numbers<'a>(&'a self, port_name: &'a str, protocol: u8) -> impl Iterator<Item = u16> + 'a {
        self.ports.iter().filter(move |port| port.name == port_name && port.protocol == protocol).map(|port| port.port)
    }
}

/// Whether a slice is of IPv4.
fn parse_address_type(address_type: &str, last_good: Option<bool>, faults: &mut Faults) -> Option<bool> {
    match address_type {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        other => {
            let bad = Bad {
                cause: format!("addressType \"{other}\" is unknown"),
                stopgap: None,
                stopgap_text: ", and its endpoints are skipped".into(),
                remedy: "use IPv4 or IPv6".into(),
            };
            faults.hold(Field::AddressType, bad, last_good.map(Some))
        }
    }
}

/// Rule 11: no name is not the empty name; no number, or 0, is no port.
fn parse_slice_port(object: &discovery::EndpointPort, before: &[SlicePort], faults: &mut Faults) -> Option<SlicePort> {
    let name = object.name.clone()?;
    let number = object.port.filter(|number| *number != 0)?;
    let (port, protocol) = (parse_port(number), parse_protocol(object.protocol.as_deref()));
    let (cause, remedy) = match (port, protocol) {
        (Some(port), Some(protocol)) => return Some(SlicePort { name, protocol, port }),
        (None, _) => (format!("port {number} is out of range"), "use 1 to 65535"),
        (Some(port), None) => {
            let given = object.protocol.as_deref().unwrap_or_default();
            (format!("port {port}: protocol \"{given}\" is unknown"), "use TCP, UDP or SCTP")
        }
    };
    let last_good = before.iter().find(|port| port.name == name).cloned().map(Some);
    let bad = Bad { cause, stopgap: None, stopgap_text: ", and is skipped".into(), remedy: remedy.into() };
    faults.hold(Field::Ports, bad, last_good)
}

fn parse_endpoint(object: &discovery::Endpoint, is_v4: bool, faults: &mut Faults) -> Option<Endpoint> {
    let address = match parse_unicast(object.addresses.first()?) {
        Ok(ip) if ip.is_ipv4() == is_v4 => ip,
        Ok(ip) => {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            faults.skip(
                format!("endpoint {ip} is not of the slice's addressType {family}"),
                "put it into a slice of its own family",
            );
            return None;
        }
        Err(cause) => {
            faults.skip(format!("endpoint: {cause}"), "give it the address of a pod or a machine");
            return None;
        }
    };
    let conditions = object.conditions.clone().unwrap_or_default();
    let hints = object.hints.clone().unwrap_or_default();
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: object.node_name.clone(),
        for_zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
        for_nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
    })
}

/// The endpoints of one Service port and family, by address and port (rule 15).
///
/// Of two with the same key, one that is not terminating wins, then one that is ready, then the one of the slice with
/// the lesser name, which comes first: so the order in which slices arrived does not matter.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    port_name: &str,
    protocol: u8,
    is_v4: bool,
) -> BTreeMap<(IpAddr, u16), &'a Endpoint> {
    let mut merged: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for slice in slices {
        for number in slice.numbers(port_name, protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == is_v4) {
                let winner = merged.entry((endpoint.address, number)).or_insert(endpoint);
                if precedence(endpoint) > precedence(winner) {
                    *winner = endpoint;
                }
            }
        }
    }
    merged
}

fn precedence(endpoint: &Endpoint) -> (Reverse<bool>, bool) {
    (Reverse(endpoint.terminating), endpoint.ready)
}

#[cfg(test)]
mod tests;
