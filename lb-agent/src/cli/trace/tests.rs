// SPDX-License-Identifier: MIT OR Apache-2.0
//! Questions to the real programs (skipped without root or the object), and how answers read.

use std::{collections::BTreeMap, time::Instant};

use lb_common::{
    config::{Config, Interface, role},
    flow::protocol,
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::Reason,
};

use super::{Client, Output, Protocol, TraceAnswer, TraceArgs, device::Device, packet, trace};
use crate::{
    compile::ServiceKey,
    dataplane::{
        Answer, Census, Dataplane,
        tests::{Place, desired, ifindex, ip},
    },
    diff::{Dump, State},
};

fn arguments(place: &Place, from: &str, to: &str) -> TraceArgs {
    TraceArgs {
        from: Some(from.parse().unwrap()),
        socket: false,
        to: to.parse().unwrap(),
        proto: Protocol::Tcp,
        in_interface: Some("pod".into()),
        output: Output::Text,
        bpffs: place.options.bpffs.clone(),
    }
}

/// A pod interface `pod`, and the Service of [`desired`] with backend 10.0.0.1.
fn world(place: &Place) -> Dataplane {
    ip("link add pod type veth peer name eth0");
    ip("link set pod up");
    ip("addr add 10.0.0.254/24 dev pod");
    let mut dataplane = place.open();
    dataplane.set_config(&Config { seed: [1, 2], next_hop_generation: 1, ..dataplane.config() });
    let mut state = State::adopt(dataplane.maps().dump().unwrap(), &dataplane.capacities());
    let interface = Interface { role: role::POD, mac: [2, 0, 0, 0, 0, 9], ..Interface::default() };
    let operations = state.plan_interfaces(&BTreeMap::from([(ifindex("pod"), interface)]));
    assert!(state.carry_out_each(&operations, &mut dataplane).is_empty());
    let now = Instant::now();
    let plan = state.plan(&ServiceKey::new("default", "web"), 0, &desired(1), now);
    state.carry_out(plan, &mut dataplane, now).unwrap();
    dataplane
}

#[test]
fn the_live_program_says_where_a_packet_goes_and_leaves_no_mark() {
    let Some(place) = Place::new("trace") else { return };
    let dataplane = world(&place);
    let answer = trace(&arguments(&place, "10.0.0.9:1234", "10.96.0.1:80")).unwrap();
    assert_eq!(
        answer.to_string(),
        "packet      TCP 10.0.0.9:1234 -> 10.96.0.1:80, arriving by pod from inside\n\
         frontend    10.96.0.1:80/TCP of default/web:http\n\
         decision    a new flow: the backend was chosen from the lookup table\n\
         backend     10.0.0.1:8080 on this node, active (index 1)\n\
         translation 10.0.0.9:1234 -> 10.0.0.1:8080\n\
         verdict     translated, and handed to the network stack\n"
    );
    assert_eq!(dataplane.maps().census().unwrap(), Census::default());
    let counters = dataplane.maps().counters().unwrap();
    assert!(counters.services.values().all(|counters| *counters == Default::default()));
    assert!(counters.backends.values().all(|counters| *counters == Default::default()));
    assert!(counters.reasons.iter().all(|(_, count)| *count == 0));
    assert_eq!(dataplane.maps().trace.get(0).unwrap(), TraceRecord::default());
}

#[test]
fn a_packet_of_no_service_is_left_alone() {
    let Some(place) = Place::new("trace-other") else { return };
    let _dataplane = world(&place);
    let answer = trace(&arguments(&place, "10.0.0.9", "192.0.2.1:80")).unwrap();
    assert_eq!((answer.verdict, answer.decision, answer.reason), ("not-ours", "none", None));
    assert_eq!((answer.frontend, answer.backend, answer.translated), (None, None, None));
}

#[test]
fn the_interface_is_found_by_the_way_back() {
    let Some(place) = Place::new("trace-route") else { return };
    let _dataplane = world(&place);
    let arguments = TraceArgs { in_interface: None, ..arguments(&place, "10.0.0.9", "10.96.0.1:80") };
    assert_eq!(trace(&arguments).unwrap().in_interface, "pod");
}

#[test]
fn mistakes_are_named() {
    let Some(place) = Place::new("trace-mistakes") else { return };
    let error = |arguments: TraceArgs| format!("{:#}", trace(&arguments).unwrap_err());
    let text = error(arguments(&place, "10.0.0.9", "10.96.0.1:80"));
    assert!(text.contains("is this the --bpffs of an agent"), "{text}");
    let _dataplane = world(&place);
    let text = error(arguments(&place, "fd00::9", "10.96.0.1:80"));
    assert!(text.contains("different IP versions"), "{text}");
    let nowhere = TraceArgs { in_interface: Some("nowhere".into()), ..arguments(&place, "10.0.0.9", "10.96.0.1:80") };
    let text = error(nowhere);
    assert!(text.contains("--in-interface nowhere: no such device"), "{text}");
}

#[test]
fn a_client_may_come_without_a_port() {
    let client = |text: &str| text.parse::<Client>().map(|client| client.0.to_string());
    assert_eq!(client("10.0.0.1").unwrap(), "10.0.0.1:40000");
    assert_eq!(client("10.0.0.1:7").unwrap(), "10.0.0.1:7");
    assert_eq!(client("fd00::1").unwrap(), "[fd00::1]:40000");
    assert_eq!(client("[fd00::1]").unwrap(), "[fd00::1]:40000");
    assert_eq!(client("[fd00::1]:7").unwrap(), "[fd00::1]:7");
    assert!(client("web").is_err());
}

#[test]
fn a_refusal_says_why() {
    let (from, to) = ("10.0.0.9:1234".parse().unwrap(), "10.96.0.1:80".parse().unwrap());
    let device = Device { ifindex: 7, name: "eth0".into(), mac: [2; 6], role: role::UPLINK };
    let record = TraceRecord {
        step: trace_step::FRONTEND,
        verdict: trace_verdict::REJECTED,
        reason: Reason::NoEndpoints as u32,
        ..TraceRecord::default()
    };
    let question = packet::build(device.mac, from, to, protocol::TCP);
    let answer =
        TraceAnswer::new((from, to, protocol::TCP), &device, &Answer { record, packet: question }, &Dump::default());
    assert_eq!(
        answer.to_string(),
        "packet      TCP 10.0.0.9:1234 -> 10.96.0.1:80, arriving by eth0 from outside\n\
         frontend    none\n\
         decision    no backend may be used\n\
         backend     none\n\
         translation none\n\
         verdict     rejected with an ICMP error (no-endpoints)\n"
    );
}
