// SPDX-License-Identifier: MIT OR Apache-2.0
//! EndpointSlices, reduced to what forwarding needs, and their merge into the endpoints of one Service port.
//!
//! In: the Kubernetes objects. Out: values without impossible endpoints, and the problems of those. Which endpoints are
//! used is `compile`'s business; which node they are seen from is not known here.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::discovery::v1 as discovery;
use lb_common::address::Address;

use super::{
    ServiceKey,
    fault::{Faults, keep_last_good},
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
    /// Ports that each of the endpoints has.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
    /// What had to be left out.
    pub problems: Vec<Problem>,
    /// Whether there are any: all of them are impossible values.
    pub is_impossible: bool,
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
    /// Reads an object; `None` where it isn't ours to use (rules 2 and 4).
    #[must_use]
    pub fn parse(object: &discovery::EndpointSlice) -> Option<Self> {
        let labels = object.metadata.labels.as_ref()?;
        let service = labels.get(SERVICE_LABEL).filter(|name| !name.is_empty())?;
        if labels.contains_key(HEADLESS_LABEL) || object.address_type == "FQDN" {
            return None;
        }
        let own = ServiceKey::of(&object.metadata);
        let mut faults = Faults::new(format!("EndpointSlice {own}"));
        let is_v4 = parse_address_type(&object.address_type, &mut faults);
        let ports = object.ports.iter().flatten().filter_map(|port| parse_slice_port(port, &mut faults)).collect();
        let endpoints = object.endpoints.iter().filter_map(|one| parse_endpoint(one, is_v4?, &mut faults)).collect();
        Some(Self {
            service: ServiceKey { namespace: own.namespace, name: service.clone() },
            ports,
            endpoints,
            is_impossible: faults.is_impossible(),
            problems: faults.into_problems(),
        })
    }

    /// This version, unless it is impossible and the one before was not: that one stays then, with the problems of this.
    #[must_use]
    pub fn or_last_good(self, before: Option<&Self>) -> Self {
        let good = |before: &&Self| self.is_impossible && !before.is_impossible && before.service == self.service;
        let Some(last_good) = before.filter(good) else { return self };
        Self { problems: keep_last_good(self.problems, "EndpointSlice"), ..last_good.clone() }
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
fn parse_address_type(address_type: &str, faults: &mut Faults) -> Option<bool> {
    match address_type {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        other => {
            faults.impossible(
                format!("addressType \"{other}\" is unknown, and its endpoints are skipped"),
                "use IPv4 or IPv6",
            );
            None
        }
    }
}

/// Rule 11: no name is not the empty name; no number, or 0, is no port.
fn parse_slice_port(object: &discovery::EndpointPort, faults: &mut Faults) -> Option<SlicePort> {
    let name = object.name.clone()?;
    let number = object.port.filter(|number| *number != 0)?;
    let Some(port) = parse_port(number) else {
        faults.impossible(format!("port {number} is out of range, and is skipped"), "use 1 to 65535");
        return None;
    };
    let Some(protocol) = parse_protocol(object.protocol.as_deref()) else {
        let given = object.protocol.as_deref().unwrap_or_default();
        faults.impossible(format!("port {port}: protocol \"{given}\" is unknown, and is skipped"), "use TCP or UDP");
        return None;
    };
    Some(SlicePort { name, protocol, port })
}

fn parse_endpoint(object: &discovery::Endpoint, is_v4: bool, faults: &mut Faults) -> Option<Endpoint> {
    let address = match parse_unicast(object.addresses.first()?) {
        Ok(ip) if ip.is_ipv4() == is_v4 => ip,
        Ok(ip) => {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            faults.impossible(
                format!("endpoint {ip} is not of the slice's addressType {family}, and is skipped"),
                "put it into a slice of its own family",
            );
            return None;
        }
        Err(cause) => {
            faults
                .impossible(format!("endpoint: {cause}, and is skipped"), "give it the address of a pod or a machine");
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
