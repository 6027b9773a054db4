// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole units of whole Services.

use lb_common::flow::protocol::{TCP, UDP};
use proptest::prelude::*;

use super::*;
use crate::model::builders::{EndpointBuilder, ServiceBuilder, SliceBuilder, endpoint, service, slice};

fn compiled(builder: ServiceBuilder, slices: &[SliceBuilder]) -> BTreeMap<UnitId, Unit> {
    let service = Service::parse(&builder.0, None).unwrap();
    let slices: Vec<_> = slices.iter().map(|one| Slice::parse(&one.0, None).unwrap()).collect();
    let part = Part { ports: &service.ports, slices: slices.iter().collect(), weight: 1 };
    compile(&service, &[part], &Node::new("node-1".into()))
}

fn only(units: BTreeMap<UnitId, Unit>) -> Unit {
    assert_eq!(units.len(), 1);
    units.into_values().next().unwrap()
}

fn key(ip: &str, port: u16) -> BackendKey {
    BackendKey::from((ip.parse().unwrap(), port))
}

fn keys(list: &BTreeMap<BackendKey, u32>) -> Vec<String> {
    list.keys().map(|key| key.address.to_string()).collect()
}

fn web(endpoints: &[EndpointBuilder]) -> SliceBuilder {
    endpoints.iter().cloned().fold(slice("web-1", "web").tcp("http", 8080), |slice, one| slice.with(one))
}

#[test]
fn a_plain_unit_as_a_whole() {
    let units = compiled(service("web").tcp("http", 80), &[web(&[endpoint("10.0.0.1").on("node-1")])]);
    let id = UnitId {
        namespace: "default".into(),
        name: "web".into(),
        port_name: "http".into(),
        protocol: TCP,
        is_v4: true,
    };
    let frontend = FrontendKey::new(key("10.96.0.1", 0).address, 80_u16.to_be(), TCP);
    let unit = Unit {
        backends: [(key("10.0.0.1", 8080), BackendSpec { active: true, local: true })].into(),
        cluster: [(key("10.0.0.1", 8080), 1)].into(),
        frontends: [
            (frontend, FrontendPlan { internal: List::Cluster, external: List::Cluster, flags: 0 }),
            (FrontendKey::any_port(frontend.address), FrontendPlan::REFUSED),
        ]
        .into(),
        ..Unit::default()
    };
    assert_eq!(units, [(id, unit)].into());
}

#[test]
fn rule_10_a_unit_for_each_port_and_protocol() {
    let units = compiled(service("dns").udp("dns", 53).tcp("dns", 53).tcp("metrics", 9153), &[]);
    let ids: Vec<_> = units.keys().map(|id| (id.to_string(), id.protocol)).collect();
    let expected = [("default/dns:dns", TCP), ("default/dns:dns", UDP), ("default/dns:metrics", TCP)];
    assert_eq!(ids, expected.map(|(name, protocol)| (name.to_string(), protocol)));
}

#[test]
fn rule_80_a_unit_for_each_family_with_endpoints_of_its_own() {
    let slices = [
        web(&[endpoint("10.0.0.1")]),
        slice("web-2", "web").address_type("IPv6").tcp("http", 8080).with(endpoint("fd00::2")),
    ];
    let dual = service("web").tcp("http", 80).cluster_ips(&["10.96.0.1", "fd00:96::1"]);
    let units = compiled(dual, &slices);
    let cluster: Vec<_> = units.iter().map(|(id, unit)| (id.is_v4, keys(&unit.cluster))).collect();
    assert_eq!(cluster, [(false, vec!["fd00::2".to_string()]), (true, vec!["10.0.0.1".to_string()])]);

    let single = only(compiled(service("web").tcp("http", 80), &slices));
    assert_eq!(keys(&single.cluster), ["10.0.0.1"]);
}

#[test]
fn rule_82_endpoints_of_the_other_family_serve_nobody() {
    let slices = [slice("web-2", "web").address_type("IPv6").tcp("http", 8080).with(endpoint("fd00::2"))];
    let unit = only(compiled(service("web").tcp("http", 80), &slices));
    assert!(unit.backends.is_empty() && unit.cluster.is_empty());
}

#[test]
fn rule_23_a_list_that_nobody_uses_is_empty() {
    let endpoints = web(&[endpoint("10.0.0.1").on("node-1"), endpoint("10.0.0.2").on("node-2")]);
    let unit = |builder: ServiceBuilder| only(compiled(builder.tcp("http", 80), std::slice::from_ref(&endpoints)));

    let cluster = unit(service("web"));
    assert_eq!((cluster.cluster.len(), cluster.local.len()), (2, 0));
    let local = unit(service("web").internal_policy("Local"));
    assert_eq!((local.cluster.len(), local.local.len()), (0, 1));
    let external = unit(service("web").internal_policy("Local").external_ips(&["192.0.2.7"]));
    assert_eq!((external.cluster.len(), external.local.len()), (2, 1));
}

#[test]
fn every_serving_endpoint_is_a_backend_and_those_of_the_lists_are_active() {
    let unit = only(compiled(
        service("web").tcp("http", 80),
        &[web(&[
            endpoint("10.0.0.1").on("node-1"),
            endpoint("10.0.0.2").on("node-2").terminating(),
            endpoint("10.0.0.3").unready(),
            endpoint("10.0.0.4").conditions(false, true, false),
        ])],
    ));
    let spec = |active, local| BackendSpec { active, local };
    let expected = [
        (key("10.0.0.1", 8080), spec(true, true)),
        (key("10.0.0.2", 8080), spec(false, false)),
        (key("10.0.0.4", 8080), spec(false, false)),
    ];
    assert_eq!(unit.backends, expected.into());
    assert_eq!(keys(&unit.cluster), ["10.0.0.1"]);
}

