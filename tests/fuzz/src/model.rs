// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reference model itself: whatever packets come, one after the other, it must not panic, must leave what is not ours
//! untouched, and must send out nothing with a wrong checksum that came in with right ones.
#![no_main]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use arbitrary::Arbitrary;
use lb_common::flow::{FlowState, protocol};
use libfuzzer_sys::fuzz_target;
use shunt_fuzz::reference::{
    Arrival, Backend, Door, Frontend, Interface, Model, Net, Now, Place, Route, Setup, Verdict, Version, is_sound,
};

/// The uplink.
const DEVICE: u32 = 10;
const NET: u32 = 50;
const CLIENT: [&str; 2] = ["203.0.113.7", "2001:db8:c::7"];
const SERVICE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const NET_SOURCE: [&str; 2] = ["169.254.96.1", "fd96:ffff::1"];
/// One on this node, and one elsewhere.
const BACKENDS: [[&str; 2]; 2] = [["10.1.0.11", "fd00:1::11"], ["10.2.0.21", "fd00:2::21"]];
const BACKEND_PORT: u16 = 8080;
const PROTOCOLS: [u8; 5] = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::ICMP, protocol::ICMPV6];

/// A packet: one that is right but for its checksums, changed here and there.
#[derive(Debug, Arbitrary)]
struct Draft {
    door: u8,
    kind: u8,
    ports: (bool, bool),
    payload: Vec<u8>,
    changes: Vec<(u8, u8)>,
    len: Option<u16>,
    wait: u8,
}

fuzz_target!(|drafts: Vec<Draft>| {
    let mut model = Model::new(setup());
    let mut now = 1000;
    for draft in drafts.iter().take(20) {
        now += u32::from(draft.wait / 8);
        let door = Door::ALL[usize::from(draft.door) % Door::ALL.len()];
        let frame = frame(draft);
        let ifindex = if door == Door::Net { NET } else { DEVICE };
        let arrival = Arrival { door, ifindex, arrived_by: 0, frame: frame.clone(), is_trace: draft.door >= 250 };
        let outcome = model.step(&arrival, Now { tick: now, jiffy: now << 8 });
        let is_changed = outcome.frame != frame;
        assert!(!is_changed || !is_sound(&frame) || is_sound(&outcome.frame), "{arrival:02x?}\n{outcome}");
        let is_nothing = outcome.moved.to_string().is_empty();
        assert!(!is_nothing || (!is_changed && outcome.verdict == Verdict::Pass) || arrival.is_trace);
    }
});

fn frame(draft: &Draft) -> Vec<u8> {
    let index = usize::from(draft.kind & 1);
    let protocol = PROTOCOLS[usize::from(draft.kind >> 1) % PROTOCOLS.len()];
    let backend = BACKENDS[usize::from(draft.kind >> 5 & 1)][index];
    let (src, dst) = if draft.kind & 0x40 == 0 { (CLIENT[index], SERVICE[index]) } else { (backend, CLIENT[index]) };
    let [src, dst] = [src, dst].map(octets);
    let ports = [if draft.ports.0 { 40_000 } else { BACKEND_PORT }, if draft.ports.1 { 80 } else { 40_000_u16 }];
    let mut body: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
    if protocol == protocol::UDP {
        body[4..6].copy_from_slice(&100_u16.to_be_bytes());
    }
    body.extend(&draft.payload[..draft.payload.len().min(400)]);
    let len = body.len() as u16;
    let mut frame = vec![2; 12];
    if index == 0 {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((20 + len).to_be_bytes());
        frame.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([protocol, 64]);
    }
    frame.extend([src, dst].concat());
    frame.extend(body);
    for &(at, value) in &draft.changes {
        if let Some(byte) = frame.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    if let Some(len) = draft.len {
        frame.truncate(usize::from(len).max(14));
    }
    frame
}

fn octets(address: &str) -> Vec<u8> {
    match parse(address) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn parse(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// A node with a Service of one backend here, and another of one elsewhere, behind the uplink.
fn setup() -> Setup {
    let mut backends = vec![Backend::free(0)];
    let mut frontends = BTreeMap::new();
    for index in 0..Version::BOTH.len() {
        for (number, backend) in BACKENDS.iter().enumerate() {
            let slot = backends.len() as u32;
            let address = Some((parse(backend[index]), BACKEND_PORT));
            let is_local = number == 0;
            backends.push(Backend { address, is_local, is_listed: [true; 2], service: slot, ..Backend::free(0) });
            let frontend = Frontend { service: slot, tables: [vec![slot], vec![slot]], ..Frontend::default() };
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                frontends
                    .insert((Place::Address(parse(SERVICE[index])), 80 + number as u16, protocol), frontend.clone());
            }
        }
    }
    let gateway = SocketAddr::from(([192, 0, 2, 2], 0)).ip();
    let route =
        |network: &str, gateway| Route { network: parse(network), prefix_len: 0, device: Some(DEVICE), gateway };
    let both = |addresses: [&str; 2]| Version::BOTH.into_iter().zip(addresses.map(parse)).collect::<BTreeMap<_, _>>();
    Setup {
        seed: [1, 2],
        second: 250,
        source_ports: [Some(50_000..=50_003), None],
        node: both(SERVICE),
        timeouts: [60; FlowState::COUNT],
        rejects_per_tick: 3,
        next_hop_generation: 1,
        mtu: 300,
        frontends,
        guarded: SERVICE.map(parse).into(),
        source_ranges: BTreeMap::new(),
        cluster_cidrs: BTreeMap::new(),
        masquerades_all: false,
        backends,
        node_port_addresses: [].into(),
        interfaces: [
            (DEVICE, Interface { addresses: both(SERVICE), takes_xdp: true, ..Interface::default() }),
            (NET, Interface { is_nets: true, ..Interface::default() }),
        ]
        .into(),
        net: Some(Net { ifindex: NET, sources: both(NET_SOURCE) }),
        passing: [].into(),
        ingress_filter: SERVICE.map(parse).into(),
        egress_filter: BACKENDS.iter().flatten().map(|address| (parse(address), BACKEND_PORT)).collect(),
        routes: vec![route("0.0.0.0", Some(gateway)), route("::", None)],
        neighbours: [((DEVICE, gateway), [2; 6])].into(),
        devices: [(DEVICE, [4; 6]), (NET, [6; 6])].into(),
        sockets: [].into(),
    }
}
