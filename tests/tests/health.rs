// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who asks whether a node may be sent traffic gets kube-proxy's answers.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    api_server::{ApiServer, world_and_server},
    load::http::{self, Response},
    world::{Family, Options, World, http_port, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_secs(5);
/// The Service's `healthCheckNodePort`.
const PORT: u16 = 32_000;
const HEALTHZ_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;

/// A Service `edge` of type LoadBalancer in both families.
fn balanced(policy: &str) -> Value {
    let port = if policy == "Local" { json!(PORT) } else { Value::Null };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "edge", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.90",
            "clusterIPs": ["10.96.0.90", "fd00:96::90"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalTrafficPolicy": policy,
            "healthCheckNodePort": port,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30_090}],
        },
    })
}

/// Its endpoints: these pods, each with its conditions.
fn endpoints(world: &World, pods: &[(&str, Value)]) -> [Value; 2] {
    [(Family::V4, "IPv4"), (Family::V6, "IPv6")].map(|(family, address_type)| {
        let endpoint = |(name, conditions): &(&str, Value)| {
            let pod = world.pod(name);
            json!({"addresses": [pod.address(family)], "nodeName": pod.node_name(), "conditions": conditions})
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("edge-{}", address_type.to_lowercase()),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "edge"},
            },
            "addressType": address_type,
            "ports": [{"name": "http", "port": http_port(), "protocol": "TCP"}],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        })
    })
}

fn ready() -> Value {
    json!({"ready": true})
}

fn terminating() -> Value {
    json!({"ready": false, "serving": true, "terminating": true})
}

/// What an outside load balancer hears; `None` where nobody listens.
fn ask(world: &World, node: &str, family: Family) -> Result<Option<Response>> {
    let address = SocketAddr::new(world.node(node).address(family), PORT);
    Ok(world.outside().enter(|| http::get(address, "/", STEP))?.ok())
}

/// Waits until a node answers with that status and count, in both families.
fn wait_for(world: &World, node: &str, status: u16, count: usize) -> Result<()> {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"edge\"\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    for family in Family::BOTH {
        wait_until(&format!("{node} saying {status} and {count} by {family:?}"), PATIENCE, || {
            let answer = ask(world, node, family)?;
            Ok(answer.is_some_and(|answer| answer.status == status && answer.body == body.as_bytes()))
        })?;
    }
    Ok(())
}

fn wait_closed(world: &World, node: &str) -> Result<()> {
    wait_until("the port being closed", PATIENCE, || Ok(ask(world, node, Family::V4)?.is_none()))
}

