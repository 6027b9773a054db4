// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules 17 and 20 to 24, each as a table of endpoints seen from `node-1` in zone `a`.

use super::*;
use crate::model::{
    builders::{EndpointBuilder, endpoint, slice},
    endpoints::{Slice, merge},
};

fn lists_in(zone: Option<&str>, endpoints: &[EndpointBuilder]) -> (Vec<String>, Vec<String>) {
    let builder = endpoints.iter().cloned().fold(slice("web-1", "web").tcp("", 80), |slice, one| slice.with(one));
    let slice = Slice::parse(&builder.0, None).unwrap();
    let merged = merge([&slice].into_iter(), "", lb_common::flow::protocol::TCP, true);
    let node = Node { zone: zone.map(Into::into), ..Node::new("node-1".into()) };
    let lists = categorize(&[&merged], &node).remove(0);
    let names = |list: Vec<BackendKey>| list.into_iter().map(|key| key.address.to_string()).collect();
    (names(lists.cluster), names(lists.local))
}

fn lists(endpoints: &[EndpointBuilder]) -> (Vec<String>, Vec<String>) {
    lists_in(Some("a"), endpoints)
}

fn cluster(endpoints: &[EndpointBuilder]) -> Vec<String> {
    lists(endpoints).0
}

#[test]
fn rule_17_an_endpoint_of_an_unknown_node_is_never_local() {
    let endpoints = [endpoint("10.0.0.1"), endpoint("10.0.0.2").on("node-2"), endpoint("10.0.0.3").on("node-1")];
    assert_eq!(lists(&endpoints).1, ["10.0.0.3"]);
}

#[test]
fn rule_20_terminating_endpoints_serve_only_when_nothing_is_ready() {
    let going = [endpoint("10.0.0.1").terminating(), endpoint("10.0.0.2").terminating()];
    assert_eq!(cluster(&going), ["10.0.0.1", "10.0.0.2"]);
    let [first, second] = going;
    assert_eq!(cluster(&[first, second, endpoint("10.0.0.3")]), ["10.0.0.3"]);
}

#[test]
fn rule_20_the_fall_back_ignores_topology() {
    let going = |ip: &str, zone: &str| endpoint(ip).terminating().for_zones(&[zone]);
    assert_eq!(cluster(&[going("10.0.0.1", "a"), going("10.0.0.2", "b")]), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn rule_20_terminating_and_not_serving_is_never_used() {
    assert_eq!(lists(&[endpoint("10.0.0.1").conditions(false, false, true)]), (vec![], vec![]));
}

#[test]
fn rule_14_ready_is_enough_even_when_not_serving() {
    let published = endpoint("10.0.0.1").conditions(true, false, false);
    assert_eq!(cluster(&[published]), ["10.0.0.1"]);
}

#[test]
fn rule_21_the_local_fall_back_does_not_wait_for_the_cluster() {
    let here = endpoint("10.0.0.1").on("node-1").terminating();
    let there = endpoint("10.0.0.2").on("node-2");
    assert_eq!(lists(&[here, there]), (vec!["10.0.0.2".into()], vec!["10.0.0.1".into()]));
}

#[test]
fn rule_21_topology_is_never_applied_to_the_local_list() {
    let here = endpoint("10.0.0.1").on("node-1").for_zones(&["b"]);
    let there = endpoint("10.0.0.2").on("node-2").for_zones(&["a"]);
    assert_eq!(lists(&[here, there]), (vec!["10.0.0.2".into()], vec!["10.0.0.1".into()]));
}

#[test]
fn rule_22_unready_is_no_fallback() {
    let unready = endpoint("10.0.0.1").on("node-1").conditions(false, true, false);
    assert_eq!(lists(&[unready]), (vec![], vec![]));
}

#[test]
fn rule_24_zone_hints_narrow_to_the_own_zone() {
    let endpoints = [
        endpoint("10.0.0.1").for_zones(&["a"]),
        endpoint("10.0.0.2").for_zones(&["b"]),
        endpoint("10.0.0.3").for_zones(&["b", "a"]),
    ];
    assert_eq!(cluster(&endpoints), ["10.0.0.1", "10.0.0.3"]);
}

#[test]
fn rule_24_one_endpoint_without_a_hint_switches_hints_off() {
    let endpoints = [endpoint("10.0.0.1").for_zones(&["a"]), endpoint("10.0.0.2")];
    assert_eq!(cluster(&endpoints), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn rule_24_hints_of_endpoints_that_are_not_ready_do_not_matter() {
    let endpoints = [
        endpoint("10.0.0.1").for_zones(&["a"]),
        endpoint("10.0.0.2").for_zones(&["b"]),
        endpoint("10.0.0.3").terminating(),
    ];
    assert_eq!(cluster(&endpoints), ["10.0.0.1"]);
}

#[test]
fn rule_24_hints_that_forget_our_zone_are_ignored() {
    let endpoints = [endpoint("10.0.0.1").for_zones(&["b"]), endpoint("10.0.0.2").for_zones(&["c"])];
    assert_eq!(cluster(&endpoints), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn rule_24_without_a_zone_of_our_own_zone_hints_are_ignored() {
    let endpoints = [endpoint("10.0.0.1").for_zones(&["a"]), endpoint("10.0.0.2").for_zones(&["b"])];
    assert_eq!(lists_in(None, &endpoints).0, ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn rule_24_node_hints_come_before_zone_hints() {
    let endpoints = [
        endpoint("10.0.0.1").for_zones(&["a"]).for_nodes(&["node-1"]),
        endpoint("10.0.0.2").for_zones(&["a"]).for_nodes(&["node-2"]),
    ];
    assert_eq!(cluster(&endpoints), ["10.0.0.1"]);
}

#[test]
fn rule_24_node_hints_that_forget_us_fall_back_to_the_zone() {
    let endpoints = [
        endpoint("10.0.0.1").for_zones(&["a"]).for_nodes(&["node-2"]),
        endpoint("10.0.0.2").for_zones(&["b"]).for_nodes(&["node-3"]),
    ];
    assert_eq!(cluster(&endpoints), ["10.0.0.1"]);
}

#[test]
fn rule_24_one_endpoint_without_a_node_hint_leaves_the_zone() {
    let endpoints = [
        endpoint("10.0.0.1").for_zones(&["a"]).for_nodes(&["node-1"]),
        endpoint("10.0.0.2").for_zones(&["a"]),
        endpoint("10.0.0.3").for_zones(&["b"]),
    ];
    assert_eq!(cluster(&endpoints), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn rule_25_prefer_same_node_falls_back_to_the_zone_and_then_to_all() {
    let hinted = |ip: &str, node: &str, zone: &str| endpoint(ip).on(node).for_nodes(&[node]).for_zones(&[zone]);
    let all = [
        hinted("10.0.0.1", "node-1", "a"),
        hinted("10.0.0.2", "node-2", "a"),
        hinted("10.0.0.3", "node-3", "b"),
        hinted("10.0.0.4", "node-4", "b"),
    ];
    assert_eq!(cluster(&all), ["10.0.0.1"]);
    assert_eq!(cluster(&all[1..]), ["10.0.0.2"]);
    assert_eq!(cluster(&all[2..]), ["10.0.0.3", "10.0.0.4"]);
}
