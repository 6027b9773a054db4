// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers about the fake's maps.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use lb_common::{
    counters::{BackendCounters, ServiceCounters},
    flow::{Evicted, FlowState, flow_flags, protocol},
    frontend::FrontendKey,
};

use super::{
    Output, print,
    rows::{self, FlowRow},
    table::Widths,
    write_json,
};
use crate::{
    compile::{BackendKey, BackendSpec, FrontendPlan, List, ServiceKey, Unit, UnitId},
    dataplane::{Census, Counters, FlowEntry, OpenFlows, fake::Fake},
    diff::{Capacities, Dump, State},
};

fn backend(last: u8) -> BackendKey {
    BackendKey { address: Ipv4Addr::new(10, 0, 0, last).into(), port: 8080 }
}

/// A Service with two backends, one here, which is the only one for outside clients of its node port.
fn dump() -> Dump {
    let id = UnitId {
        namespace: "default".into(),
        name: "web".into(),
        port_name: "http".into(),
        protocol: protocol::TCP,
        is_v4: true,
    };
    let cluster = FrontendPlan { internal: List::Cluster, external: List::Cluster, flags: 0 };
    let cluster_ip = FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80_u16.to_be(), protocol::TCP);
    let node_port = FrontendKey::node_port(true, 30080_u16.to_be(), protocol::TCP);
    let unit = Unit {
        backends: BTreeMap::from([
            (backend(1), BackendSpec { active: true, local: true }),
            (backend(2), BackendSpec { active: true, local: false }),
            (backend(3), BackendSpec { active: false, local: false }),
        ]),
        cluster: BTreeMap::from([(backend(1), 1), (backend(2), 1)]),
        local: BTreeMap::from([(backend(1), 1)]),
        frontends: BTreeMap::from([
            (cluster_ip, cluster),
            (node_port, FrontendPlan { external: List::Local, ..cluster }),
            (FrontendKey::any_port(cluster_ip.address), FrontendPlan::REFUSED),
        ]),
        ..Unit::default()
    };
    let mut fake = Fake::new(Capacities::default());
    let (mut state, now) = (State::adopt(fake.dump(), &Capacities::default()), Instant::now());
    let plan = state.plan(&ServiceKey::new("default", "web"), 0, &BTreeMap::from([(id, unit)]), now);
    state.carry_out(plan, &mut fake, now).unwrap();
    fake.dump()
}

fn counters() -> Counters {
    Counters {
        reasons: Vec::new(),
        services: BTreeMap::from([(1, ServiceCounters { flows: 7, rejected: 2, dropped: 1 })]),
        backends: BTreeMap::from([(1, BackendCounters { packets: [40, 30], bytes: [4000, 300_000], flows: 4 })]),
        evictions: Evicted::ALL.map(|kind| (kind, 0)).to_vec(),
    }
}

fn flow(last: u8, generation: u32, flags: u8) -> FlowEntry {
    let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
    FlowEntry {
        protocol: protocol::TCP,
        arrives: [socket("10.0.0.9:4000"), socket("10.96.0.1:80")],
        leaves: [socket("10.0.0.9:4000"), SocketAddr::new(backend(last).address.into(), 8080)],
        backend: u32::from(last),
        generation,
        state: FlowState::ESTABLISHED,
        flags,
        idle_ticks: 60,
    }
}

#[test]
fn services_as_a_table() {
    assert_eq!(
        print(&rows::services(&dump(), &counters()), Output::Table).unwrap(),
        "NAMESPACE  NAME  PORT  PROTOCOL  FRONTENDS                BACKENDS  FLOWS  REJECTED  DROPPED\n\
         default    web   http  TCP/IPv4  node:30080,10.96.0.1:80  2         7      2         1"
    );
}

