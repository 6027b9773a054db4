// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects of the API, and what the maps serve of them.

use serde_json::{Value, json};

use super::agent::Served;

/// A Service in `default` with one TCP port, 80, at `10.96.N/256.N%256`.
pub fn service(name: &str, number: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip(number),
            "clusterIPs": [cluster_ip(number)],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

fn cluster_ip(number: u16) -> String {
    format!("10.96.{}.{}", number / 256, number % 256)
}

/// The slice of a Service: these endpoints are ready at port 8080.
pub fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"),
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// A Node in a zone.
pub fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

/// An object with one more label.
pub fn labelled(mut object: Value, key: &str, value: &str) -> Value {
    object["metadata"]["labels"][key] = json!(value);
    object
}

/// What the maps serve when there are just these [`service`]s, by number, with these endpoints.
pub fn serving(services: &[(u16, &[&str])]) -> Served {
    let frontend = |number| format!("{}:80/TCP", cluster_ip(number));
    let backends = |addresses: &[&str]| addresses.iter().map(|address| format!("{address}:8080")).collect();
    services.iter().map(|(number, addresses)| (frontend(*number), backends(addresses))).collect()
}
