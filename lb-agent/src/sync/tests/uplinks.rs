// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which devices are uplinks, and which of them give us their driver.

use super::*;

/// Native XDP came to every free card: a bond's port could not come back, and drivers made the queues of a disk array's card anew.
#[test]
fn only_a_card_with_a_default_route_or_the_nodes_address_gets_native_xdp() {
    let mut world = World::new(fake_doors());
    world.change(Change::Link { ifindex: 4, link: link("eth1") }).event(Event::Synced).settle();
    let is_native = |world: &World| world.text().contains("interface 4 uplink xdp");
    assert!(world.text().contains("interface 4 uplink") && !is_native(&world), "{}", world.text());
    world.change(Change::DefaultDevices([2, 4].into())).settle();
    assert!(is_native(&world), "{}", world.text());
    world.change(Change::DefaultDevices([2].into())).settle();
    assert!(!is_native(&world), "{}", world.text());
    world.change(Change::Address { ifindex: 4, address: address("192.0.2.9") });
    world.event(node("node-1", None, &["192.0.2.9"])).settle();
    assert!(is_native(&world), "{}", world.text());
}

/// Before the Node object is told, a successor does not know that the bridge has the node's address.
#[test]
fn a_restart_takes_no_uplink_away() {
    let told = || node("node-1", None, &["198.51.100.1"]);
    let with_bridge = |doors| {
        let mut world = World::new(doors);
        world.change(Change::Link { ifindex: 4, link: Link { kind: "bridge".into(), ..link("vmbr1") } });
        world.change(Change::Link { ifindex: 5, link: Link { controller: 4, ..link("veth5") } });
        world.change(Change::Address { ifindex: 4, address: address("198.51.100.1") }).settle();
        world
    };
    let is_uplink = |world: &World| world.text().contains("interface 4 uplink");
    let mut world = with_bridge(fake_doors());
    assert!(!is_uplink(&world));
    world.event(told()).event(Event::Synced).settle();
    assert!(is_uplink(&world), "{}", world.text());
    let mut world = with_bridge(world.into_doors());
    assert!(is_uplink(&world), "{}", world.text());
    world.event(told()).event(Event::Synced).settle();
    assert!(is_uplink(&world), "{}", world.text());
    world.change(Change::AddressGone { ifindex: 4, ip: "198.51.100.1".parse().unwrap() }).settle();
    assert!(!is_uplink(&world), "{}", world.text());
}
