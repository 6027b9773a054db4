// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frontends that several Services want, that change hands, or that are the node's own.

use std::sync::Mutex;

use super::*;

/// What is logged meanwhile.
fn logged<T>(work: impl FnOnce() -> T) -> String {
    let (reader, writer) = io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
    tracing::subscriber::with_default(subscriber, work);
    io::read_to_string(reader).unwrap()
}

/// kube-proxy tells of no conflict here, and there is none: only the new owner is planned before the old one.
#[test]
fn rule_18_a_frontend_that_moves_between_services_in_one_burst_is_no_conflict() {
    let at = |name: &str, ip: &str| service(name).cluster_ips(&[ip]).tcp("http", 80).applied();
    let mut world = World::new(fake_doors());
    world.event(at("b", "10.96.0.1")).event(Event::Synced).settle();
    world.events([at("a", "10.96.0.1"), at("b", "10.96.0.2")]).settle();
    world.now += Duration::from_secs(5);
    world.settle();
    assert_eq!((world.agent.reporter.texts(), world.agent.reporter.total()), (vec![], 0));

    // One that stays is told once it has lasted, and is over when it is.
    world.event(at("c", "10.96.0.1"));
    let wake_at = world.settle().unwrap();
    assert_eq!(world.agent.reporter.total(), 0);
    world.now = wake_at.max(world.now + Duration::from_secs(1));
    world.settle();
    let texts = world.agent.reporter.texts();
    assert!(texts.len() == 1 && texts[0].contains("belongs to Service default/a"), "{texts:?}");
    world.event(deleted(Kind::Service, "a")).settle();
    assert_eq!(world.agent.reporter.texts(), [""; 0]);
}

#[test]
fn rule_18_a_frontend_that_its_owner_gives_up_is_taken_over_at_once() {
    let mut world = World::new(fake_doors());
    world.events(["a", "b"].map(|name| service(name).tcp("http", 80).applied())).event(Event::Synced).settle();
    assert!(world.text().contains("frontend 10.96.0.1:80/TCP -> service 1,"), "{}", world.text());
    world.now += Duration::from_secs(1);
    world.settle();
    assert_eq!(world.agent.reporter.standing(), 1, "b has no frontend");
    let slice = slice("b-1", "b").tcp("http", 8080).with(endpoint("10.0.0.1"));
    world.event(slice.applied()).settle();
    assert_eq!(world.agent.reporter.total(), 1, "it is reported once");
    world.event(deleted(Kind::Service, "a")).settle();
    assert!(world.text().contains("frontend 10.96.0.1:80/TCP -> service 2,"), "{}", world.text());
    assert_eq!(world.agent.reporter.standing(), 0);
}

/// Beside kube-proxy, a new owner lost to one that had gone, and told its owner so, 12 times of 12.
#[test]
fn rule_18_who_only_gives_up_is_planned_first_and_his_heir_next() {
    let at = |name: &str, ip: &str| service(name).cluster_ips(&[ip]).tcp("http", 80).applied();
    let others = || (0..200).map(|index| at(&format!("other-{index}"), &format!("10.97.0.{index}")));
    let is_served = |world: &World| world.text().contains("frontend 10.96.0.1:80/TCP -> service");

    // In one process, and over a restart, in whose lists only the heir is; by name before the owner, and behind.
    for heir in ["an-heir", "the-heir"] {
        for is_restarted in [false, true] {
            let mut world = World::new(fake_doors());
            world.events(others()).event(at("heritage", "10.96.0.1")).event(Event::Synced).settle();
            if is_restarted {
                world = World::new(world.into_doors());
                world.events(others()).event(at(heir, "10.96.0.1")).event(Event::Synced);
            } else {
                let changed = (0..200).map(|index| at(&format!("other-{index}"), &format!("10.98.0.{index}")));
                world.events(changed).event(at(heir, "10.96.0.1")).event(deleted(Kind::Service, "heritage"));
            }
            while world.agent.turn(world.now).is_some_and(|at| at <= world.now) {
                assert!(is_served(&world), "between two turns nobody serves: {heir}, {is_restarted}");
            }
            assert!(world.text().contains(&format!("default/{heir}")));
            assert_eq!(world.agent.reporter.total(), 0);
        }
    }
}

#[test]
fn rule_18_no_conflict_is_told_while_a_list_is_under_way() {
    let at = |name: &str, ip: &str| service(name).cluster_ips(&[ip]).tcp("http", 80).applied();
    let mut world = World::new(fake_doors());
    world.events([at("a", "10.96.0.1"), at("b", "10.96.0.2"), Event::Synced]).settle();
    // The first page has b's new address, and a has gone, which only the end of the list tells.
    world.events([Event::Relisting(true), at("b", "10.96.0.1")]).settle();
    world.now += Duration::from_secs(20);
    assert!(world.settle().is_none_or(|at| at > world.now));
    assert_eq!(world.agent.reporter.total(), 0);
    world.events([deleted(Kind::Service, "a"), Event::Relisting(false)]).settle();
    world.now += Duration::from_secs(5);
    world.settle();
    assert_eq!(
        (world.agent.reporter.total(), world.text().contains("frontend 10.96.0.1:80/TCP -> service")),
        (0, true)
    );
}

