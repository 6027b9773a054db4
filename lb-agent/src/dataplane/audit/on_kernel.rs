// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real thing on the kernel of this machine: whatever is taken away comes back with the next look.

use std::{fs, net::Ipv4Addr, os::fd::AsFd as _, path::Path, process::Command, sync::atomic::Ordering};

use lb_common::{
    address::Address,
    config::{Config, PortRange, role},
    maps::{CONFIG, FRONTENDS, PINNED},
};
use nix::mount::{MntFlags, umount2};

use crate::{
    dataplane::{
        Audit, Dataplane, Door, Part, PinError, Pins, XdpMode, filters, sys,
        tests::{Place, ifindex, ip},
    },
    node::{roles::Duty, state::VETH},
};

fn parts(audit: &Audit) -> Vec<Part> {
    assert_eq!(audit.failures, []);
    let mut parts: Vec<_> = audit.repairs.iter().map(|repair| repair.part).collect();
    parts.sort();
    parts.dedup();
    parts
}

/// An agent with all its programs on a device.
fn attached(place: &mut Place) -> (Dataplane, u32) {
    place.options.xdp = XdpMode::Generic;
    ip("link add uplink type veth peer name pod");
    let uplink = ifindex("uplink");
    let mut dataplane = place.open();
    dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    assert_eq!(dataplane.audit(), Audit::default(), "all has just been made");
    (dataplane, uplink)
}

const DOORS: [Door; 3] = [Door::TcIngress, Door::TcEgress, Door::XdpGeneric];

/// The kernel's numbers of the links that are pinned.
fn links(pins: &Pins, device: u32) -> [u32; 3] {
    DOORS.map(|door| sys::link_id(sys::open_pin(&pins.links().join(door.pin_name(device))).unwrap().as_fd()).unwrap())
}

#[test]
fn pins_that_were_removed_come_back_and_the_links_were_never_gone() {
    let Some(mut place) = Place::new("rm-pins") else { return };
    let (mut dataplane, uplink) = attached(&mut place);
    let pins = Pins::new(&place.options.bpffs);
    let before = links(&pins, uplink);
    fs::remove_dir_all(pins.layout()).unwrap();
    assert_eq!(parts(&dataplane.audit()), [Part::Directory, Part::Pin]);
    assert_eq!(links(&pins, uplink), before);
    assert!(PINNED.iter().all(|name| pins.map(name).exists()));
    assert_eq!(dataplane.audit(), Audit::default());

    fs::remove_file(pins.map(FRONTENDS)).unwrap();
    fs::rename(pins.map(CONFIG), pins.map(FRONTENDS)).unwrap();
    assert_eq!(parts(&dataplane.audit()), [Part::Pin], "a map of another name is none");
    drop(dataplane);
    assert_eq!(place.open().attached().into_iter().collect::<Vec<_>>(), [uplink]);
}

#[test]
fn a_bpffs_that_was_unmounted_is_mounted_again_with_all_pins_and_the_lock() {
    let Some(mut place) = Place::new("umount") else { return };
    let parent = tempfile::tempdir().unwrap();
    let former = std::mem::replace(&mut place.options.bpffs, parent.path().join("pins"));
    let (mut dataplane, uplink) = attached(&mut place);
    let root = place.options.bpffs.clone();
    let pins = Pins::new(&root);
    let before = links(&pins, uplink);
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(parts(&dataplane.audit()), [Part::Directory, Part::Pin]);
    assert_eq!(links(&pins, uplink), before);
    let second = Dataplane::open(&place.options).err().unwrap().to_string();
    assert!(second.contains("another agent"), "{second}");
    drop(dataplane);
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    place.options.bpffs = former;
}

#[test]
fn links_that_were_detached_are_made_again() {
    let Some(mut place) = Place::new("detach") else { return };
    let (mut dataplane, uplink) = attached(&mut place);
    let pins = Pins::new(&place.options.bpffs);
    let before = links(&pins, uplink);
    for door in DOORS {
        sys::detach_link(sys::open_pin(&pins.links().join(door.pin_name(uplink))).unwrap().as_fd()).unwrap();
    }
    let audit = dataplane.audit();
    assert_eq!((parts(&audit), audit.repairs.len()), (vec![Part::Link], 3), "{audit:?}");
    assert!(links(&pins, uplink).iter().zip(before).all(|(now, before)| *now != before));
    assert_eq!(dataplane.audit(), Audit::default());

    // Another program's place is not taken away from it, and that is said.
    sys::detach_link(sys::open_pin(&pins.links().join(Door::XdpGeneric.pin_name(uplink))).unwrap().as_fd()).unwrap();
    let program = dataplane.ebpf.program("shunt_xdp").unwrap().fd().unwrap().try_clone().unwrap();
    let (attach_type, flags) = Door::XdpGeneric.attach();
    let theirs = sys::create_link(program.as_fd(), uplink, attach_type, flags).unwrap();
    for _ in 0..2 {
        let audit = dataplane.audit();
        assert_eq!(audit.repairs, []);
        assert!(audit.failures[0].cause.contains("another program is attached"), "{audit:?}");
    }
    drop(theirs);
}

