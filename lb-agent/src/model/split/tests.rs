// SPDX-License-Identifier: MIT OR Apache-2.0
//! Traffic splits: what people write, which split is in force, and whose endpoints serve then.

use super::*;
use crate::{
    compile::BackendKey,
    model::{
        Model,
        builders::{EndpointBuilder, ServiceBuilder, SliceBuilder, deleted, endpoint, service, slice},
    },
    source::{Event, Kind},
};

fn split(text: &str) -> Split {
    Split::parse(text).unwrap()
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

#[test]
fn weights_by_name() {
    let expected = [("web-v1".to_owned(), 90), ("web-v2".to_owned(), 0)];
    assert_eq!(split(" web-v1 = 90,web-v2=0 ").weights, expected.into());
    for (bad, cause) in [
        ("", "\"\" is no name=weight"),
        ("web-v1", "\"web-v1\" is no name=weight"),
        ("web-v1=90,", "\"\" is no name=weight"),
        ("Web=90", "\"Web\" is no name of a Service"),
        ("web=-1", "weight \"-1\" of web is not a number from 0 to 10000"),
        ("web=10%", "weight \"10%\" of web is not a number from 0 to 10000"),
        ("web=10001", "weight \"10001\" of web is not a number from 0 to 10000"),
        ("web=1,web=2", "web stands there twice"),
        ("a=0,b=0", "all weights are 0, so nobody would serve"),
    ] {
        assert_eq!(Split::parse(bad).unwrap_err(), cause);
    }
}

#[test]
fn an_unknown_name_leaves_the_last_good_split_in_force() {
    let mut splits = Splits::default();
    let (good, bad) = (split("v1=90,v2=10"), split("v1=50,v3=50"));
    let is_there = |part: &ServiceKey| part.name != "v3";
    splits.update(&key("web"), Some(&good), is_there);
    splits.update(&key("web"), Some(&bad), is_there);
    assert_eq!(splits.in_force(&key("web"), &bad), &good);
    for part in ["v1", "v2", "v3"] {
        assert_eq!(splits.users(&key(part)), [key("web")].into(), "{part}");
    }
    splits.update(&key("web"), Some(&bad), |_| true);
    assert_eq!(splits.in_force(&key("web"), &bad), &bad);
    assert_eq!(splits.users(&key("v2")), [].into());
    splits.update(&key("web"), None, |_| true);
    assert_eq!(splits, Splits::default());
}

/// `web`, whose traffic is split, and the parts `v1` and `v2`, which call their ports otherwise.
fn model(annotation: &str, slices: &[SliceBuilder]) -> Model {
    let mut model = Model::new("node-1".into());
    let parts = [
        service("v1").cluster_ips(&["10.96.0.2"]).tcp("http", 81),
        service("v2").cluster_ips(&["10.96.0.3"]).tcp("web", 82),
    ];
    let services = parts.into_iter().chain([web(annotation)]).map(ServiceBuilder::applied);
    for event in services.chain(slices.iter().cloned().map(SliceBuilder::applied)) {
        assert_eq!(model.handle(event), []);
    }
    model.take_dirty();
    model
}

fn web(annotation: &str) -> ServiceBuilder {
    service("web").of_type("NodePort").tcp("http", 80).node_port(30_080).annotation("shunt.dev/split", annotation)
}

fn v1(endpoints: &[EndpointBuilder]) -> SliceBuilder {
    endpoints.iter().cloned().fold(slice("v1-1", "v1").tcp("http", 8080), SliceBuilder::with)
}

fn v2(endpoints: &[EndpointBuilder]) -> SliceBuilder {
    endpoints.iter().cloned().fold(slice("v2-1", "v2").tcp("web", 8080), SliceBuilder::with)
}

/// The cluster list and the local list of `web`, as weights by address.
fn lists(model: &Model) -> [Vec<(String, u32)>; 2] {
    let (units, _) = model.compile(&key("web"));
    let unit = units.into_values().next().unwrap();
    let by_text = |list: BTreeMap<BackendKey, u32>| {
        let texts: BTreeMap<_, _> = list.iter().map(|(key, weight)| (key.address.to_string(), *weight)).collect();
        texts.into_iter().collect()
    };
    [unit.cluster, unit.local].map(by_text)
}

fn cluster(model: &Model) -> Vec<(String, u32)> {
    let [cluster, _] = lists(model);
    cluster
}

fn weights(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(ip, weight)| (ip.to_string(), *weight)).collect()
}

