// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is taken from a slice, and how slices become the endpoints of one Service port.

use lb_common::flow::protocol::{TCP, UDP};
use proptest::prelude::*;

use super::*;
use crate::model::builders::{SliceBuilder, endpoint, slice};

fn parse(builder: SliceBuilder) -> Slice {
    Slice::parse(&builder.0, None).unwrap()
}

fn merged(slices: &[Slice], port_name: &str, protocol: u8) -> Vec<String> {
    merge(slices.iter(), port_name, protocol, true).keys().map(|(ip, port)| format!("{ip}:{port}")).collect()
}

#[test]
fn rule_2_the_headless_label_hides_with_any_value() {
    assert_eq!(Slice::parse(&slice("web-1", "web").label(HEADLESS_LABEL, "").0, None), None);
}

#[test]
fn rule_4_slices_of_names_or_of_no_service_are_skipped() {
    assert_eq!(Slice::parse(&slice("web-1", "web").address_type("FQDN").0, None), None);
    assert_eq!(Slice::parse(&slice("web-1", "").0, None), None);
    let mut unlabelled = slice("web-1", "web");
    unlabelled.0.metadata.labels = None;
    assert_eq!(Slice::parse(&unlabelled.0, None), None);
    let unknown = parse(slice("web-1", "web").address_type("IPV4").with(endpoint("10.0.0.1")));
    assert_eq!((unknown.endpoints.len(), unknown.stopgaps.len()), (0, 1), "not ours, but a mistake");
}

#[test]
fn rule_11_ports_are_found_by_name_and_protocol_whatever_their_number() {
    let slices = [
        parse(slice("a", "web").tcp("http", 8080).udp("http", 9).with(endpoint("10.0.0.1"))),
        parse(slice("b", "web").tcp("http", 8081).tcp("https", 8443).with(endpoint("10.0.0.2"))),
    ];
    assert_eq!(merged(&slices, "http", TCP), ["10.0.0.1:8080", "10.0.0.2:8081"]);
    assert_eq!(merged(&slices, "http", UDP), ["10.0.0.1:9"]);
    assert_eq!(merged(&slices, "https", TCP), ["10.0.0.2:8443"]);
    assert!(merged(&slices, "", TCP).is_empty());
}

#[test]
fn rule_11_ports_without_a_name_or_number_are_ignored() {
    let builder = slice("a", "web")
        .port(None, Some(80), None)
        .port(Some("zero"), Some(0), None)
        .port(Some("none"), None, None)
        .port(Some(""), Some(80), None);
    let parsed = parse(builder);
    assert_eq!(parsed.ports, [SlicePort { name: String::new(), protocol: TCP, port: 80 }]);
    assert!(parsed.problems.is_empty());
}

#[test]
fn rule_12_only_the_first_address_counts() {
    let mut two = endpoint("10.0.0.1");
    two.0.addresses.push("10.0.0.2".into());
    let mut none = endpoint("");
    none.0.addresses.clear();
    let parsed = parse(slice("a", "web").with(two).with(none));
    assert_eq!(parsed.endpoints.len(), 1);
    assert_eq!(parsed.endpoints[0].address, IpAddr::from([10, 0, 0, 1]));
    assert!(parsed.problems.is_empty());
}

#[test]
fn impossible_endpoints_are_skipped_and_the_others_stay() {
    let builder = slice("a", "web")
        .with(endpoint("10.0.0.256"))
        .with(endpoint("127.0.0.1"))
        .with(endpoint("fd00::1"))
        .with(endpoint("10.0.0.1"))
        .tcp("http", 70_000);
    let parsed = parse(builder);
    assert_eq!(parsed.endpoints.len(), 1);
    let causes: Vec<_> = parsed.problems.iter().map(|problem| problem.cause.as_str()).collect();
    assert_eq!(
        causes,
        [
            "port 70000 is out of range, and is skipped",
            "endpoint: \"10.0.0.256\" is not an IP address, and is skipped",
            "endpoint: 127.0.0.1 is a loopback address, and is skipped",
            "endpoint fd00::1 is not of the slice's addressType IPv4, and is skipped",
        ]
    );
    assert_eq!(parsed.problems[0].subject, "EndpointSlice default/a");
}

#[test]
fn rule_13_absent_conditions_mean_ready_serving_and_not_terminating() {
    let conditions = |builder| {
        let parsed = parse(slice("a", "web").with(builder));
        (parsed.endpoints[0].ready, parsed.endpoints[0].serving, parsed.endpoints[0].terminating)
    };
    assert_eq!(conditions(endpoint("10.0.0.1")), (true, true, false));
    let mut empty = endpoint("10.0.0.1");
    empty.0.conditions = Some(Default::default());
    assert_eq!(conditions(empty), (true, true, false));
    assert_eq!(conditions(endpoint("10.0.0.1").terminating()), (false, true, true));
}

#[test]
fn rule_15_a_duplicate_that_is_not_terminating_wins() {
    let going = parse(slice("a", "web").tcp("", 80).with(endpoint("10.0.0.1").conditions(true, true, true)));
    let unready = parse(slice("b", "web").tcp("", 80).with(endpoint("10.0.0.1").unready()));
    let ready = parse(slice("c", "web").tcp("", 80).with(endpoint("10.0.0.1")));
    let winner = |slices: &[&Slice]| {
        let merged = merge(slices.iter().copied(), "", TCP, true);
        assert_eq!(merged.len(), 1);
        let one = merged.values().next().unwrap();
        (one.ready, one.terminating)
    };
    assert_eq!(winner(&[&going, &unready]), (false, false));
    assert_eq!(winner(&[&unready, &going]), (false, false));
    assert_eq!(winner(&[&going, &unready, &ready]), (true, false));
    assert_eq!(winner(&[&ready, &unready, &going]), (true, false));
}

#[test]
fn rule_80_families_do_not_mix() {
    let slices = [
        parse(slice("a", "web").tcp("", 80).with(endpoint("10.0.0.1"))),
        parse(slice("b", "web").address_type("IPv6").tcp("", 80).with(endpoint("fd00::1"))),
    ];
    assert_eq!(merged(&slices, "", TCP), ["10.0.0.1:80"]);
    assert_eq!(merge(slices.iter(), "", TCP, false).len(), 1);
}

proptest! {
    /// However endpoints are spread over slices, all of them are there, each once.
    #[test]
    fn rule_15_merging_is_a_union(places in prop::collection::vec((0_u8..4, any::<u8>()), 0..40)) {
        let mut builders = ["a", "b", "c", "d"].map(|name| slice(name, "web").tcp("", 80));
        for (which, last) in &places {
            let builder = &mut builders[usize::from(*which)];
            *builder = builder.clone().with(endpoint(&format!("10.0.0.{last}")));
        }
        let slices = builders.map(parse);
        let expected: std::collections::BTreeSet<_> = places.iter().map(|(_, last)| *last).collect();
        prop_assert_eq!(merged(&slices, "", TCP).len(), expected.len());
    }
}