#[test]
fn a_link_that_runs_another_program_gets_its_own_back() {
    let Some(mut place) = Place::new("update") else { return };
    let (mut dataplane, uplink) = attached(&mut place);
    let link = sys::open_pin(&Pins::new(&place.options.bpffs).links().join(Door::TcIngress.pin_name(uplink))).unwrap();
    let program =
        |dataplane: &Dataplane, name| dataplane.ebpf.program(name).unwrap().fd().unwrap().try_clone().unwrap();
    sys::update_link(link.as_fd(), program(&dataplane, "shunt_tc_egress").as_fd()).unwrap();
    assert_eq!(parts(&dataplane.audit()), [Part::Link]);
    let expected = sys::program_id(program(&dataplane, "shunt_tc_ingress").as_fd()).unwrap();
    assert_eq!(sys::link_info(link.as_fd()).unwrap().program_id, expected);
}

#[test]
fn a_device_that_has_gone_is_no_loss() {
    let Some(mut place) = Place::new("no-loss") else { return };
    let (mut dataplane, _) = attached(&mut place);
    ip("link del uplink");
    assert_eq!(dataplane.audit(), Audit::default());
}

#[test]
fn filters_come_back_after_somebody_has_removed_the_qdisc() {
    let Some(place) = Place::new("clsact") else { return };
    ip("link add uplink type veth peer name pod");
    let device = ifindex("uplink");
    let mut dataplane = place.open();
    filters::attach(&mut dataplane.ebpf, &Pins::new(&place.options.bpffs), "uplink", device).unwrap();
    drop(dataplane);
    // Adopted: so they are known also where the kernel has links.
    let mut dataplane = place.open();
    assert_eq!(dataplane.audit(), Audit::default());
    let tc = |arguments: &str| Command::new("tc").args(arguments.split_whitespace()).status().unwrap();
    assert!(tc("qdisc del dev uplink clsact").success());
    let audit = dataplane.audit();
    assert_eq!((parts(&audit), audit.repairs.len()), (vec![Part::Filter], 2), "{audit:?}");
    assert_eq!(dataplane.audit(), Audit::default());
    assert!(tc("filter del dev uplink ingress").success());
    assert_eq!(dataplane.audit().repairs.len(), 1);
    fs::remove_dir(Pins::new(&place.options.bpffs).links().join(format!("filter-{device}"))).unwrap();
    assert_eq!(parts(&dataplane.audit()), [Part::Pin]);
    assert_eq!(dataplane.audit(), Audit::default());
    dataplane.detach(device);
}

#[test]
fn a_configuration_that_others_have_written_is_put_right() {
    let Some(place) = Place::new("config") else { return };
    let mut dataplane = place.open();
    let config = Config { seed: [1, 2], next_hop_generation: 3, ..Config::default() };
    dataplane.set_config(&config);
    dataplane.maps().config.words()[0].store(77, Ordering::Relaxed);
    assert_eq!(parts(&dataplane.audit()), [Part::Map]);
    assert_eq!(dataplane.maps().config.get(0), Some(config));
}

#[test]
fn a_filter_that_others_have_emptied_lets_replies_to_source_ports_pass_again() {
    let Some(place) = Place::new("filter") else { return };
    let mut dataplane = place.open();
    let source_ports = [PortRange { first: 61_000, last: 61_009 }, PortRange::default()];
    let node_addresses = [Ipv4Addr::new(192, 0, 2, 1).into(), Address::default()];
    dataplane.set_config(&Config { source_ports, node_addresses, ..dataplane.config() });
    assert_eq!(dataplane.audit(), Audit::default());
    let before = dataplane.maps().filter();
    dataplane.maps().filter.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
    assert_eq!(parts(&dataplane.audit()), [Part::Map]);
    assert_eq!(dataplane.maps().filter(), before);
    assert_eq!(dataplane.audit(), Audit::default());
}

#[test]
fn an_agent_whose_directory_another_has_taken_says_so() {
    let Some(place) = Place::new("taken") else { return };
    let mut dataplane = place.open();
    let root: &Path = &place.options.bpffs;
    fs::remove_dir_all(root).unwrap();
    let second = Dataplane::open(&place.options).unwrap();
    let pinned = || sys::map_id(sys::open_pin(&Pins::new(root).map(FRONTENDS)).unwrap().as_fd()).unwrap();
    let before = pinned();
    let audit = dataplane.audit();
    assert!(audit.failures.iter().any(|failure| failure.cause.starts_with("another agent")), "{audit:?}");
    assert!(matches!(Pins::new(root).lock(), Err(PinError::Locked { .. })));
    assert_eq!(pinned(), before, "the other agent's pins are left alone");
    drop(second);
}
