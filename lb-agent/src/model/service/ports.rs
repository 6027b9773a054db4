// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports of a Service, each checked for itself. One that can't be read stays as it was, by its name.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;

use super::{Service, ServicePort, ServiceType, check_name};
use crate::model::{
    fault::{Bad, Faults, Field},
    value::{parse_port, parse_protocol},
};

/// The ports of the object, unique by name and protocol, and by number and protocol.
pub(super) fn parse(
    spec: &core::ServiceSpec,
    service_type: ServiceType,
    before: Option<&Service>,
    faults: &mut Faults,
) -> Vec<ServicePort> {
    let before = before.map(|before| &before.ports[..]).unwrap_or_default();
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut held = Vec::new();
    let mut node_ports = BTreeSet::new();
    for object in spec.ports.iter().flatten() {
        let mut port = match parse_port_of(object, faults) {
            Ok(port) => port,
            Err(None) => continue,
            Err(Some(bad)) => {
                let name = object.name.as_deref().unwrap_or_default();
                let last_good = before.iter().find(|port| port.name == name).cloned().map(Some);
                held.extend(faults.hold(Field::Ports, bad, last_good));
                continue;
            }
        };
        if ports.iter().any(|other| is_alike(other, &port)) {
            faults.skip(
                format!("port \"{}\" ({}) repeats the name or number of another one", port.name, port.port),
                "give each port a name of its own, and each protocol and number just once",
            );
            continue;
        }
        let last_good = before.iter().find(|other| (&other.name, other.protocol) == (&port.name, port.protocol));
        port.node_port = parse_node_port(object, service_type, last_good.map(|port| port.node_port), faults)
            .filter(|number| is_new_node_port(*number, &port, &mut node_ports, faults));
        ports.push(port);
    }
    for mut port in held {
        if !ports.iter().any(|other| is_alike(other, &port)) {
            port.node_port = port.node_port.filter(|number| node_ports.insert((port.protocol, *number)));
            ports.push(port);
        }
    }
    ports
}

fn is_alike(one: &ServicePort, other: &ServicePort) -> bool {
    one.protocol == other.protocol && (one.name == other.name || one.port == other.port)
}

/// The port without its `node_port`; what is wrong where it can't be served, unless that has been told.
fn parse_port_of(
    object: &core::ServicePort,
    faults: &mut Faults,
) -> Result<ServicePort, Option<Bad<Option<ServicePort>>>> {
    let bad = |cause: String, remedy: &str| Bad {
        cause,
        stopgap: None,
        stopgap_text: ", and is skipped".into(),
        remedy: remedy.into(),
    };
    let name = object.name.clone().unwrap_or_default();
    if !name.is_empty() && !check_name("port name", &name, faults) {
        return Err(None);
    }
    let port = parse_port(object.port);
    let port = port.ok_or_else(|| bad(format!("port {} is out of range", object.port), "use 1 to 65535"))?;
    let protocol = parse_protocol(object.protocol.as_deref()).ok_or_else(|| {
        let given = object.protocol.as_deref().unwrap_or_default();
        bad(format!("port {port}: protocol \"{given}\" is unknown"), "use TCP, UDP or SCTP")
    })?;
    Ok(ServicePort { name, protocol, port, node_port: None })
}

/// Rule 34: 0 means that there is none.
fn parse_node_port(
    object: &core::ServicePort,
    service_type: ServiceType,
    last_good: Option<Option<u16>>,
    faults: &mut Faults,
) -> Option<u16> {
    let number = object.node_port.filter(|number| *number != 0)?;
    if service_type == ServiceType::ClusterIp && parse_port(number).is_some() {
        faults.tell(
            format!("nodePort {number} is skipped: the Service is of type ClusterIP"),
            "set spec.type to NodePort, or remove nodePort",
        );
        return None;
    }
    parse_port(number).or_else(|| {
        let (cause, remedy) = (format!("nodePort {number} is out of range"), "use 1 to 65535".into());
        let bad = Bad { cause, stopgap: None, stopgap_text: ", and is skipped".into(), remedy };
        faults.hold(Field::Ports, bad, last_good)
    })
}

fn is_new_node_port(number: u16, port: &ServicePort, seen: &mut BTreeSet<(u8, u16)>, faults: &mut Faults) -> bool {
    let is_new = seen.insert((port.protocol, number));
    if !is_new {
        faults.skip(
            format!("nodePort {number} of port \"{}\" is another port's already", port.name),
            "give each port a nodePort of its own",
        );
    }
    is_new
}