/// One of the node's own pages, as JSON or text.
fn page(world: &World, port: u16, path: &str) -> Result<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = world.node("node-a").namespace().enter(|| http::get(address, path, STEP))?;
    let answer = answer.with_context(|| format!("no answer from {path}"))?;
    Ok((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
}

fn apply_all(server: &ApiServer, objects: impl IntoIterator<Item = Value>) {
    objects.into_iter().for_each(|object| server.apply(object));
}

#[test]
fn rules_65_to_68_a_load_balancer_learns_which_nodes_have_ready_endpoints() -> Result<()> {
    let (server, world) = world_and_server(Options::TC)?;
    server.apply(balanced("Local"));
    apply_all(&server, endpoints(&world, &[("web-1", ready()), ("web-2", terminating())]));
    wait_for(&world, "node-a", 200, 1)?;
    wait_for(&world, "node-b", 503, 0)?;
    apply_all(&server, endpoints(&world, &[("web-1", terminating()), ("web-2", ready()), ("web-3", ready())]));
    wait_for(&world, "node-a", 503, 0)?;
    wait_for(&world, "node-b", 200, 2)?;

    server.apply(balanced("Cluster"));
    wait_closed(&world, "node-a")?;
    server.apply(balanced("Local"));
    wait_for(&world, "node-b", 200, 2)?;
    server.delete(shunt_tests::api_server::Resource::Services, "edge");
    wait_closed(&world, "node-b")
}

#[test]
fn rule_68_a_taken_health_check_port_is_an_event_and_is_tried_again() -> Result<()> {
    let (server, world) = world_and_server(Options::TC)?;
    let address = SocketAddr::new(world.node("node-a").address(Family::V4), PORT);
    let taken = world.node("node-a").namespace().enter(|| TcpListener::bind(address))??;
    apply_all(&server, endpoints(&world, &[("web-1", ready())]));
    server.apply(balanced("Local"));
    let reason = "FailedToStartServiceHealthcheck";
    let event = server.wait_for_event(reason, |event| event["reason"] == reason)?;
    ensure!(event["type"] == "Warning" && event["regarding"]["name"] == "edge", "{event}");
    drop(taken);
    wait_for(&world, "node-a", 200, 1)
}

#[test]
fn rules_69_70_a_node_that_leaves_is_alive_but_not_eligible() -> Result<()> {
    let (server, world) = world_and_server(Options::TC)?;
    let (status, body) = page(&world, HEALTHZ_PORT, "/healthz")?;
    let report: Value = serde_json::from_str(&body)?;
    ensure!(status == 200 && report["nodeEligible"] == true && report["healthy"] == true, "{body}");
    ensure!(report["status"]["IPv4"]["healthy"] == true && report["status"]["IPv6"]["healthy"] == true, "{body}");
    ensure!(report["lastUpdated"] == report["currentTime"], "{body}");

    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}});
    node["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    server.apply(node.clone());
    wait_until("the node not being eligible", PATIENCE, || Ok(page(&world, HEALTHZ_PORT, "/healthz")?.0 == 503))?;
    let (status, body) = page(&world, HEALTHZ_PORT, "/livez")?;
    ensure!(status == 200 && !body.contains("nodeEligible"), "{body}");

    node["spec"] = json!({});
    server.apply(node);
    wait_until("the node being eligible", PATIENCE, || Ok(page(&world, HEALTHZ_PORT, "/healthz")?.0 == 200))?;
    server.delete(shunt_tests::api_server::Resource::Nodes, "node-a");
    wait_until("the node being unknown", PATIENCE, || Ok(page(&world, HEALTHZ_PORT, "/healthz")?.0 == 503))
}

#[test]
fn rules_72_to_74_the_pages_of_metrics_are_kube_proxys() -> Result<()> {
    let (server, world) = world_and_server(Options::TC)?;
    ensure!(page(&world, METRICS_PORT, "/proxyMode")? == (200, "shunt".into()));
    ensure!(page(&world, METRICS_PORT, "/healthz")?.0 == 200);
    for (path, wanted) in [
        ("/configz", "\"node-name\":\"node-a\""),
        ("/flagz", "\nhealthz-bind-address=127.0.0.1:10256\n"),
        ("/statusz", "\nMode: shunt\n"),
    ] {
        let (status, body) = page(&world, METRICS_PORT, path)?;
        ensure!(status == 200 && body.contains(wanted), "{path}: {body}");
    }
    page(&world, HEALTHZ_PORT, "/livez")?;

    let soon = "2100-01-01T00:00:00Z";
    for mut slice in endpoints(&world, &[("web-2", ready())]) {
        slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": soon});
        server.apply(slice);
    }
    server.apply(balanced("Local"));
    let lines = [
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_proxy_healthz_total{code=\"200\"}",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "process_resident_memory_bytes",
        "shunt_build_info",
    ];
    wait_until("all metrics being there", PATIENCE, || {
        let (_, text) = page(&world, METRICS_PORT, "/metrics")?;
        Ok(lines.iter().all(|line| text.contains(line)))
    })?;
    // The first slices may have been observed as well, with the Service or before it.
    let before = programmed(&world)?;
    apply_all(
        &server,
        endpoints(&world, &[("web-1", ready())]).map(|mut slice| {
            slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": soon});
            slice
        }),
    );
    wait_until("the time to program being observed", PATIENCE, || Ok(programmed(&world)? > before))
}

/// How often the time to program a change of IPv4 endpoints has been observed.
fn programmed(world: &World) -> Result<u64> {
    let (_, text) = page(world, METRICS_PORT, "/metrics")?;
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} ";
    Ok(text.lines().find_map(|line| line.strip_prefix(count)?.trim().parse().ok()).unwrap_or(0))
}
