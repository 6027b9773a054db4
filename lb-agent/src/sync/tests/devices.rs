// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices that come, go and change, and the roles and next hops that follow.

use super::*;

#[test]
fn a_pods_device_is_attached_when_it_appears_and_forgotten_when_it_goes() {
    let mut world = World::new(fake_doors());
    world.settle();
    assert_eq!(world.doors().attached, BTreeMap::from([(2, role::UPLINK), (3, role::POD)]));
    world.change(Change::Link { ifindex: 9, link: link("veth9") }).settle();
    assert_eq!(world.doors().attached.get(&9), Some(&role::POD));
    assert!(world.text().contains("interface 9 pod"), "{}", world.text());
    world.change(Change::LinkGone { ifindex: 9 }).settle();
    assert_eq!(world.doors().attached.get(&9), None);
    assert!(!world.text().contains("interface 9"), "{}", world.text());
}

#[test]
fn a_pods_device_without_room_in_the_map_is_left_alone_and_the_flag_is_named() {
    let capacities = Capacities { interfaces: 2, ..Capacities::default() };
    let mut world = World::new(FakeDoors { maps: Fake::new(capacities), ..FakeDoors::default() });
    world.change(Change::Link { ifindex: 7, link: Link { kind: "dummy".into(), ..link("bare7") } }).settle();
    assert_eq!(world.agent.reporter.standing(), 0, "a device without role and address takes no room");
    world.change(Change::Link { ifindex: 9, link: link("veth9") }).settle();
    assert_eq!(world.doors().attached.get(&9), None, "its pod would pass for a client from outside");
    assert_eq!(world.agent.reporter.standing(), 1);
    world.change(Change::LinkGone { ifindex: 3 }).settle();
    assert_eq!(world.doors().attached.get(&9), Some(&role::POD));
    assert_eq!(world.agent.reporter.standing(), 0);
    let full = WriteError::Refused { map: INTERFACES, cause: io::Error::from_raw_os_error(libc::E2BIG) };
    assert!(full.remedy().contains("--max-interfaces"));
}

#[test]
fn a_device_that_comes_back_under_its_old_index_is_attached_anew() {
    let mut world = World::new(fake_doors());
    world.settle();
    world.doors().attachments.clear();
    world.change(Change::LinkGone { ifindex: 3 }).change(Change::Link { ifindex: 3, link: link("veth3") }).settle();
    assert_eq!(world.doors().attachments, [3]);

    let mut node = NodeState::default();
    node.apply(Change::Link { ifindex: 3, link: link("veth3") });
    world.change(Change::Resync(node)).settle();
    assert_eq!(world.doors().attachments, [3, 3]);
}

#[test]
fn frames_are_redirected_only_to_devices_with_native_xdp() {
    let mut world = World::new(fake_doors());
    world.settle();
    assert!(world.text().contains("interface 2 uplink xdp 192.0.2.1 fd00::1\n"), "{}", world.text());
    assert!(world.text().contains("interface 3 pod\n"), "{}", world.text());
}

#[test]
fn a_device_that_refuses_is_reported_and_tried_again() {
    let mut world = World::new(FakeDoors { refuses: true, ..fake_doors() });
    let wake_at = world.settle().expect("a retry");
    assert_eq!(world.agent.reporter.standing(), 2);
    world.doors().refuses = false;
    world.now = wake_at;
    world.settle();
    assert_eq!(world.doors().attached.len(), 2);
    assert_eq!(world.agent.reporter.standing(), 0);
}

#[test]
fn rule_5_an_external_address_is_the_nodes_where_it_has_no_internal_one_and_holds_it() {
    let mut world = World::new(fake_doors());
    world.change(Change::Address { ifindex: 2, address: address("198.51.100.7") });
    let with = |external: &str| {
        let Event::Apply(Object::Node(mut object)) = node("node-1", None, &["fd00::1"]) else { unreachable!() };
        let addresses = object.status.as_mut().and_then(|status| status.addresses.as_mut()).unwrap();
        addresses.push(NodeAddress { type_: "ExternalIP".into(), address: external.into() });
        Event::Apply(Object::Node(object))
    };
    let primary = |world: &mut World| world.doors().node_addresses[0].to_string();
    world.event(with("198.51.100.7")).event(Event::Synced).settle();
    assert_eq!(primary(&mut world), "198.51.100.7");
    world.event(with("203.0.113.9")).settle();
    assert_eq!(primary(&mut world), "192.0.2.1", "a router's address can't be a source");
}

