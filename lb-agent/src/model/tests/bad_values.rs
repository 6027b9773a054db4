// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bad value holds only itself: its last good value stays, and everything else of the object is followed.

use super::*;

/// What is wrong with a Service: what is bad, and whether a last good value stands in for it.
fn faults(model: &Model) -> Vec<(String, bool)> {
    let problems = model.compile(&key("web")).1.into_iter();
    problems.map(|problem| (problem.cause, problem.remedy.ends_with("the last good value stays in force"))).collect()
}

fn frontends(model: &Model) -> Vec<String> {
    let units = model.compile(&key("web")).0;
    let keys = units.values().flat_map(|unit| unit.frontends.keys());
    keys.map(|key| crate::diff::FrontendText(key).to_string()).filter(|text| !text.starts_with("all of")).collect()
}

/// `web` as it is, and then with one bad value and a second port, which must be followed whatever the first is.
fn with_a_second_port(before: ServiceBuilder, bad: ServiceBuilder) -> Model {
    let mut model = model([before.tcp("http", 80).applied(), web_slice("web-1", "10.0.0.1")]);
    model.handle(bad.tcp("http", 80).tcp("more", 81).applied());
    assert!(frontends(&model).contains(&"10.96.0.1:81/TCP".to_owned()), "{:?}", faults(&model));
    model
}

#[test]
fn a_bad_annotation_holds_nothing_but_itself() {
    let removal = |value| service("web").annotation("shunt.dev/on-backend-removal", value);
    let model = with_a_second_port(removal("reset"), removal("Reset"));
    let units = model.compile(&key("web")).0;
    let mut flags = units.values().flat_map(|unit| unit.frontends.values()).map(|plan| plan.flags);
    assert!(flags.any(|flags| flags & lb_common::frontend::frontend_flags::RESET_ON_REMOVAL != 0));
    let cause = "annotation shunt.dev/on-backend-removal: \"Reset\" is unknown";
    assert_eq!(faults(&model), [(cause.to_owned(), true)]);

    let split = |value| service("web").annotation("shunt.dev/split", value);
    let model = with_a_second_port(split("v1=1,v2=1"), split("v1"));
    assert!(faults(&model).contains(&("annotation shunt.dev/split: \"v1\" is no name=weight".to_owned(), true)));
    assert_eq!(backends(&model, "web"), 0, "the split's Services are not there");
}

#[test]
fn a_bad_policy_or_affinity_holds_nothing_but_itself() {
    let unit = |model: &Model| model.compile(&key("web")).0.into_values().next().unwrap();
    let affinity = |secs| service("web").affinity(Some(secs));
    assert_eq!(unit(&with_a_second_port(affinity(10), affinity(0))).affinity_secs, 10);
    let policy = |value| service("web").internal_policy(value);
    let model = with_a_second_port(policy("Cluster"), policy("local"));
    assert_eq!(unit(&model).cluster.len(), 1, "{:?}", faults(&model));
}

/// minikube 23061, 14525: a value of the status is no edit of the owner's (rule 90).
#[test]
fn pitfall_29_a_status_address_that_can_not_be_served_is_skipped_alone() {
    let balanced = || service("web").of_type("LoadBalancer");
    let model = with_a_second_port(balanced(), balanced().ingress("127.0.0.1", None).ingress("192.0.2.9", None));
    assert!(frontends(&model).contains(&"192.0.2.9:80/TCP".to_owned()), "{:?}", frontends(&model));
    let cause = "status.loadBalancer.ingress: 127.0.0.1 is a loopback address, and is skipped";
    assert_eq!(faults(&model), [(cause.to_owned(), false)]);
}

#[test]
fn rule_32_an_external_ip_that_can_not_be_served_is_skipped_alone() {
    let model = with_a_second_port(service("web"), service("web").external_ips(&["example", "192.0.2.7"]));
    assert!(frontends(&model).contains(&"192.0.2.7:80/TCP".to_owned()), "{:?}", frontends(&model));
}

