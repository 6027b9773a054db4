// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is attached to devices: it outlives the agent, and its successor finds it.

use super::*;

#[test]
fn links_outlive_the_agent_and_get_its_successor_s_programs() {
    let Some(place) = Place::new("links") else { return };
    ip("link add uplink type veth peer name pod");
    let (uplink, pod) = (ifindex("uplink"), ifindex("pod"));
    let mut dataplane = place.open();
    let attachment = dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    assert!(attachment.has_tc_links && attachment.xdp.is_err(), "{attachment}");
    dataplane.attach(pod, "pod", Duty { role: role::POD, is_main: false }, VETH).unwrap();
    drop(dataplane);

    let links = Pins::new(&place.options.bpffs).links();
    let tc = |ifindex| [Door::TcEgress, Door::TcIngress].map(|door| door.pin_name(ifindex));
    let mut expected: Vec<_> = tc(uplink).into_iter().chain(tc(pod)).collect();
    expected.sort();
    assert_eq!(pins_in(&links), expected);

    let driver = Options { xdp: XdpMode::Driver, ..place.options.clone() };
    let mut dataplane = Dataplane::open(&driver).unwrap();
    assert_eq!(dataplane.attached(), BTreeSet::from([uplink, pod]));
    let attachment = dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    assert!(attachment.is_native_xdp(), "{attachment}");
    dataplane.detach(pod);
    assert_eq!(dataplane.attached(), BTreeSet::from([uplink]));
    drop(dataplane);

    ip("link del uplink");
    assert_eq!(place.open().attached(), BTreeSet::new());
    assert!(pins_in(&links).is_empty());
}

#[test]
fn programs_of_another_layout_run_on_until_they_are_taken_over() {
    let Some(mut place) = Place::new("upgrade") else { return };
    let uplink = left_by_an_earlier_agent(&mut place);
    let root = place.options.bpffs.clone();
    let ours = format!("v{LAYOUT_VERSION}");
    for layout in ["v0", &ours] {
        if layout != ours {
            fs::rename(root.join(&ours), root.join(layout)).unwrap();
        }
        let doors = [Door::TcIngress, Door::TcEgress, Door::XdpGeneric].map(|door| door.pin_name(uplink));
        let pin = |layout: &str, door: &String| root.join(layout).join("links").join(door);
        let before = doors.each_ref().map(|door| link(&pin(layout, door)));

        let mut dataplane = place.open();
        assert_eq!(dataplane.attached(), BTreeSet::from([uplink]));
        // `get` and `trace` would look at maps that serve nobody.
        let serves = Pins::new(&root).check_serving();
        match serves {
            Ok(()) => assert_eq!(layout, ours),
            Err(error) => assert!(error.to_string().starts_with(&format!("{}/v0 serves, ", root.display())), "{error}"),
        }
        dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        assert_eq!(doors.each_ref().map(|door| link(&pin(layout, door))), before, "they run on as they are");

        assert!(dataplane.take_over().is_empty());
        for (door, (_, program)) in doors.iter().zip(before) {
            let (device, new_program) = link(&pin(&ours, door));
            assert!(device == uplink && new_program != program, "{door} of {layout}");
        }
        assert_eq!(pins_in(&root), [ours.as_str()]);
        Pins::new(&root).check_serving().unwrap();
        assert_eq!(dataplane.attached(), BTreeSet::from([uplink]));
    }
}

