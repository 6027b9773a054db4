// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filters on the kernel of this machine, whether or not it has links in their place: on those before 6.6 they serve.

use std::{collections::BTreeSet, fs, process::Command};

use lb_common::{config::role, maps::LAYOUT_VERSION};

use super::{attach, detach};
use crate::{
    dataplane::{
        Dataplane, Feature, Lacks, Pins,
        tests::{Place, ifindex, ip},
    },
    node::roles::Duty,
};

const DEVICE: &str = "uplink";

/// Ids of the programs of our filters on the device, one per hook.
fn programs() -> Vec<u32> {
    let ids = ["ingress", "egress"].map(|hook| {
        let output = Command::new("tc").args(["filter", "show", "dev", DEVICE, hook]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let ours = text.lines().filter(|line| line.contains("handle 0x5348 "));
        let ids = ours.map(|line| line.split_once(" id ").unwrap().1.split(' ').next().unwrap().parse().unwrap());
        ids.collect::<Vec<u32>>()
    });
    ids.concat()
}

/// Puts filters on the device, also where the kernel has links.
fn put(dataplane: &mut Dataplane, place: &Place) -> u32 {
    let device = ifindex(DEVICE);
    attach(&mut dataplane.ebpf, &Pins::new(&place.options.bpffs), DEVICE, device).unwrap();
    device
}

/// A place with the device.
fn place(test: &str) -> Option<Place> {
    let place = Place::new(test)?;
    ip("link add uplink type veth peer name pod");
    Some(place)
}

#[test]
fn filters_serve_where_the_kernel_has_no_links() {
    let Some(place) = place("serve") else { return };
    let mut dataplane = place.open();
    let attachment =
        dataplane.attach(ifindex(DEVICE), DEVICE, Duty { role: role::POD, is_main: false }, "veth").unwrap();
    let has_links = Lacks::find().iter().all(|lack| lack != Feature::TcLinks);
    assert_eq!(attachment.has_tc_links, has_links);
    assert_eq!(programs().len(), if has_links { 0 } else { 2 });
    dataplane.detach(ifindex(DEVICE));
    assert!(programs().is_empty());
}

#[test]
fn a_successor_adopts_filters_and_replaces_them_in_place() {
    let Some(place) = place("successor") else { return };
    let device = put(&mut place.open(), &place);
    let root = place.options.bpffs.clone();
    let ours = format!("v{LAYOUT_VERSION}");
    for layout in ["v0", &ours] {
        if layout != ours {
            fs::rename(root.join(&ours), root.join(layout)).unwrap();
        }
        let before = programs();
        assert_eq!(before.len(), 2);
        let mut dataplane = place.open();
        assert_eq!(dataplane.attached(), BTreeSet::from([device]));
        assert!(
            !dataplane.attach(device, DEVICE, Duty { role: role::POD, is_main: false }, "veth").unwrap().has_tc_links
        );
        assert_eq!(programs(), before, "they run on as they are");

        assert!(dataplane.take_over().is_empty());
        let after = programs();
        assert!(after.len() == 2 && after.iter().all(|program| !before.contains(program)), "{before:?} {after:?}");
        assert_eq!(dataplane.attached(), BTreeSet::from([device]));
        assert_eq!(super::marked(&Pins::new(&root).links()), [device], "the mark is of this layout");
        assert!(!root.join("v0").exists());
    }
}

#[test]
fn a_device_that_comes_back_under_its_old_index_gets_filters_again() {
    let Some(place) = place("back") else { return };
    let device = put(&mut place.open(), &place);
    let mut dataplane = place.open();
    dataplane.take_over();
    ip("link del uplink");
    ip(&format!("link add uplink index {device} type veth peer name pod"));
    assert!(programs().is_empty());
    dataplane.attach(device, DEVICE, Duty { role: role::POD, is_main: false }, "veth").unwrap();
    assert_eq!(programs().len(), 2);
}

#[test]
fn filters_of_a_device_that_has_gone_are_forgotten() {
    let Some(place) = place("gone") else { return };
    put(&mut place.open(), &place);
    ip("link del uplink");
    assert_eq!(place.open().attached(), BTreeSet::new());
    assert!(super::marked(&Pins::new(&place.options.bpffs).links()).is_empty());
}

#[test]
fn cleanup_finds_filters_even_without_their_mark() {
    let Some(place) = place("traces") else { return };
    let device = put(&mut place.open(), &place);
    let root = &place.options.bpffs;
    let filters = |dry_run| {
        let mut items = Vec::new();
        crate::dataplane::remove_all(root, dry_run, &mut |item| items.push(item.to_string())).unwrap();
        items.into_iter().filter(|item| item == "TC filters on uplink").count()
    };
    assert_eq!((filters(true), programs().len()), (1, 2), "announced, not removed");
    super::unmark(&Pins::new(root), device).unwrap();
    assert_eq!(filters(false), 1);
    assert!(programs().is_empty() && detach(DEVICE).is_empty() && !root.exists());
}