#[test]
fn rule_35_ranges_that_can_not_be_read_open_nothing_that_they_should_close() {
    let ranges =
        |ranges: &[&str]| service("web").of_type("LoadBalancer").ingress("192.0.2.9", None).source_ranges(ranges);
    let admitted = |model: &Model| -> Vec<String> {
        let units = model.compile(&key("web")).0;
        units.into_values().next().unwrap().source_ranges.iter().map(ToString::to_string).collect()
    };
    let model = with_a_second_port(ranges(&["198.51.100.0/24"]), ranges(&["203.0.113.0/240"]));
    assert_eq!(admitted(&model), ["198.51.100.0/24"]);
    let model = with_a_second_port(ranges(&[]), ranges(&["198.51.100.0/24", "203.0.113.0/240"]));
    assert_eq!(admitted(&model), ["198.51.100.0/24"], "everybody is no last good value of who wants to shut out");
}

/// Deleted and made again while nobody watched, with a typo: the old one's values are not its own.
#[test]
fn a_service_made_again_is_told_from_the_earlier_one_by_its_uid() {
    let with_uid = |mut builder: ServiceBuilder, uid: &str| {
        builder.0.metadata.uid = Some(uid.into());
        builder
    };
    let first = || with_uid(service("web").annotation("shunt.dev/on-backend-removal", "reset").affinity(Some(10)), "a");
    let bad = || service("web").annotation("shunt.dev/on-backend-removal", "Reset").affinity(Some(0));
    for (second, affinity_secs, is_held) in [(with_uid(bad(), "a"), 10, true), (with_uid(bad(), "b"), 10_800, false)] {
        let model = with_a_second_port(first(), second);
        assert_eq!(model.compile(&key("web")).0.into_values().next().unwrap().affinity_secs, affinity_secs);
        assert!(faults(&model).iter().all(|(_, held)| *held == is_held), "{:?}", faults(&model));
    }
}

#[test]
fn a_split_in_force_is_not_that_of_a_service_made_again() {
    let with = |uid: &str, split: &str| {
        let mut web = web().annotation("shunt.dev/split", split);
        web.0.metadata.uid = Some(uid.into());
        web.applied()
    };
    let part = |name: &str| service(name).cluster_ips(&["10.96.0.7"]).tcp("http", 80).applied();
    let endpoints =
        |name: &str, ip: &str| slice(&format!("{name}-1"), name).tcp("http", 8080).with(endpoint(ip)).applied();
    let parts = [part("v1"), endpoints("v1", "10.0.0.1"), part("v2"), endpoints("v2", "10.0.0.2")];
    let mut model = model(parts);
    model.handle(with("a", "v1=1"));
    model.handle(with("a", "v2=1,v3=1"));
    let served = |model: &Model| {
        let unit = model.compile(&key("web")).0.into_values().next().unwrap();
        unit.cluster.keys().map(|key| key.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(served(&model), ["10.0.0.1"], "the last good split");
    model.handle(with("b", "v2=1,v3=1"));
    assert_eq!(served(&model), ["10.0.0.2"]);
}

/// minikube 14525's kind: an endpoint that no packet can be sent to.
#[test]
fn pitfall_29_an_endpoint_that_can_not_be_served_is_skipped_alone() {
    let mut model = model([web().applied(), web_slice("web-1", "10.0.0.1")]);
    let next = slice("web-1", "web").tcp("http", 8080).with(endpoint("239.1.1.1")).with(endpoint("10.0.0.2"));
    model.handle(next.with(endpoint("10.0.0.3")).applied());
    assert_eq!(backends(&model, "web"), 2);
    assert_eq!(faults(&model), [("endpoint: 239.1.1.1 is a multicast address, and is skipped".to_owned(), false)]);
}

#[test]
fn a_bad_port_or_family_of_a_slice_stays_as_it_was_and_its_endpoints_are_followed() {
    let two = |slice: SliceBuilder| slice.with(endpoint("10.0.0.2")).with(endpoint("10.0.0.3"));
    let bad_port = two(slice("web-1", "web").tcp("http", 70_000));
    let bad_family = two(slice("web-1", "web").tcp("http", 8080).address_type("IPV4"));
    for (bad, cause) in [(bad_port, "port 70000 is out of range"), (bad_family, "addressType \"IPV4\" is unknown")] {
        let mut model = model([web().applied(), web_slice("web-1", "10.0.0.1")]);
        assert_eq!(dirtied(&mut model, bad.applied()), keys(&["web"]));
        assert_eq!((backends(&model, "web"), faults(&model)), (2, vec![(cause.to_owned(), true)]));
        model.handle(web_slice("web-1", "10.0.0.2"));
        assert_eq!(faults(&model), []);
    }
}