fn causes(model: &Model) -> Vec<String> {
    model.compile(&key("web")).1.iter().map(ToString::to_string).collect()
}

#[test]
fn split_traffic_goes_to_the_endpoints_of_the_parts_by_name_number_or_as_the_only_port() {
    let slices = [v1(&[endpoint("10.0.1.1"), endpoint("10.0.1.2"), endpoint("10.0.1.3")]), v2(&[endpoint("10.0.2.1")])];
    let model = model("v1=90,v2=10", &slices);
    assert_eq!(cluster(&model), weights(&[("10.0.1.1", 3), ("10.0.1.2", 3), ("10.0.1.3", 3), ("10.0.2.1", 1)]));
    assert_eq!(causes(&model), [""; 0]);
}

#[test]
fn split_parts_by_port_number_come_before_the_only_port() {
    let v2 = service("v2").cluster_ips(&["10.96.0.3"]).tcp("other", 79).tcp("web", 80);
    let mut model = model("v2=1", &[v2_slice()]);
    model.handle(v2.clone().applied());
    assert_eq!(cluster(&model), weights(&[("10.0.2.1", 1)]));
    model.handle(v2.tcp("http", 81).applied());
    assert_eq!(cluster(&model), [], "the port of the same name has no endpoints");
}

fn v2_slice() -> SliceBuilder {
    v2(&[endpoint("10.0.2.1")])
}

#[test]
fn a_split_part_without_usable_endpoints_gives_its_share_to_the_others() {
    let mut model = model("v1=50,v2=50", &[v1(&[endpoint("10.0.1.1").unready()]), v2_slice()]);
    assert_eq!(cluster(&model), weights(&[("10.0.2.1", 1)]));
    model.handle(v1(&[endpoint("10.0.1.1").terminating()]).applied());
    assert_eq!(cluster(&model), weights(&[("10.0.2.1", 1)]), "rule 20: there is a ready one");
    model.handle(v2(&[endpoint("10.0.2.1").terminating()]).applied());
    assert_eq!(cluster(&model), weights(&[("10.0.1.1", 1), ("10.0.2.1", 1)]));
}

#[test]
fn split_weight_0_drains() {
    let model = model("v1=1,v2=0", &[v1(&[endpoint("10.0.1.1")]), v2_slice()]);
    let (units, _) = model.compile(&key("web"));
    let unit = units.into_values().next().unwrap();
    let active: Vec<_> = unit.backends.iter().map(|(key, spec)| (key.address.to_string(), spec.active)).collect();
    assert_eq!(active, [("10.0.1.1".into(), true), ("10.0.2.1".into(), false)]);
}

#[test]
fn split_shares_hold_in_the_local_list_alike() {
    let slices = [
        v1(&[endpoint("10.0.1.1").on("node-1"), endpoint("10.0.1.2").on("node-1"), endpoint("10.0.1.3").on("node-2")]),
        v2(&[endpoint("10.0.2.1").on("node-1")]),
    ];
    let mut model = model("v1=50,v2=50", &slices);
    model.handle(web("v1=50,v2=50").external_policy("Local").applied());
    let [cluster, local] = lists(&model);
    assert_eq!(cluster, weights(&[("10.0.1.1", 1), ("10.0.1.2", 1), ("10.0.1.3", 1), ("10.0.2.1", 3)]));
    assert_eq!(local, weights(&[("10.0.1.1", 1), ("10.0.1.2", 1), ("10.0.2.1", 2)]));
}