#[test]
fn backends_as_a_wide_table() {
    let open = OpenFlows { active: 2, inactive: 1 };
    let census = Census { backends: HashMap::from([(1, open)]), ..Census::default() };
    assert_eq!(
        print(&rows::backends(&dump(), &counters(), &census), Output::Wide).unwrap(),
        "NAMESPACE  NAME  PORT  PROTOCOL  BACKEND        STATE     LOCAL  ACTIVE  INACTIVE  FLOWS  PACKETS  REPLIES  BYTES   REPLY-BYTES  INDEX  GENERATION\n\
         default    web   http  TCP/IPv4  10.0.0.1:8080  active    yes    2       1         4      40       30       4000 B  292 KiB      1      0\n\
         default    web   http  TCP/IPv4  10.0.0.2:8080  active    no     0       0         0      0        0        0 B     0 B          2      0\n\
         default    web   http  TCP/IPv4  10.0.0.3:8080  draining  no     0       0         0      0        0        0 B     0 B          3      0"
    );
}

#[test]
fn services_as_json_keep_their_field_names() {
    let json: serde_json::Value =
        serde_json::from_str(&print(&rows::services(&dump(), &counters()), Output::Json).unwrap()).unwrap();
    let expected = serde_json::json!([{
        "namespace": "default", "name": "web", "port": "http", "protocol": "TCP", "ip_version": 4,
        "frontends": [
            {"address": null, "port": 30080, "internal_backends": 2, "external_backends": 1},
            {"address": "10.96.0.1", "port": 80, "internal_backends": 2, "external_backends": 2},
        ],
        "backends": 2, "draining_backends": 1, "flows": 7, "rejected_packets": 2, "dropped_packets": 1,
        "packets": 70, "bytes": 304_000, "index": 1,
    }]);
    assert_eq!(json, expected);
}

#[test]
fn a_table_that_is_shared_is_one_row() {
    assert_eq!(
        print(&rows::maglev(&dump()), Output::Table).unwrap(),
        "NAMESPACE  NAME  PORT  PROTOCOL  CLIENTS   SLOTS  SHARES\n\
         default    web   http  TCP/IPv4  both      401    10.0.0.1:8080=50.12%,10.0.0.2:8080=49.88%\n\
         default    web   http  TCP/IPv4  external  401    10.0.0.1:8080=100%"
    );
}

#[test]
fn a_flow_whose_backend_has_gone_is_stale() {
    let dump = dump();
    let rows = rows::FlowRows::new(&dump);
    assert!(!rows.row(&flow(1, 0, flow_flags::NET | flow_flags::SNAT)).source_translated, "forwarded from the net");
    let rows = [flow(1, 0, 0), flow(2, 7, flow_flags::REPLY | flow_flags::SNAT)].map(|flow| rows.row(&flow));
    assert_eq!((rows[0].direction, rows[0].stale, rows[0].idle_secs), ("original", false, 61));
    assert_eq!(rows[0].service.as_ref().unwrap().name, "web");
    assert_eq!((rows[1].direction, rows[1].stale, rows[1].source_translated), ("reply", true, true));
    assert_eq!(rows[1].service, None);
}

/// Written row by row, for there may be a million.
#[test]
fn flows_that_are_streamed_read_as_a_whole_table_would() {
    let dump = dump();
    let rows = rows::FlowRows::new(&dump);
    let rows = [flow(1, 0, 0), flow(2, 7, flow_flags::REPLY | flow_flags::SNAT)].map(|flow| rows.row(&flow));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    for count in 0..=2 {
        let rows = &rows[..count];
        for (output, is_wide) in [(Output::Table, false), (Output::Wide, true)] {
            let mut widths = Widths::new::<FlowRow>(is_wide);
            rows.iter().for_each(|row| widths.add(row));
            let mut out = Vec::new();
            widths.write(rows.iter().cloned(), &mut out).unwrap();
            assert_eq!(text(out), print(rows, output).unwrap() + "\n");
        }
        let mut out = Vec::new();
        write_json(rows.iter(), &mut out).unwrap();
        assert_eq!(text(out), print(rows, Output::Json).unwrap() + "\n");
    }
}

#[test]
fn nothing_is_said_so() {
    assert_eq!(print(&rows::services(&Dump::default(), &Counters::default()), Output::Table).unwrap(), "none");
    assert_eq!(print(&rows::services(&Dump::default(), &Counters::default()), Output::Json).unwrap(), "[]");
}