/// kube-router's device is only one of those that nobody knows by name.
#[test]
fn a_device_with_many_cluster_ips_is_what_another_proxy_has_left() {
    let ip = |index: usize| format!("10.96.1.{index}");
    let mut world = World::new(fake_doors());
    world
        .events((0..9).map(|index| service(&format!("s{index}")).cluster_ips(&[&ip(index)]).tcp("http", 80).applied()));
    world.change(Change::Link { ifindex: 9, link: Link { kind: "dummy".into(), ..link("their-ipvs") } });
    for index in 0..8 {
        world.change(Change::Address { ifindex: 9, address: address(&ip(index)) });
    }
    let served =
        |world: &World| (0..9).filter(|&index| world.text().contains(&format!("{}:80/TCP", ip(index)))).count();
    world.event(Event::Synced).settle();
    assert_eq!(served(&world), 1, "so few may be caches': {}", world.text());
    world.change(Change::Address { ifindex: 9, address: address(&ip(8)) }).settle();
    assert_eq!(served(&world), 9, "{}", world.text());
    world.change(Change::AddressGone { ifindex: 9, ip: ip(8).parse().unwrap() }).settle();
    assert_eq!(served(&world), 1, "{}", world.text());
}

/// NodeLocal DNSCache answers at the ClusterIP of the cluster's DNS, on a device of its own.
#[test]
fn a_cluster_ip_that_the_node_holds_itself_is_left_to_it() {
    let dns = || {
        let dns = service("dns").cluster_ips(&["10.96.0.10"]).tcp("dns", 53).edit(|spec| {
            spec.type_ = Some("NodePort".into());
            spec.ports.iter_mut().flatten().for_each(|port| port.node_port = Some(30_053));
        });
        [dns.applied(), slice("dns-1", "dns").tcp("dns", 5353).with(endpoint("10.0.0.1")).applied()]
    };
    let nowhere = Link { kind: "dummy".into(), ..link("nodelocaldns") };
    let mut world = World::new(fake_doors());
    // There at the start of both.
    world.events(dns()).events(web()).event(Event::Synced);
    let hold = |world: &mut World| {
        world.change(Change::Link { ifindex: 9, link: nowhere.clone() });
        world.change(Change::Address { ifindex: 9, address: address("169.254.20.10") });
        world.change(Change::Address { ifindex: 9, address: address("10.96.0.10") }).settle();
    };
    hold(&mut world);
    let of_dns =
        |world: &World| frontends(&world.text()).into_iter().filter(|line| line.contains("10.96.0.10")).count();
    let has_node_port = |world: &World| world.text().contains("node port 30053/TCP");
    assert!(of_dns(&world) == 0 && has_node_port(&world), "{}", world.text());
    world.change(Change::LinkGone { ifindex: 9 }).settle();
    assert_eq!(of_dns(&world), 2, "the port, and all others: {}", world.text());
    hold(&mut world);
    assert_eq!(of_dns(&world), 0);
    // A successor finds it so.
    let mut world = World::new(world.into_doors());
    world.events(dns()).events(web()).event(Event::Synced);
    hold(&mut world);
    assert!(of_dns(&world) == 0 && has_node_port(&world), "{}", world.text());
    world.change(Change::AddressGone { ifindex: 9, ip: "10.96.0.10".parse().unwrap() }).settle();
    assert_eq!(of_dns(&world), 2);

    // The device first, then the Service: the log says so all the same.
    let mut world = World::new(fake_doors());
    world.events(web()).event(Event::Synced);
    hold(&mut world);
    let told = |text: &str| text.matches("Service default/dns: 10.96.0.10 is ").count();
    let log = logged(|| world.events(dns()).settle());
    assert!(of_dns(&world) == 0 && has_node_port(&world), "{}", world.text());
    assert!(told(&log) == 1 && log.contains("left to this node, which holds it on nodelocaldns"), "{log}");
    let log = logged(|| world.events(dns()).event(deleted(Kind::Service, "dns")).settle());
    assert_eq!(told(&log), 0, "one that is no Service's any more is not served again: {log}");
    let log = logged(|| world.events(dns()).change(Change::LinkGone { ifindex: 9 }).settle());
    assert_eq!((of_dns(&world), told(&log)), (2, 0), "it came with the device's end: {log}");
    hold(&mut world);
    let log = logged(|| world.change(Change::LinkGone { ifindex: 9 }).settle());
    assert!(told(&log) == 1 && log.contains("is served again"), "{log}");
}
