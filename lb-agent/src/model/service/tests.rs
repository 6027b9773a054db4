// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is taken from a Service, what is left out, and what is said about it.

use lb_common::flow::protocol;

use super::*;
use crate::model::builders::service;

fn causes(service: &Service) -> Vec<&str> {
    service.problems.iter().map(|problem| problem.cause.as_str()).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_plain_service_has_no_problems() {
    let parsed = Service::parse(&service("web").tcp("http", 80).0, None).unwrap();
    let port = ServicePort { name: "http".into(), protocol: protocol::TCP, port: 80, node_port: None };
    let expected = Service {
        key: ServiceKey { namespace: "default".into(), name: "web".into() },
        uid: None,
        creation_secs: i64::MAX,
        service_type: ServiceType::ClusterIp,
        cluster_ips: ips(&["10.96.0.1"]),
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: SourceRanges::default(),
        ports: vec![port],
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        health_check_port: None,
        affinity_secs: None,
        resets_on_removal: false,
        passes_on_failover: false,
        split: None,
        problems: vec![],
        stopgaps: BTreeSet::new(),
    };
    assert_eq!(parsed, expected);
}

#[test]
fn rule_1_the_proxy_name_label_hides_with_any_value() {
    for value in ["", "other"] {
        assert_eq!(Service::parse(&service("web").label(PROXY_NAME_LABEL, value).0, None), None);
    }
}

#[test]
fn rule_3_external_name_is_skipped_even_with_an_address() {
    assert_eq!(Service::parse(&service("web").of_type("ExternalName").0, None), None);
}

#[test]
fn rule_3_no_cluster_ip_is_skipped() {
    for ip in ["", "None"] {
        assert_eq!(Service::parse(&service("web").cluster_ips(&[ip]).0, None), None);
    }
    assert_eq!(Service::parse(&service("web").cluster_ips(&[]).0, None), None);
}

#[test]
fn rule_10_one_number_is_a_port_of_each_protocol() {
    let parsed = Service::parse(&service("dns").tcp("dns-tcp", 53).udp("dns", 53).0, None).unwrap();
    assert_eq!(parsed.ports.len(), 2);
    assert!(parsed.problems.is_empty());
}

#[test]
fn rule_27_families_are_paired_with_addresses() {
    let dual = service("web").cluster_ips(&["10.96.0.1", "fd00::1"]);
    assert_eq!(Service::parse(&dual.0, None).unwrap().cluster_ips, ips(&["10.96.0.1", "fd00::1"]));

    let families = |families: &[&str]| {
        let families = families.iter().map(ToString::to_string).collect();
        Service::parse(&dual.clone().edit(|spec| spec.ip_families = Some(families)).0, None).unwrap()
    };
    assert_eq!(families(&["IPv4", "IPv6"]).cluster_ips, ips(&["10.96.0.1", "fd00::1"]));
    assert_eq!(families(&["IPv4"]).cluster_ips, ips(&["10.96.0.1"]));
    let swapped = families(&["IPv6", "IPv4"]);
    assert!(swapped.cluster_ips.is_empty());
    assert_eq!(causes(&swapped)[0], "spec.clusterIPs[0]: 10.96.0.1 is IPv4, but spec.ipFamilies says IPv6");
}

#[test]
fn rule_81_without_lists_the_one_cluster_ip_counts() {
    let parsed = Service::parse(&service("web").edit(|spec| spec.cluster_ips = None).0, None).unwrap();
    assert_eq!(parsed.cluster_ips, ips(&["10.96.0.1"]));
}

#[test]
fn an_impossible_cluster_ip_is_named() {
    for (given, cause) in [
        (&["10.96.0.300"] as &[_], "spec.clusterIPs[0]: \"10.96.0.300\" is not an IP address"),
        (&["0.0.0.0"], "spec.clusterIPs[0]: 0.0.0.0 is the unspecified address"),
        (&["10.96.0.1", "10.96.0.2"], "spec.clusterIPs[1]: 10.96.0.2 is a second address of IPv4"),
    ] {
        let parsed = Service::parse(&service("web").cluster_ips(given).0, None).unwrap();
        assert_eq!(causes(&parsed), [cause]);
        assert!(parsed.stopgaps.contains(&Field::ClusterIps));
    }
}

#[test]
fn impossible_ports_are_skipped_and_the_others_stay() {
    let many = service("web").tcp("zero", 0).tcp("big", 65_536).tcp("Bad", 80).port("x", 81, "QUIC").tcp("good", 82);
    let parsed = Service::parse(&many.0, None).unwrap();
    assert_eq!(parsed.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [82]);
    assert_eq!(
        causes(&parsed),
        [
            "port 0 is out of range, and is skipped",
            "port 65536 is out of range, and is skipped",
            "its port name \"Bad\" is not a DNS label",
            "port 81: protocol \"QUIC\" is unknown, and is skipped",
        ]
    );
    assert!(parsed.problems.iter().all(|problem| problem.subject == "Service default/web"));
}

#[test]
fn a_repeated_port_is_skipped() {
    let by_name = Service::parse(&service("web").tcp("a", 80).tcp("a", 81).0, None).unwrap();
    let by_number = Service::parse(&service("web").tcp("a", 80).tcp("b", 80).0, None).unwrap();
    for parsed in [by_name, by_number] {
        assert_eq!(parsed.ports.len(), 1);
        assert_eq!(parsed.problems.len(), 1);
    }
}

#[test]
fn a_name_too_long_leaves_no_ports() {
    let parsed = Service::parse(&service(&"x".repeat(64)).tcp("http", 80).0, None).unwrap();
    assert_eq!(parsed.ports, []);
    assert!(parsed.problems[0].cause.starts_with("its name \"xxx"));
}

#[test]
fn rule_34_node_port_0_is_none() {
    let parsed = Service::parse(&service("web").of_type("LoadBalancer").tcp("http", 80).node_port(0).0, None).unwrap();
    assert_eq!(parsed.ports[0].node_port, None);
    assert!(parsed.problems.is_empty());
}

#[test]
fn an_impossible_node_port_leaves_the_port() {
    let typed = |type_: &str| service("web").of_type(type_).tcp("a", 80);
    let cases = [
        (typed("NodePort").node_port(70_000), "nodePort 70000 is out of range, and is skipped"),
        (typed("NodePort").node_port(-1), "nodePort -1 is out of range, and is skipped"),
        (typed("ClusterIP").node_port(30_000), "nodePort 30000 is skipped: the Service is of type ClusterIP"),
    ];
    for (builder, cause) in cases {
        let parsed = Service::parse(&builder.0, None).unwrap();
        assert_eq!(parsed.ports[0].node_port, None);
        assert_eq!(causes(&parsed), [cause]);
    }
    let twice = typed("NodePort").node_port(30_000).tcp("b", 81).node_port(30_000).udp("c", 81).node_port(30_000);
    let parsed = Service::parse(&twice.0, None).unwrap();
    assert_eq!(parsed.ports.iter().map(|port| port.node_port).collect::<Vec<_>>(), [Some(30_000), None, Some(30_000)]);
    assert_eq!(parsed.problems.len(), 1);
}

#[test]
fn rule_32_invalid_external_ips_are_skipped() {
    let parsed = Service::parse(&service("web").external_ips(&["192.0.2.7", "example", "fd00::7"]).0, None).unwrap();
    assert_eq!(parsed.external_ips, ips(&["192.0.2.7", "fd00::7"]));
    assert_eq!(causes(&parsed), ["spec.externalIPs: \"example\" is not an IP address, and is skipped"]);
}

#[test]
fn rule_33_only_vip_mode_is_served() {
    let builder = service("web")
        .of_type("LoadBalancer")
        .ingress("192.0.2.1", None)
        .ingress("192.0.2.2", Some("VIP"))
        .ingress("192.0.2.3", Some("Proxy"))
        .ingress("", None);
    let parsed = Service::parse(&builder.0, None).unwrap();
    assert_eq!(parsed.load_balancer_ips, ips(&["192.0.2.1", "192.0.2.2"]));
    assert!(parsed.problems.is_empty());
}

#[test]
fn rule_35_a_range_that_can_not_be_read_is_named() {
    let builder = service("web").of_type("LoadBalancer").tcp("http", 80).ingress("192.0.2.1", None);
    let good = Service::parse(&builder.clone().source_ranges(&["198.51.100.0/24"]).0, None).unwrap();
    assert_eq!((good.load_balancer_ips, good.problems), (ips(&["192.0.2.1"]), vec![]));
    let bad = Service::parse(&builder.source_ranges(&["198.51.100.0"]).0, None).unwrap();
    let cause = "spec.loadBalancerSourceRanges: \"198.51.100.0\" is not a CIDR, and admits nobody";
    assert_eq!(causes(&bad), [cause]);
    assert!(bad.stopgaps.contains(&Field::SourceRanges));
}

#[test]
fn what_this_version_does_not_honour_is_said() {
    let parsed = Service::parse(&service("web").annotation("shunt.dev/new", "a=1").0, None).unwrap();
    assert!(parsed.stopgaps.is_empty());
    let [cause] = causes(&parsed)[..] else { panic!("{:?}", parsed.problems) };
    assert!(cause.starts_with("annotation shunt.dev/new"), "{cause}");
}

#[test]
fn rule_62_sctp_ports_are_like_others() {
    let parsed = Service::parse(&service("core").port("signal", 36_412, "SCTP").0, None).unwrap();
    let port = ServicePort { name: "signal".to_owned(), protocol: protocol::SCTP, port: 36_412, node_port: None };
    assert_eq!((parsed.ports, parsed.problems), (vec![port], vec![]));
}

#[test]
fn unknown_types_and_policies_are_named_and_taken_narrowly() {
    let builder = service("web").of_type("Nodeport").internal_policy("local").external_policy("Some");
    let parsed = Service::parse(&builder.0, None).unwrap();
    assert_eq!(parsed.service_type, ServiceType::ClusterIp);
    assert_eq!((parsed.internal_policy, parsed.external_policy), (Policy::Local, Policy::Local));
    assert_eq!(parsed.problems.len(), 3);
}
