// SPDX-License-Identifier: MIT OR Apache-2.0
//! The desired state under any order of events, and what each event makes dirty.

use std::net::IpAddr;

use lb_common::address::Address;
use proptest::prelude::*;

use super::*;
use crate::model::builders::{ServiceBuilder, SliceBuilder, deleted, endpoint, node, service, service_cidr, slice};

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn keys(names: &[&str]) -> BTreeSet<ServiceKey> {
    names.iter().map(|name| key(name)).collect()
}

/// A model of `node-1` that has seen these events and has nothing dirty.
fn model(events: impl IntoIterator<Item = Event>) -> Model {
    let mut model = Model::new("node-1".into());
    for event in events {
        assert_eq!(model.handle(event), []);
    }
    model.take_dirty();
    model
}

fn web() -> ServiceBuilder {
    service("web").tcp("http", 80)
}

fn web_slice(name: &str, ip: &str) -> Event {
    slice(name, "web").tcp("http", 8080).with(endpoint(ip)).applied()
}

fn backends(model: &Model, name: &str) -> usize {
    model.compile(&key(name)).0.values().map(|unit| unit.backends.len()).sum()
}

/// What an event makes dirty.
fn dirtied(model: &mut Model, event: Event) -> BTreeSet<ServiceKey> {
    model.handle(event);
    model.take_dirty()
}

#[test]
fn rule_1_the_proxy_name_label_on_a_live_service_looks_like_a_delete() {
    let mut model = model([web().applied()]);
    let hidden = web().label("service.kubernetes.io/service-proxy-name", "");
    assert_eq!(dirtied(&mut model, hidden.applied()), keys(&["web"]));
    assert_eq!(model.compile(&key("web")), Default::default());
    assert_eq!(dirtied(&mut model, web().applied()), keys(&["web"]));
    assert_eq!(model.services(), keys(&["web"]));
}

#[test]
fn rule_2_the_headless_label_on_a_live_slice_removes_its_endpoints() {
    let mut model = model([web().applied(), web_slice("web-1", "10.0.0.1")]);
    assert_eq!(backends(&model, "web"), 1);
    let hidden = slice("web-1", "web").tcp("http", 8080).label("service.kubernetes.io/headless", "");
    assert_eq!(dirtied(&mut model, hidden.applied()), keys(&["web"]));
    assert_eq!(backends(&model, "web"), 0);
}

#[test]
fn rule_3_a_service_that_becomes_an_external_name_goes() {
    let mut model = model([web().applied()]);
    assert_eq!(dirtied(&mut model, web().of_type("ExternalName").applied()), keys(&["web"]));
    assert!(model.services().is_empty());
}

#[test]
fn rule_5_the_zone_of_the_own_node_concerns_every_service() {
    let mut model = model([web().applied(), service("dns").udp("dns", 53).applied()]);
    assert_eq!(dirtied(&mut model, node("node-2", Some("a"), &[])), keys(&[]));
    assert_eq!(dirtied(&mut model, node("node-1", Some("a"), &[])), keys(&["web", "dns"]));
    assert_eq!(dirtied(&mut model, node("node-1", Some("a"), &["192.0.2.1"])), keys(&[]));
    assert_eq!(dirtied(&mut model, deleted(Kind::Node, "node-2")), keys(&[]));
    assert_eq!(dirtied(&mut model, deleted(Kind::Node, "node-1")), keys(&["web", "dns"]));
}

#[test]
fn rule_35_the_nodes_addresses_concern_services_with_source_ranges() {
    let restricted = web().ingress("192.0.2.9", None).source_ranges(&["192.0.2.0/28"]);
    let mut model = model([restricted.applied(), service("dns").udp("dns", 53).applied()]);
    let ranges = |model: &Model| -> Vec<String> {
        let units = model.compile(&key("web")).0.into_values();
        units.flat_map(|unit| unit.source_ranges).map(|range| range.to_string()).collect()
    };
    assert_eq!(ranges(&model), ["192.0.2.0/28"]);
    assert_eq!(dirtied(&mut model, node("node-1", None, &["192.0.2.1"])), keys(&["web"]));
    assert_eq!(ranges(&model), ["192.0.2.0/28", "192.0.2.9/32"]);
}

#[test]
fn rule_35_a_range_that_can_not_be_read_leaves_the_last_good_ones_in_force() {
    let with = |range: &str| web().ingress("192.0.2.9", None).source_ranges(&[range]).applied();
    let mut model = model([with("198.51.100.0/24")]);
    let good = model.compile(&key("web")).0;
    model.handle(with("198.51.100.0/240"));
    let (units, problems) = model.compile(&key("web"));
    assert_eq!(units, good);
    assert_eq!(problems[0].subject, "Service default/web");
}