#[test]
fn rule_11_named_target_ports_may_differ_between_slices() {
    let slices = [web(&[endpoint("10.0.0.1")]), slice("web-2", "web").tcp("http", 9090).with(endpoint("10.0.0.2"))];
    let unit = only(compiled(service("web").tcp("http", 80), &slices));
    assert_eq!(unit.cluster.into_keys().collect::<Vec<_>>(), [key("10.0.0.1", 8080), key("10.0.0.2", 9090)]);
}

/// Where packets that no frontend takes are refused, by unit.
fn refusals(units: &BTreeMap<UnitId, Unit>) -> Vec<(String, String)> {
    let of_unit = |(id, unit): (&UnitId, &Unit)| {
        let refused = unit.frontends.iter().filter(|(_, plan)| **plan == FrontendPlan::REFUSED);
        refused.map(|(key, _)| (id.port_name.clone(), key.address.to_string())).collect::<Vec<_>>()
    };
    units.iter().flat_map(of_unit).collect()
}

#[test]
fn rule_44_other_ports_of_a_cluster_ip_are_refused_by_one_frontend_of_each_family() {
    let dual = service("web").cluster_ips(&["10.96.0.1", "fd00:96::1"]).tcp("b", 80).udp("a", 53).tcp("c", 443);
    let units = compiled(dual, &[]);
    assert_eq!(refusals(&units), [("a".into(), "fd00:96::1".into()), ("a".into(), "10.96.0.1".into())]);
    let keys: Vec<_> = units.values().flat_map(|unit| unit.frontends.keys()).collect();
    assert!(keys.contains(&&FrontendKey::any_port(key("10.96.0.1", 0).address)));
}

#[test]
fn rule_45_other_ports_of_external_addresses_are_left_alone() {
    let builder = service("web").of_type("LoadBalancer").tcp("http", 80).external_ips(&["192.0.2.7"]);
    let units = compiled(builder.ingress("192.0.2.9", None), &[]);
    assert_eq!(refusals(&units), [("http".into(), "10.96.0.1".into())]);
}

#[test]
fn rule_54_each_port_has_an_affinity_of_its_own_for_all_its_frontends() {
    let builder = service("web").of_type("NodePort").tcp("http", 80).node_port(30_080).tcp("https", 443);
    let units = compiled(builder.affinity(Some(60)), &[]);
    assert_eq!(units.values().map(|unit| unit.affinity_secs).collect::<Vec<_>>(), [60, 60]);
    let units = compiled(service("web").tcp("http", 80), &[]);
    assert_eq!(only(units).affinity_secs, 0);
}

#[test]
fn rule_35_ranges_are_those_of_the_units_family_and_only_where_a_frontend_asks() {
    let ranges = ["198.51.100.0/24", "2001:db8:1::/48"];
    let dual = service("web").tcp("http", 80).cluster_ips(&["10.96.0.1", "fd00:96::1"]).source_ranges(&ranges);
    let ranges = |builder| -> Vec<String> {
        let units: BTreeMap<UnitId, Unit> = compiled(builder, &[]);
        units.values().flat_map(|unit| &unit.source_ranges).map(ToString::to_string).collect()
    };
    assert_eq!(ranges(dual.clone()), [""; 0], "without a load balancer");
    assert_eq!(ranges(dual.clone().ingress("192.0.2.9", None)), ["198.51.100.0/24"]);
    assert_eq!(ranges(dual.ingress("2001:db8::9", None)), ["2001:db8:1::/48"]);
}

fn any_endpoint() -> impl Strategy<Value = EndpointBuilder> {
    let conditions = any::<[bool; 3]>();
    let zones = prop::sample::subsequence(vec!["a", "b"], 0..=2);
    (0_u8..8, conditions, 0_u8..3, zones).prop_map(|(last, [ready, serving, terminating], node, zones)| {
        let one = endpoint(&format!("10.0.0.{last}")).conditions(ready, serving, terminating).for_zones(&zones);
        if node == 0 { one } else { one.on(&format!("node-{node}")) }
    })
}

proptest! {
    /// What `diff` may rely on, whatever the endpoints are.
    #[test]
    fn units_are_consistent(
        endpoints in prop::collection::vec(any_endpoint(), 0..12),
        internal in prop::sample::select(vec!["Cluster", "Local"]),
        external in prop::sample::select(vec!["Cluster", "Local"]),
    ) {
        let builder = service("web").of_type("NodePort").tcp("http", 80).node_port(30_080);
        let unit = only(compiled(builder.internal_policy(internal).external_policy(external), &[web(&endpoints)]));
        for (key, spec) in &unit.backends {
            let is_listed = unit.cluster.contains_key(key) || unit.local.contains_key(key);
            prop_assert_eq!(spec.active, is_listed);
            prop_assert!(!unit.local.contains_key(key) || spec.local);
        }
        for key in unit.cluster.keys().chain(unit.local.keys()) {
            prop_assert!(unit.backends.contains_key(key));
        }
        prop_assert_eq!(unit.frontends.len(), 3);
        // A drop means that somebody serves, but not for these clients.
        let is_dropped = unit.frontends.values().any(|plan| plan.flags != 0);
        prop_assert!(!is_dropped || (unit.local.is_empty() && !endpoints.is_empty()));
    }
}
