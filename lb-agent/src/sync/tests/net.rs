// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net: in the configuration once its device runs its programs, and routed to once the maps are complete.

use std::net::IpAddr;

use super::*;
use crate::{
    node::net::{Told, Wanted},
    sync::{Net, NetOptions, Notice},
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 83];

/// The net's device.
fn device() -> Change {
    let link = Link { kind: "dummy".into(), mac: MAC, ..link("shunt0") };
    Change::Link { ifindex: 83, link }
}

fn world(options: NetOptions) -> World {
    let mut world = World::new(fake_doors());
    world.agent.net = Net::new(options);
    world
}

/// The routes that are wanted, `None` while nobody knows.
fn routes(world: &World) -> Option<Vec<String>> {
    match &*world.agent.net().borrow() {
        Wanted::On { routes, .. } => {
            let source = |own: &Option<IpAddr>| own.map_or_else(String::new, |ip| format!(" {ip}"));
            let text = |(range, own): (_, &Option<IpAddr>)| format!("{range}{}", source(own));
            routes.as_ref().map(|routes| routes.ranges.iter().map(text).collect())
        }
        other => panic!("{other:?}"),
    }
}

const SOURCES: [&str; 2] = ["169.254.96.1/32 192.0.2.1", "fd96:ffff::1/128 fd00::1"];

#[test]
fn rules_6_44_the_net_is_routed_to_once_its_programs_are_there_and_the_maps_complete() {
    let mut world = world(NetOptions::default());
    world.event(service_cidr("kubernetes", &["10.96.0.0/12"])).settle();
    assert_eq!(*world.agent.net().borrow(), Wanted::On { mtu: 1500, routes: None, hint: 0 }, "a device, to begin with");
    world.change(device()).settle();
    assert_eq!(world.doors().attached.get(&83), Some(&role::NET));
    assert_eq!(world.doors().attached.get(&1), Some(&role::NET));
    assert!(
        world.text().contains("interface 1 net\n") && world.text().contains("interface 83 net\n"),
        "{}",
        world.text()
    );
    assert_eq!((world.doors().net, routes(&world)), (config::Net::default(), None), "not before the first sync");

    world.event(Event::Synced).settle();
    let net = world.doors().net;
    assert_eq!(net.ifindex, 83);
    assert_eq!(bytemuck::cast_slice::<u32, u8>(&net.macs), [MAC, MAC].concat());
    assert_eq!(net.sources.map(|own| own.to_string()), ["169.254.96.1", "fd96:ffff::1"]);
    let expected = ["10.96.0.0/12 192.0.2.1", SOURCES[0], SOURCES[1]];
    assert_eq!(routes(&world).unwrap(), expected);
    let mut told = world.agent.net();
    told.mark_unchanged();
    world.events(web()).settle();
    assert!(!told.has_changed().unwrap(), "a Service of the range");
    world.event(deleted(Kind::ServiceCidr, "kubernetes")).settle();
    assert_eq!(routes(&world).unwrap(), ["10.96.0.1/32 192.0.2.1", SOURCES[0], SOURCES[1]]);
}

#[test]
fn a_device_that_refuses_its_programs_is_not_routed_to() {
    let mut world = world(NetOptions::default());
    world.doors().refuses = true;
    world.change(device()).event(Event::Synced).settle();
    assert_eq!((world.doors().net, routes(&world)), (config::Net::default(), None));
    world.doors().refuses = false;
    world.now += Duration::from_secs(60);
    world.settle();
    assert!(world.doors().net.is_there() && routes(&world).is_some());
}

#[test]
fn a_device_that_goes_is_made_anew_and_the_programs_do_without_it_meanwhile() {
    let mut world = world(NetOptions::default());
    world.change(device()).event(Event::Synced).settle();
    world.change(Change::LinkGone { ifindex: 83 }).settle();
    assert_eq!((world.doors().net, routes(&world)), (config::Net::default(), None));
    assert!(!world.doors().attached.contains_key(&1));
    world.change(device()).settle();
    assert!(world.doors().net.is_there() && routes(&world).is_some());
}