#[test]
fn a_split_service_may_be_a_part_of_itself() {
    let own = slice("web-1", "web").tcp("http", 8080).with(endpoint("10.0.0.1"));
    assert_eq!(cluster(&model("web=1,v2=1", &[own, v2_slice()])), weights(&[("10.0.0.1", 1), ("10.0.2.1", 1)]));
}

#[test]
fn whatever_changes_a_split_part_makes_the_split_service_dirty() {
    let mut model = model("v1=1,v2=1", &[]);
    let mut dirtied = |event: Event| {
        model.handle(event);
        model.take_dirty().into_iter().map(|key| key.name).collect::<Vec<_>>()
    };
    assert_eq!(dirtied(v2_slice().applied()), ["v2", "web"]);
    assert_eq!(dirtied(deleted(Kind::EndpointSlice, "v2-1")), ["v2", "web"]);
    assert_eq!(dirtied(deleted(Kind::Service, "v2")), ["v2", "web"]);
    assert_eq!(dirtied(service("v2").cluster_ips(&["10.96.0.3"]).tcp("http", 80).applied()), ["v2", "web"]);
    assert_eq!(dirtied(web("v1=1").applied()), ["web"]);
    assert_eq!(dirtied(v2_slice().applied()), ["v2"], "it is no part any more");
}

#[test]
fn a_split_among_services_that_are_not_there_is_reported_and_the_last_good_one_stays() {
    let slices = [v1(&[endpoint("10.0.1.1")]), v2_slice()];
    let mut model = model("v1=3,v2=1", &slices);
    let good = cluster(&model);
    model.handle(web("v1=1,v3=1").applied());
    assert_eq!(cluster(&model), good);
    assert_eq!(
        causes(&model),
        [
            "Service default/web: its traffic is split among Services that are not there: v3; create them, or correct the \
          annotation shunt.dev/split; until then the last good split stays in force"
        ]
    );
    model.handle(service("v3").cluster_ips(&["10.96.0.4"]).tcp("http", 80).applied());
    assert_eq!(causes(&model), [""; 0]);
    assert_eq!(cluster(&model), weights(&[("10.0.1.1", 1)]));

    model.handle(web("v1=x").applied());
    assert_eq!(cluster(&model), weights(&[("10.0.1.1", 1)]));
    assert!(causes(&model)[0].contains("weight \"x\" of v1 is not a number"), "{:?}", causes(&model));
}

#[test]
fn a_split_that_was_never_good_goes_to_the_parts_that_are_there() {
    let model = model("v1=1,v3=1", &[v1(&[endpoint("10.0.1.1")]), v2_slice()]);
    assert_eq!(cluster(&model), weights(&[("10.0.1.1", 1)]));
    assert!(causes(&model)[0].ends_with("until then the others get their share"));
}

/// A load balancer that was told of them would send here what finds no endpoint.
#[test]
fn rule_67_endpoints_of_a_part_without_weight_do_not_count_for_a_health_check() {
    let on = |ip: &str, node: &str| endpoint(ip).on(node);
    let mut model = model("v1=100,v2=0", &[v1(&[on("10.0.1.1", "node-2")]), v2(&[on("10.0.2.1", "node-1")])]);
    let checked = |model: &mut Model, annotation: &str| {
        let web = web(annotation).of_type("LoadBalancer").external_policy("Local");
        model.handle(web.edit(|spec| spec.health_check_node_port = Some(32_000)).applied());
        model.health_check(&key("web")).unwrap().local_endpoints
    };
    assert_eq!(checked(&mut model, "v1=100,v2=0"), [Some(0), None]);
    assert_eq!(checked(&mut model, "v1=90,v2=10"), [Some(1), None]);
}
