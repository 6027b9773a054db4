// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules 27 to 42: where a port is reached, and by which list.

use frontend_flags::{EXTERNAL_DROP, EXTERNAL_PASS, INTERNAL_DROP, RESET_ON_REMOVAL, SOURCE_RANGES};
use lb_common::{address::Address, flow::protocol::TCP};

use super::*;
use crate::{
    compile::BackendKey,
    model::builders::{ServiceBuilder, service},
};

const HERE: &str = "10.0.0.1";
const THERE: &str = "10.0.0.2";

/// What the unit's lists hold: endpoints on this node and elsewhere.
fn lists(cluster: &[&str], local: &[&str]) -> Lists {
    let keys = |ips: &[&str]| ips.iter().map(|ip| BackendKey::from((ip.parse().unwrap(), 8080))).collect();
    Lists { cluster: keys(cluster), local: keys(local) }
}

fn plan_v4(builder: ServiceBuilder, lists: &Lists) -> BTreeMap<FrontendKey, FrontendPlan> {
    let service = Service::parse(&builder.0, None).unwrap();
    plan(&service, &service.ports[0], true, lists, false)
}

fn at(ip: &str) -> FrontendKey {
    FrontendKey::new(Address::from(ip.parse::<IpAddr>().unwrap()), 80_u16.to_be(), TCP)
}

fn node_port(is_v4: bool) -> FrontendKey {
    FrontendKey::node_port(is_v4, 30_080_u16.to_be(), TCP)
}

/// A Service that is reached in every way there is.
fn everywhere() -> ServiceBuilder {
    service("web")
        .of_type("LoadBalancer")
        .tcp("http", 80)
        .node_port(30_080)
        .external_ips(&["192.0.2.7"])
        .ingress("192.0.2.9", None)
}

const CLUSTER: FrontendPlan = FrontendPlan { internal: List::Cluster, external: List::Cluster, flags: 0 };

#[test]
fn rules_27_to_33_every_way_in_has_its_frontend() {
    let frontends = plan_v4(everywhere(), &lists(&[HERE], &[HERE]));
    let expected = [at("10.96.0.1"), at("192.0.2.7"), at("192.0.2.9"), node_port(true)];
    assert_eq!(frontends, expected.map(|key| (key, CLUSTER)).into());
}