/// What made a device an uplink once is not remembered: after a restart nobody would know.
#[test]
fn pitfall_31_a_role_does_not_depend_on_what_was_before() {
    let roles = |default: &[&[u32]]| {
        let mut world = World::new(fake_doors());
        world.change(Change::Link { ifindex: 5, link: link("eth5") });
        world.event(node("node-1", None, &["198.51.100.1"])).event(Event::Synced).settle();
        for devices in default {
            world.change(Change::DefaultDevices(devices.iter().copied().collect())).settle();
        }
        world.doors().attached.clone()
    };
    let expected = BTreeMap::from([(2, role::UPLINK), (3, role::POD), (5, role::UPLINK)]);
    assert_eq!(roles(&[&[2]]), expected);
    assert_eq!(roles(&[&[2], &[3], &[5], &[]]), expected);
    assert_eq!(roles(&[&[3]])[&3], role::UPLINK);
}

#[test]
fn rule_28_node_ports_are_answered_by_the_node_objects_addresses_else_the_uplinks() {
    let mut world = World::new(fake_doors());
    world.event(Event::Synced).settle();
    assert!(world.text().contains("node address 192.0.2.1\nnode address fd00::1\n"), "{}", world.text());
    world.event(node("node-1", None, &["203.0.113.5"])).settle();
    assert!(world.text().contains("node address 203.0.113.5\n"), "{}", world.text());
    assert!(!world.text().contains("node address 192.0.2.1\n"), "{}", world.text());
    let primary: Address = "203.0.113.5".parse::<std::net::IpAddr>().unwrap().into();
    assert_eq!(world.doors().node_addresses[0], primary);
}

#[test]
fn only_what_can_change_a_next_hop_spoils_them() {
    let mut world = World::new(fake_doors());
    world.settle();
    let bumps = world.doors().bumps.len();
    world.change(Change::Link { ifindex: 9, link: link("veth9") }).settle();
    assert_eq!(world.doors().bumps.len(), bumps);
    world.change(Change::Routes { may_be_default: false }).change(Change::Routes { may_be_default: false }).settle();
    assert_eq!(world.doors().bumps.len(), bumps + 1, "a burst counts once");
}

/// What is kept of a next hop says whether its device takes frames from XDP.
#[test]
fn a_device_whose_role_changes_spoils_next_hops() {
    let mut world = World::new(fake_doors());
    world.event(Event::Synced).settle();
    let bumps = world.doors().bumps.len();
    world
        .change(Change::Link { ifindex: 3, link: link("eth3") })
        .change(Change::DefaultDevices([2, 3].into()))
        .settle();
    assert_eq!(world.doors().attached.get(&3), Some(&role::UPLINK));
    assert_eq!(
        world.doors().bumps.len(),
        bumps + 3,
        "by another name, as an uplink, and as one that takes frames from XDP"
    );
}

#[test]
fn a_family_that_comes_after_the_start_is_reported() {
    let families = |families| {
        let mut world = World::new(fake_doors());
        let capacities = Capacities { families, ..Capacities::default() };
        world.agent.maps.state = State::adopt(world.doors().maps.dump(), &capacities);
        world.event(Event::Synced).settle();
        world.agent.reporter.texts()
    };
    let texts = families([true, false]);
    assert!(texts.iter().any(|text| text.starts_with("IPv6: this node had no address of the family")), "{texts:?}");
    assert_eq!(families([true; 2]), texts.iter().filter(|text| !text.starts_with("IPv6")).cloned().collect::<Vec<_>>());
}
