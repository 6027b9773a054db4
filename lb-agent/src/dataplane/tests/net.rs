// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net's programs on its device and on the loopback device.

use super::*;
use crate::dataplane::{Audit, sys};

const NET: Duty = Duty { role: role::NET, is_main: false };

/// The net's device, of a kind that every kernel has.
fn device() -> u32 {
    ip("link add shunt0 type veth peer name shunt0-peer");
    ifindex("shunt0")
}

#[test]
fn the_net_s_programs_outlive_the_agent_and_get_its_successor_s() {
    let Some(place) = Place::new("net") else { return };
    let device = device();
    let mut dataplane = place.open();
    // Before Linux 6.6 filters serve: see below.
    if !dataplane.attach(device, "shunt0", NET, VETH).unwrap().has_tc_links {
        return;
    }
    dataplane.attach(1, "lo", NET, "").unwrap();
    assert_eq!(dataplane.audit(), Audit::default());
    let links = Pins::new(&place.options.bpffs).links();
    let names = [Door::Net.pin_name(1), Door::Net.pin_name(device), Door::NetArrival.pin_name(device)];
    let mut expected = names.to_vec();
    expected.sort();
    assert_eq!(pins_in(&links), expected);
    let before = names.each_ref().map(|name| link(&links.join(name)));
    drop(dataplane);

    let mut dataplane = place.open();
    assert_eq!(dataplane.attached(), BTreeSet::from([1, device]));
    assert!(dataplane.take_over().is_empty());
    let after = names.each_ref().map(|name| link(&links.join(name)));
    assert!(
        before.iter().zip(after).all(|(before, after)| before.0 == after.0 && before.1 != after.1),
        "{before:?} {after:?}"
    );
    dataplane.detach(1);
    dataplane.detach(device);
    assert!(pins_in(&links).is_empty());
}

#[test]
fn a_program_of_the_net_that_others_have_taken_away_comes_back() {
    let Some(place) = Place::new("net-lost") else { return };
    let device = device();
    let mut dataplane = place.open();
    if !dataplane.attach(device, "shunt0", NET, VETH).unwrap().has_tc_links {
        return;
    }
    let pin = Pins::new(&place.options.bpffs).links().join(Door::Net.pin_name(device));
    sys::detach_link(sys::open_pin(&pin).unwrap().as_fd()).unwrap();
    let audit = dataplane.audit();
    assert_eq!(audit.failures, []);
    assert_eq!(audit.repairs.iter().map(|repair| &*repair.name).collect::<Vec<_>>(), ["the net's egress on shunt0"]);
    assert_eq!(dataplane.audit(), Audit::default());
}

/// Before Linux 6.6 there are no links.
#[test]
fn filters_serve_the_net_where_links_are_unknown() {
    let Some(place) = Place::new("net-filters") else { return };
    let device = device();
    let mut dataplane = place.open();
    let pins = Pins::new(&place.options.bpffs);
    for (name, index) in [("shunt0", device), ("lo", 1)] {
        super::super::filters::attach(&mut dataplane.ebpf, &pins, name, index).unwrap();
    }
    drop(dataplane);
    let mut dataplane = place.open();
    assert_eq!(dataplane.attached(), BTreeSet::from([1, device]));
    assert!(!dataplane.attach(device, "shunt0", NET, VETH).unwrap().has_tc_links);
    assert!(dataplane.take_over().is_empty());
    assert_eq!(dataplane.audit(), Audit::default());
    let tc = |arguments: &str| {
        let status = Command::new("tc").args(arguments.split_whitespace()).status().unwrap();
        assert!(status.success());
    };
    tc("qdisc del dev shunt0 clsact");
    tc("filter del dev lo egress");
    let mut lost: Vec<_> = dataplane.audit().repairs.into_iter().map(|repair| repair.name).collect();
    lost.sort();
    assert_eq!(lost, ["shunt_net on lo", "shunt_net on shunt0", "shunt_net_arrival on shunt0"]);
    dataplane.detach(1);
    dataplane.detach(device);
    for name in ["shunt0", "lo"] {
        assert!(super::super::filters::detach(name).is_empty(), "nothing is left on {name}");
    }
}
