// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kubernetes objects for tests: Services of the echo servers, and their slices.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Family, Pod, echo_port};

/// The port of every such Service, TCP and UDP.
pub const ECHO_PORT: u16 = 7;

/// A Service of both families at `10.96.0.HOST` and its twin, with a port of each protocol, changed by a patch in the
/// manner of RFC 7396: what the patch does not name stays, `null` removes.
#[must_use]
pub fn service(name: &str, host: u8, patch: &Value) -> Value {
    let [v4, v6] = Family::BOTH.map(|family| cluster_ip(host, family).ip());
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": "ClusterIP",
            "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": v4,
            "clusterIPs": [v4, v6],
            "ports": ports(None),
        },
    });
    merge(&mut service, patch);
    service
}

/// Its ports, for a patch that gives them a NodePort.
#[must_use]
pub fn ports(node_port: Option<u16>) -> Value {
    json!([
        { "name": "echo", "protocol": "TCP", "port": ECHO_PORT, "nodePort": node_port },
        { "name": "echo-udp", "protocol": "UDP", "port": ECHO_PORT, "nodePort": node_port },
    ])
}

/// Where such a Service is to be found.
#[must_use]
pub fn cluster_ip(host: u8, family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(&format!("10.96.0.{host}"), &format!("fd00:96::{host}")), ECHO_PORT)
}

/// Its slices, one of each family, with these pods; a patch changes a pod's endpoint.
#[must_use]
pub(super) fn slices(service: &str, pods: &[(&Pod, Value)]) -> [Value; 2] {
    [(Family::V4, "IPv4"), (Family::V6, "IPv6")].map(|(family, address_type)| {
        let endpoint = |(pod, patch): &(&Pod, Value)| {
            let mut endpoint = json!({
                "addresses": [pod.address(family)],
                "nodeName": pod.node_name(),
                "conditions": { "ready": true },
            });
            merge(&mut endpoint, patch);
            endpoint
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", address_type.to_lowercase()),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": address_type,
            "ports": [
                { "name": "echo", "protocol": "TCP", "port": echo_port() },
                { "name": "echo-udp", "protocol": "UDP", "port": echo_port() },
            ],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        })
    })
}

/// Applies such a patch.
pub fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    let object = value.as_object_mut().expect("made one above");
    for (name, patch) in fields {
        if patch.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.as_str()).or_insert(Value::Null), patch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_change_what_they_name() {
        let service = service("a", 70, &json!({ "spec": { "type": "NodePort", "clusterIPs": null } }));
        assert_eq!(service["spec"]["type"], "NodePort");
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.70");
        assert!(service["spec"].get("clusterIPs").is_none());
    }
}