#[test]
fn rule_57_affinity_is_switched_on_and_off_on_a_live_service() {
    let mut model = model([web().applied()]);
    let timeout = |model: &Model| model.compile(&key("web")).0.into_values().next().unwrap().affinity_secs;
    for (builder, expected) in [(web().affinity(Some(10)), 10), (web(), 0), (web().affinity(None), 10_800)] {
        assert_eq!(dirtied(&mut model, builder.applied()), keys(&["web"]));
        assert_eq!(timeout(&model), expected);
    }
}

#[test]
fn rule_5_internal_addresses_are_those_of_the_own_node() {
    let model = model([node("node-2", None, &["192.0.2.2"]), node("node-1", None, &["192.0.2.1", "fd00::1", "?"])]);
    assert_eq!(model.node().internal_addresses, ["192.0.2.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
}

#[test]
fn rule_5_internal_addresses_come_before_external_ones() {
    let typed = |type_: &str, ip: &str| core::NodeAddress { type_: type_.into(), address: ip.into() };
    let mut object = core::Node::default();
    object.metadata.name = Some("node-1".into());
    let addresses = [("Hostname", "node-1"), ("ExternalIP", "203.0.113.1"), ("InternalIP", "fd00::1")];
    object.status.get_or_insert_default().addresses = Some(addresses.map(|(kind, ip)| typed(kind, ip)).into());
    let model = model([Event::Apply(object.into())]);
    let node = model.node();
    let addresses = node.internal_addresses.iter().chain(&node.external_addresses);
    let own: Vec<String> = addresses.map(IpAddr::to_string).collect();
    assert_eq!(own, ["fd00::1", "203.0.113.1"]);
}

#[test]
fn rule_6_service_cidrs_are_followed() {
    let ranges = |model: &Model| model.service_cidrs().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut model = model([service_cidr("kubernetes", &["10.96.0.0/12", "fd00:96::/108"])]);
    assert_eq!(model.handle(service_cidr("more", &["10.96.0.0/12", "172.30.0.0/16"])), []);
    assert_eq!(ranges(&model), ["10.96.0.0/12", "172.30.0.0/16", "fd00:96::/108"]);
    let problems = model.handle(service_cidr("more", &["10.1.0.0", "0.0.0.0/0"]));
    assert_eq!(
        problems[0].to_string().split(';').next(),
        Some("ServiceCIDR more: \"10.1.0.0\" is no range of ClusterIPs, and is skipped")
    );
    assert_eq!(problems.len(), 2);
    model.handle(deleted(Kind::ServiceCidr, "kubernetes"));
    assert_eq!(ranges(&model), [""; 0]);
}

#[test]
fn rule_87_external_ips_are_left_out_where_they_are_not_wanted_and_that_is_said() {
    let object = || service("web").tcp("http", 80).edit(|spec| spec.external_ips = Some(vec!["203.0.113.7".into()]));
    let serves = |model: &Model| {
        let (units, problems) = model.compile(&ServiceKey::new("default", "web"));
        let address = Address::from(IpAddr::from([203, 0, 113, 7]));
        let frontends = units.values().flat_map(|unit| unit.frontends.keys());
        (frontends.filter(|frontend| frontend.address == address).count(), problems.len())
    };
    assert_eq!(serves(&model([object().applied()])), (1, 0));
    let mut without = Model::new("node-1".into()).serving_external_ips(false);
    without.handle(object().applied());
    assert_eq!(serves(&without), (0, 1));
    without.handle(service("web").tcp("http", 80).applied());
    assert_eq!(serves(&without), (0, 0));
}

#[test]
fn rule_7_synced_is_what_the_source_says() {
    let mut model = model([web().applied()]);
    assert!(!model.is_synced());
    model.handle(Event::Synced);
    assert!(model.is_synced());
}

#[test]
fn rule_16_an_endpoint_that_moves_between_slices_is_never_twice() {
    let mut model = model([web().applied(), web_slice("web-1", "10.0.0.1")]);
    model.handle(web_slice("web-2", "10.0.0.1"));
    assert_eq!(backends(&model, "web"), 1);
    model.handle(deleted(Kind::EndpointSlice, "web-1"));
    assert_eq!(backends(&model, "web"), 1);
}

#[test]
fn rule_19_each_field_that_matters_makes_its_service_dirty() {
    let base = || web().of_type("NodePort").node_port(30_080);
    let edits = [
        base().of_type("LoadBalancer"),
        base().tcp("https", 443),
        base().node_port(30_081),
        base().internal_policy("Local"),
        base().external_policy("Local"),
        base().external_ips(&["192.0.2.7"]),
        base().cluster_ips(&["10.96.0.1", "fd00::1"]),
        base().edit(|spec| spec.ports.as_mut().unwrap()[0].name = Some("web".into())),
        base().affinity(None),
        base().source_ranges(&["198.51.100.0/24"]),
        base().annotation("shunt.dev/split", "web=1"),
        base().annotation("shunt.dev/on-backend-removal", "reset"),
        base().ingress("192.0.2.9", None),
    ];
    for edit in edits {
        let mut model = model([base().applied(), service("dns").udp("dns", 53).applied()]);
        assert_eq!(dirtied(&mut model, edit.clone().applied()), keys(&["web"]), "{:?}", edit.0);
        assert_eq!(dirtied(&mut model, edit.applied()), keys(&[]), "the same object again");
    }
}

#[test]
fn rule_81_a_second_family_comes_and_goes_on_a_live_service() {
    let mut model = model([web().applied(), web_slice("web-1", "10.0.0.1")]);
    model.handle(slice("web-2", "web").address_type("IPv6").tcp("http", 8080).with(endpoint("fd00::1")).applied());
    let families = |model: &Model| -> Vec<(bool, usize)> {
        model.compile(&key("web")).0.iter().map(|(id, unit)| (id.is_v4, unit.backends.len())).collect()
    };
    let dual = ["10.96.0.1", "fd00:96::1"];
    for (ips, expected) in [
        (&dual[..1], vec![(true, 1)]),
        (&dual, vec![(false, 1), (true, 1)]),
        (&["fd00:96::1", "10.96.0.1"], vec![(false, 1), (true, 1)]),
        (&dual[1..], vec![(false, 1)]),
    ] {
        model.handle(web().cluster_ips(ips).applied());
        assert_eq!(families(&model), expected);
    }
}

#[test]
fn what_does_not_matter_costs_nothing() {
    let mut model = model([web().applied(), web_slice("web-1", "10.0.0.1")]);
    let mut noise = web().annotation("kubectl.kubernetes.io/last-applied-configuration", "{}");
    noise.0.metadata.resource_version = Some("7".into());
    assert_eq!(dirtied(&mut model, noise.applied()), keys(&[]));
    assert_eq!(dirtied(&mut model, web_slice("web-1", "10.0.0.1")), keys(&[]));
    assert_eq!(dirtied(&mut model, deleted(Kind::Service, "other")), keys(&[]));
    assert_eq!(dirtied(&mut model, slice("x-1", "other").applied()), keys(&[]));
}

#[test]
fn a_change_concerns_its_own_service_only() {
    let mut model = model([web().applied(), service("dns").udp("dns", 53).applied()]);
    assert_eq!(dirtied(&mut model, web_slice("web-1", "10.0.0.1")), keys(&["web"]));
    let moved = slice("web-1", "dns").udp("dns", 53).with(endpoint("10.0.0.1"));
    assert_eq!(dirtied(&mut model, moved.applied()), keys(&["web", "dns"]));
    assert_eq!((backends(&model, "web"), backends(&model, "dns")), (0, 1));
    assert_eq!(dirtied(&mut model, deleted(Kind::EndpointSlice, "web-1")), keys(&["dns"]));
    assert_eq!(backends(&model, "dns"), 0);
}

#[test]
fn rule_18_the_age_of_a_service_is_its_creation() {
    let mut aged = web();
    let time = serde_json::from_str("\"2026-01-02T03:04:05Z\"").unwrap();
    aged.0.metadata.creation_timestamp = Some(time);
    let model = model([aged.applied(), service("dns").applied()]);
    assert_eq!(model.creation_secs(&key("web")), 1_767_323_045);
    assert_eq!(model.creation_secs(&key("dns")), i64::MAX);
}

#[test]
fn a_bad_port_stays_as_it_was() {
    let mut model = model([web().applied()]);
    let good = model.compile(&key("web")).0;
    let bad = service("web").tcp("http", 0);
    assert_eq!(dirtied(&mut model, bad.applied()), keys(&["web"]));
    let (units, problems) = model.compile(&key("web"));
    assert_eq!(units, good);
    assert_eq!(problems[0].cause, "port 0 is out of range");
    assert!(problems[0].remedy.ends_with("the last good value stays in force"));

    assert_eq!(dirtied(&mut model, web().applied()), keys(&["web"]));
    assert_eq!(model.compile(&key("web")), (good, vec![]));
}

#[test]
fn a_service_with_bad_ports_is_served_as_far_as_it_goes_and_mended_step_by_step() {
    let mut model = model([service("web").tcp("a", 80).tcp("b", 0).tcp("c", 0).applied()]);
    assert_eq!(model.compile(&key("web")).0.len(), 1);
    model.handle(service("web").tcp("a", 80).tcp("b", 81).tcp("c", 0).applied());
    let (units, problems) = model.compile(&key("web"));
    assert_eq!((units.len(), problems.len()), (2, 1));
}

#[test]
fn problems_of_slices_are_those_of_their_service() {
    let model = model([web().applied(), web_slice("web-1", "localhost")]);
    let (_, problems) = model.compile(&key("web"));
    assert_eq!(problems[0].subject, "EndpointSlice default/web-1");
}

#[test]
fn a_problem_of_a_source_is_handed_on() {
    let problem = Problem::new("file web.yaml", "broken", "mend it");
    assert_eq!(Model::new("node-1".into()).handle(Event::Problem(problem.clone())), [problem]);
}

/// Objects that hang together in all ways: two Services, slices of both, endpoints in several slices, the node's zone.
fn a_little_world() -> Vec<Event> {
    vec![
        node("node-1", Some("a"), &["192.0.2.1"]),
        web().of_type("NodePort").node_port(30_080).external_policy("Local").applied(),
        service("dns").cluster_ips(&["10.96.0.10", "fd00::10"]).udp("dns", 53).tcp("dns-tcp", 53).applied(),
        slice("web-1", "web").tcp("http", 8080).with(endpoint("10.0.0.1").on("node-1").for_zones(&["a"])).applied(),
        slice("web-2", "web")
            .tcp("http", 8081)
            .with(endpoint("10.0.0.2").for_zones(&["b"]))
            .with(endpoint("10.0.0.1").terminating())
            .applied(),
        slice("dns-1", "dns").udp("dns", 53).tcp("dns-tcp", 53).with(endpoint("10.0.0.3").unready()).applied(),
        slice("dns-2", "dns").address_type("IPv6").udp("dns", 53).with(endpoint("fd00::3").terminating()).applied(),
        slice("lost-1", "lost").tcp("http", 80).with(endpoint("10.0.0.9")).applied(),
        service("split")
            .cluster_ips(&["10.96.0.11"])
            .tcp("http", 80)
            .annotation("shunt.dev/split", "web=2,dns=1")
            .applied(),
    ]
}

proptest! {
    #[test]
    fn rule_4_the_order_of_arrival_does_not_matter(events in Just(a_little_world()).prop_shuffle()) {
        let expected = model(a_little_world());
        let shuffled = model(events);
        prop_assert_eq!(shuffled.services(), expected.services());
        for key in expected.services() {
            prop_assert_eq!(shuffled.compile(&key), expected.compile(&key));
        }
    }

    /// Compiling only what is dirty is as good as compiling everything after each event.
    #[test]
    fn whatever_changes_a_unit_makes_its_service_dirty(
        picks in prop::collection::vec((0_usize..9, any::<bool>()), 0..40),
    ) {
        let world = a_little_world();
        let mut model = Model::new("node-1".into());
        let mut compiled = BTreeMap::new();
        for (index, is_there) in picks {
            let event = if is_there { world[index].clone() } else { delete_of(&world[index]) };
            model.handle(event);
            for key in model.take_dirty() {
                compiled.insert(key.clone(), model.compile(&key));
            }
            for key in keys(&["web", "dns", "lost", "split"]) {
                prop_assert_eq!(compiled.get(&key).cloned().unwrap_or_default(), model.compile(&key));
            }
        }
    }
}

fn delete_of(event: &Event) -> Event {
    let (kind, metadata) = match event {
        Event::Apply(Object::Service(object)) => (Kind::Service, &object.metadata),
        Event::Apply(Object::EndpointSlice(object)) => (Kind::EndpointSlice, &object.metadata),
        Event::Apply(Object::Node(object)) => (Kind::Node, &object.metadata),
        Event::Apply(Object::ServiceCidr(object)) => (Kind::ServiceCidr, &object.metadata),
        other => unreachable!("not an object: {other:?}"),
    };
    deleted(kind, metadata.name.as_deref().unwrap())
}

/// Threads kubernetes 139513 and 48107: one Service is compiled again, however many there are.
#[test]
fn pitfall_20_a_changed_endpoint_makes_its_service_alone_dirty() {
    let others = (0..1_000).flat_map(|index| {
        let name = format!("other-{index}");
        let ip = format!("10.97.{}.{}", index >> 8, index & 255);
        let slice = slice(&format!("{name}-1"), &name).tcp("http", 8080).with(endpoint("10.0.0.1"));
        [service(&name).cluster_ips(&[&ip]).tcp("http", 80).applied(), slice.applied()]
    });
    let mut model = model(others.chain([web().applied(), web_slice("web-1", "10.0.0.1")]));
    assert_eq!(dirtied(&mut model, web_slice("web-1", "10.0.0.2")), keys(&["web"]));
}

mod bad_values;