#[test]
fn a_device_that_comes_back_under_its_old_index_is_attached_anew() {
    let Some(place) = Place::new("again") else { return };
    let mut dataplane = place.open();
    for _ in 0..2 {
        ip("link add uplink index 77 type veth peer name pod");
        dataplane.attach(77, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        let pins = Pins::new(&place.options.bpffs);
        assert_eq!(link(&pins.links().join(Door::TcIngress.pin_name(77))).0, 77);
        ip("link del uplink");
    }
}

#[test]
fn a_link_that_takes_no_new_program_runs_until_there_is_another() {
    let Some(mut place) = Place::new("refusal") else { return };
    let uplink = left_by_an_earlier_agent(&mut place);
    let pin = |door: Door| Pins::new(&place.options.bpffs).links().join(door.pin_name(uplink));
    // A TC link under the name of an XDP link refuses the XDP program; and there is an XDP program already.
    fs::rename(pin(Door::TcEgress), pin(Door::XdpDriver)).unwrap();
    let mut dataplane = place.open();
    let refused: Vec<_> = dataplane.take_over().iter().map(ToString::to_string).collect();
    assert!(refused.len() == 1 && refused[0].starts_with("XDP in the driver on uplink: "), "{refused:?}");
    assert_eq!(link(&pin(Door::XdpDriver)).0, uplink, "it still runs");
    drop(dataplane);

    // An XDP link under the name of a TC link refuses the TC program; TC has room for a second link.
    fs::rename(pin(Door::XdpGeneric), pin(Door::TcEgress)).unwrap();
    let (_, program) = link(&pin(Door::TcEgress));
    fs::remove_file(pin(Door::XdpDriver)).unwrap();
    let mut dataplane = place.open();
    assert!(dataplane.take_over().is_empty());
    let (device, new_program) = link(&pin(Door::TcEgress));
    assert!(device == uplink && new_program != program);
}

#[test]
fn xdp_changes_its_mode_with_the_flag() {
    let Some(place) = Place::new("mode") else { return };
    ip("link add uplink type veth peer name pod");
    let uplink = ifindex("uplink");
    let modes = [
        (XdpMode::Driver, Some(Door::XdpDriver)),
        (XdpMode::Generic, Some(Door::XdpGeneric)),
        (XdpMode::Auto, None),
        (XdpMode::Generic, Some(Door::XdpGeneric)),
        (XdpMode::Off, None),
    ];
    for (xdp, door) in modes {
        let mut dataplane = Dataplane::open(&Options { xdp, ..place.options.clone() }).unwrap();
        let attachment = dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        assert_eq!(attachment.xdp.ok(), door, "{xdp:?}");
    }
}

/// Frames in several buffers are for TC: XDP sees one page. `--xdp auto` makes do with that, and says so.
#[test]
fn jumbo_frames_are_left_to_tc() {
    let Some(place) = Place::new("jumbo") else { return };
    ip("link add uplink mtu 9000 type veth peer name pod mtu 9000");
    let uplink = ifindex("uplink");
    let kind_with_xdp = "";
    let attachment =
        place.open().attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, kind_with_xdp).unwrap();
    assert!(attachment.to_string().contains("no XDP (") && attachment.to_string().contains("MTU"), "{attachment}");
    let mut dataplane = Dataplane::open(&Options { xdp: XdpMode::Driver, ..place.options.clone() }).unwrap();
    let error =
        dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, kind_with_xdp).unwrap_err();
    assert!(error.to_string().contains("MTU") && error.remedy().contains("--xdp auto"), "{error}");
}

#[test]
fn what_is_no_ethernet_device_or_has_gone_is_named() {
    let Some(place) = Place::new("devices") else { return };
    let mut dataplane = place.open();
    let error = dataplane.attach(1, "lo", Duty { role: role::UPLINK, is_main: true }, "").unwrap_err();
    assert!(error.to_string().contains("lo is no Ethernet device"), "{error}");
    let error = dataplane.attach(99, "nowhere", Duty { role: role::UPLINK, is_main: true }, "").unwrap_err();
    assert!(error.to_string().contains("nowhere (index 99) has gone"), "{error}");
}

#[test]
fn filters_serve_where_links_are_unknown() {
    let Some(place) = Place::new("filters") else { return };
    ip("link add uplink type veth peer name pod");
    let device = ifindex("uplink");
    let mut dataplane = place.open();
    let Dataplane { ebpf, .. } = &mut dataplane;
    let pins = Pins::new(&place.options.bpffs);
    super::super::filters::attach(ebpf, &pins, "uplink", device).unwrap();
    drop(dataplane);
    let mut dataplane = place.open();
    assert_eq!(dataplane.attached(), BTreeSet::from([device]));
    let attachment = dataplane.attach(device, "uplink", Duty { role: role::POD, is_main: false }, VETH).unwrap();
    assert!(!attachment.has_tc_links);
    dataplane.detach(device);
    assert!(super::super::filters::detach("uplink").is_empty(), "nothing is left");
    assert_eq!(dataplane.attached(), BTreeSet::new());
}