#[test]
fn rule_86_passthrough_is_for_load_balancer_and_external_ips_with_the_policy_local() {
    let passing = |policy: &str| {
        let builder = everywhere().edit(|spec| spec.external_traffic_policy = Some(policy.into()));
        let plans = plan_v4(builder.annotation("shunt.dev/external-failover", "passthrough"), &lists(&[THERE], &[]));
        plans.into_iter().filter(|(_, plan)| plan.flags & EXTERNAL_PASS != 0).map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(passing("Local"), [at("192.0.2.7"), at("192.0.2.9")]);
    assert_eq!(passing("Cluster"), []);
    let without =
        plan_v4(everywhere().edit(|spec| spec.external_traffic_policy = Some("Local".into())), &lists(&[THERE], &[]));
    assert!(without.values().all(|plan| plan.flags & EXTERNAL_PASS == 0));
}

#[test]
fn rule_80_each_family_has_its_own_frontends() {
    let dual = everywhere().cluster_ips(&["10.96.0.1", "fd00::1"]).external_ips(&["192.0.2.7", "2001:db8::7"]);
    let service = Service::parse(&dual.0, None).unwrap();
    let v6 = plan(&service, &service.ports[0], false, &lists(&[], &[]), false);
    assert_eq!(v6, [at("fd00::1"), at("2001:db8::7"), node_port(false)].map(|key| (key, CLUSTER)).into());
}

#[test]
fn rule_31_a_node_port_service_has_its_cluster_ip_too() {
    let builder = service("web").of_type("NodePort").tcp("http", 80).node_port(30_080);
    let frontends = plan_v4(builder, &lists(&[HERE], &[]));
    assert_eq!(frontends.into_keys().collect::<Vec<_>>(), [node_port(true), at("10.96.0.1")]);
}

#[test]
fn rule_33_status_counts_whatever_the_type() {
    let frontends = plan_v4(service("web").tcp("http", 80).ingress("192.0.2.9", None), &lists(&[HERE], &[]));
    assert_eq!(frontends[&at("192.0.2.9")], CLUSTER);
}

#[test]
fn rule_34_without_a_node_port_there_is_no_such_frontend() {
    let frontends = plan_v4(service("web").tcp("http", 80), &lists(&[HERE], &[]));
    assert_eq!(frontends.into_keys().collect::<Vec<_>>(), [at("10.96.0.1")]);
}

#[test]
fn rule_36_the_source_is_asked_for_even_without_endpoints() {
    let service = Service::parse(&everywhere().0, None).unwrap();
    let frontends = plan(&service, &service.ports[0], true, &lists(&[], &[]), true);
    assert_eq!(frontends[&at("192.0.2.9")].flags, SOURCE_RANGES);
}

#[test]
fn rule_37_the_internal_policy_governs_the_cluster_ip_alone() {
    let frontends = plan_v4(everywhere().internal_policy("Local"), &lists(&[HERE, THERE], &[HERE]));
    let local = FrontendPlan { internal: List::Local, external: List::Local, flags: 0 };
    assert_eq!(frontends[&at("10.96.0.1")], local);
    for key in [at("192.0.2.7"), at("192.0.2.9"), node_port(true)] {
        assert_eq!(frontends[&key], CLUSTER);
    }
}

#[test]
fn rule_37_the_external_policy_governs_everything_but_the_cluster_ip() {
    let frontends = plan_v4(everywhere().external_policy("Local"), &lists(&[HERE, THERE], &[HERE]));
    assert_eq!(frontends[&at("10.96.0.1")], CLUSTER);
    let short_circuit = FrontendPlan { internal: List::Cluster, external: List::Local, flags: 0 };
    for key in [at("192.0.2.7"), at("192.0.2.9"), node_port(true)] {
        assert_eq!(frontends[&key], short_circuit);
    }
}

#[test]
fn rule_38_local_clients_reach_endpoints_elsewhere_despite_the_local_policy() {
    let frontends = plan_v4(everywhere().external_policy("Local"), &lists(&[THERE], &[]));
    for key in [at("192.0.2.7"), at("192.0.2.9"), node_port(true)] {
        assert_eq!(frontends[&key].internal, List::Cluster);
        assert_eq!(frontends[&key].flags & INTERNAL_DROP, 0);
    }
}

#[test]
fn rule_39_the_external_policy_needs_something_external() {
    let only_status = service("web").tcp("http", 80).ingress("192.0.2.9", None).external_policy("Local");
    assert_eq!(plan_v4(only_status.clone(), &lists(&[THERE], &[]))[&at("192.0.2.9")], CLUSTER);
    let with_external_ip = only_status.external_ips(&["192.0.2.7"]);
    let frontends = plan_v4(with_external_ip, &lists(&[THERE], &[]));
    assert_eq!(frontends[&at("192.0.2.7")].external, List::Local);
}

#[test]
fn rule_40_without_any_endpoint_nothing_is_dropped() {
    let builder = everywhere().internal_policy("Local").external_policy("Local");
    assert!(plan_v4(builder, &lists(&[], &[])).values().all(|plan| plan.flags == 0));
}

#[test]
fn rule_41_itp_local_drops() {
    let frontends = plan_v4(everywhere().internal_policy("Local"), &lists(&[THERE], &[]));
    assert_eq!(frontends[&at("10.96.0.1")].flags, INTERNAL_DROP | EXTERNAL_DROP);
    assert_eq!(frontends[&node_port(true)].flags, 0);
}

#[test]
fn rule_42_etp_local_drops_outside_clients_only() {
    let frontends = plan_v4(everywhere().external_policy("Local"), &lists(&[THERE], &[]));
    for key in [at("192.0.2.7"), at("192.0.2.9"), node_port(true)] {
        let dropped = FrontendPlan { internal: List::Cluster, external: List::Local, flags: EXTERNAL_DROP };
        assert_eq!(frontends[&key], dropped);
    }
    assert_eq!(frontends[&at("10.96.0.1")], CLUSTER);
}

#[test]
fn rule_35_only_load_balancer_addresses_ask_for_the_source() {
    let builder = everywhere().external_ips(&["192.0.2.7", "192.0.2.9"]);
    let service = Service::parse(&builder.0, None).unwrap();
    let frontends = plan(&service, &service.ports[0], true, &lists(&[HERE], &[]), true);
    let restricted: Vec<_> =
        frontends.iter().filter(|(_, plan)| plan.flags == SOURCE_RANGES).map(|(key, _)| *key).collect();
    assert_eq!(restricted, [at("192.0.2.9")], "though it is an external IP as well");
    assert_eq!(frontends.values().filter(|plan| plan.flags == 0).count(), 3);
}

#[test]
fn rule_58_a_service_may_ask_for_resets() {
    let builder = everywhere().annotation("shunt.dev/on-backend-removal", "reset");
    let frontends = plan_v4(builder, &lists(&[HERE], &[]));
    assert!(frontends.values().all(|plan| plan.flags == RESET_ON_REMOVAL));
}

#[test]
fn an_address_that_stands_twice_is_the_cluster_ip() {
    let builder = everywhere().external_ips(&["10.96.0.1", "192.0.2.9"]).external_policy("Local");
    let frontends = plan_v4(builder, &lists(&[HERE], &[HERE]));
    assert_eq!(frontends[&at("10.96.0.1")], CLUSTER);
    assert_eq!(frontends.len(), 3);
}