#[test]
fn the_net_is_looked_at_as_soon_as_something_of_it_may_have_been_lost() {
    let mut world = world(NetOptions::default());
    world.change(device()).event(Event::Synced).settle();
    let mut told = world.agent.net();
    let mut is_told = |world: &mut World, change| {
        told.mark_unchanged();
        world.change(change).settle();
        told.has_changed().unwrap()
    };
    let Change::Link { ifindex, link } = device() else { unreachable!() };
    let gone = |ip: &str| Change::AddressGone { ifindex: 2, ip: ip.parse().unwrap() };
    assert!(is_told(&mut world, Change::Link { ifindex, link: Link { is_up: false, ..link } }));
    assert!(is_told(&mut world, device()));
    assert!(!is_told(&mut world, device()), "nothing new");
    assert!(is_told(&mut world, Change::Rules));
    assert!(!is_told(&mut world, gone("fe80::1")));
    assert!(is_told(&mut world, gone("192.0.2.1")), "the source of routes");
}

#[test]
fn a_net_that_can_t_be_had_is_a_problem_and_the_socket_door_does_without() {
    let mut world = world(NetOptions::default());
    world.change(device()).event(Event::Synced).settle();
    let problem = || Problem::new("device shunt0", "can't be made", "load a module").with_reason("NoNet");
    let tell = |world: &mut World, problems, is_refused| {
        world.agent.take_notice(Notice::Net(Told { problems, is_refused, ..Told::default() }), world.now);
        world.settle();
    };
    tell(&mut world, vec![problem()], true);
    assert_eq!(world.doors().net, config::Net::default());
    assert_eq!(world.agent.reporter.texts(), ["device shunt0: can't be made; load a module"]);
    assert!(routes(&world).is_some(), "it is tried again");
    tell(&mut world, vec![problem()], false);
    assert!(world.doors().net.is_there(), "what has stood is not given up");
    tell(&mut world, vec![], false);
    assert_eq!(world.agent.reporter.standing(), 0);
}

#[test]
fn rule_44_routes_stay_while_service_cidrs_may_not_be_read() {
    let mut world = world(NetOptions { ranges: vec!["172.30.0.0/16".parse().unwrap()], ..NetOptions::default() });
    world.change(device()).event(Event::ServiceCidrsUnknown(true)).events(web()).event(Event::Synced).settle();
    let are_more = |world: &World| match &*world.agent.net().borrow() {
        Wanted::On { routes: Some(routes), .. } => routes.are_more,
        other => panic!("{other:?}"),
    };
    assert!(are_more(&world), "what an earlier agent made stays");
    let expected = ["10.96.0.1/32 192.0.2.1", SOURCES[0], "172.30.0.0/16 192.0.2.1", SOURCES[1]];
    assert_eq!(routes(&world).unwrap(), expected);
    world.event(service_cidr("kubernetes", &["10.96.0.0/12"])).event(Event::ServiceCidrsUnknown(false)).settle();
    assert!(!are_more(&world));
    assert_eq!(routes(&world).unwrap()[0], "10.96.0.0/12 192.0.2.1");
}

/// kube-proxy's rules for the node's own processes come after the look-up of a route, and find one.
#[test]
fn rule_44_the_net_serves_without_the_socket_door_too() {
    let mut world = world(NetOptions::default());
    world.doors().has_no_socket_door = true;
    world.event(service_cidr("kubernetes", &["10.96.0.0/12"])).change(device()).event(Event::Synced).settle();
    assert_eq!(routes(&world).unwrap()[0], "10.96.0.0/12 192.0.2.1");
}

/// External IPs and those of load balancers may be machines'.
#[test]
fn frontends_that_are_no_cluster_ips_are_not_routed() {
    let mut world = world(NetOptions::default());
    world.change(device()).events(web());
    let Event::Apply(Object::Service(mut object)) =
        service("web").cluster_ips(&["10.96.0.1"]).tcp("http", 80).applied()
    else {
        unreachable!()
    };
    object.spec.as_mut().unwrap().external_ips = Some(vec!["198.51.100.7".into()]);
    world.event(Event::Apply(Object::Service(object))).event(Event::Synced).settle();
    assert_eq!(routes(&world).unwrap(), ["10.96.0.1/32 192.0.2.1", SOURCES[0], SOURCES[1]]);
}

#[test]
fn the_devices_mtu_is_the_least_of_pods_and_uplinks() {
    let mut world = world(NetOptions::default());
    let mtu = |world: &World| match &*world.agent.net().borrow() {
        Wanted::On { mtu, .. } => *mtu,
        other => panic!("{other:?}"),
    };
    for (ifindex, name, own, expected) in
        [(3, "veth3", 1450, 1450), (2, "eth0", 9000, 1450), (9, "bare9", 1300, 1450), (3, "veth3", 1400, 1400)]
    {
        let kind = if ifindex == 9 { "dummy" } else { "" }.into();
        world.change(Change::Link { ifindex, link: Link { mtu: own, kind, ..link(name) } }).settle();
        assert_eq!(mtu(&world), expected, "{name} {own}");
    }
}

#[test]
fn net_off_leaves_all_as_it_is_until_the_maps_are_complete_and_then_takes_it_away() {
    let former = config::Net { ifindex: 83, ..config::Net::default() };
    let mut world = world(NetOptions { is_off: true, ..NetOptions::default() });
    world.doors().net = former;
    world.change(device()).settle();
    assert_eq!((world.doors().net, world.agent.net().borrow().clone()), (former, Wanted::Unknown));
    world.event(Event::Synced).settle();
    let off = Wanted::Off(Some(BTreeSet::new()));
    assert_eq!((world.doors().net, world.agent.net().borrow().clone()), (config::Net::default(), off));
    assert_eq!(world.doors().attached.get(&83), Some(&role::NET), "as long as something may be routed there");
    world.change(Change::LinkGone { ifindex: 83 }).settle();
    assert!(!world.doors().attached.contains_key(&83) && !world.doors().attached.contains_key(&1));
}

#[test]
fn what_an_earlier_agent_s_programs_do_at_its_device_goes_on_until_the_maps_are_complete() {
    let net = |ifindex| config::Net { ifindex, ..config::Net::default() };
    for (ifindex, expected) in [(83, 83), (84, 0)] {
        let mut world = world(NetOptions::default());
        world.doors().net = net(ifindex);
        world.change(device()).settle();
        assert_eq!(world.doors().net.ifindex, expected, "a device of that index");
        world.event(Event::Synced).settle();
        assert_eq!(world.doors().net.ifindex, 83);
    }
}

#[test]
fn rule_44_without_the_net_routes_drop_what_is_nobodys_while_the_socket_door_is_open() {
    let off = |world: &World| match &*world.agent.net().borrow() {
        Wanted::Off(ranges) => ranges.as_ref().map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    };
    let mut world = world(NetOptions { is_off: true, ..NetOptions::default() });
    world.event(Event::ServiceCidrsUnknown(true)).event(Event::Synced).settle();
    assert_eq!(off(&world), None, "those of an earlier agent stay");
    world.event(service_cidr("kubernetes", &["10.96.0.0/12"])).event(Event::ServiceCidrsUnknown(false)).settle();
    assert_eq!(off(&world).unwrap(), ["10.96.0.0/12"]);
    world.doors().has_no_socket_door = true;
    world.event(service_cidr("more", &["172.30.0.0/16"])).settle();
    assert_eq!(off(&world).unwrap(), [""; 0], "kube-proxy's rules must find a route");
}
