// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others take out of the maps or the kernel comes back, and is told of.

use std::{sync::mpsc, thread};

use lb_common::{
    flow::protocol,
    frontend::{Backend, FrontendKey},
};

use super::*;
use crate::{
    dataplane::{Failure, Part, Repair},
    diff::{Cursor, SampleSize},
    events::Recorder,
    node::net::{Item, Told},
    sync::{Notice, Reporter},
};

const PERIOD: Duration = Duration::from_secs(25);

fn synced() -> World {
    let mut world = World::new(fake_doors());
    world.events(web()).event(service("more").cluster_ips(&["10.96.0.9"]).tcp("http", 80).applied());
    world.event(Event::Synced).settle();
    world
}

/// Of every kind of element, one.
fn losses(world: &World) -> Vec<Operation> {
    let sample = world.agent.maps.state.sample(&mut Cursor::default(), SampleSize { elements: 100, slots: 1 << 20 });
    let losses = sample.into_iter().filter_map(|operation| match operation {
        Operation::UpsertFrontend { key, .. } => Some(Operation::RemoveFrontend { key }),
        Operation::SetBackend { index, .. } => Some(Operation::SetBackend { index, backend: Backend::default() }),
        Operation::ChangeTable { offset, slots } => {
            Some(Operation::ChangeTable { offset, slots: vec![0; slots.len()] })
        }
        Operation::SetName { service, .. } => Some(Operation::RemoveName { service }),
        Operation::UpsertNodeAddress(address) => Some(Operation::RemoveNodeAddress(address)),
        Operation::UpsertInterface { ifindex, .. } => Some(Operation::RemoveInterface { ifindex }),
        _ => None,
    });
    losses.collect()
}

#[test]
fn what_others_write_into_the_maps_is_put_right_and_counted() {
    let mut world = synced();
    let before = world.text();
    let losses = losses(&world);
    assert!(losses.len() > 8, "{losses:?}");
    for loss in &losses {
        world.doors().maps.write(loss).unwrap();
    }
    assert_ne!(world.text(), before);
    world.now += PERIOD;
    world.settle();
    assert_eq!(world.text(), before);
    assert_eq!(world.metrics.repairs(Part::Map), losses.len() as u64);
    world.doors().writes = 0;
    world.now += PERIOD;
    world.settle();
    assert_eq!(world.doors().writes, 0, "all is as it should be");
}

#[test]
fn a_sample_goes_through_all_services_in_turns() {
    let world = synced();
    let (mut cursor, mut seen) = (Cursor::default(), BTreeSet::new());
    for _ in 0..2 {
        for operation in world.agent.maps.state.sample(&mut cursor, SampleSize { elements: 1, slots: 1 << 20 }) {
            if let Operation::UpsertFrontend { key, .. } = operation {
                seen.insert(key);
            }
        }
    }
    let frontends = ["10.96.0.1", "10.96.0.9"]
        .map(|ip| FrontendKey::new(ip.parse::<std::net::IpAddr>().unwrap().into(), 80_u16.to_be(), protocol::TCP));
    assert!(frontends.iter().all(|key| seen.contains(key)), "{seen:?}");
}

#[test]
fn repairs_and_losses_are_told_to_the_node_and_counted() {
    let mut world = synced();
    let (recorder, mut notes) = Recorder::new();
    world.agent.reporter = Reporter::new(recorder);
    let link = |ifindex| format!("TC ingress on eth{ifindex}");
    world.doors().audit = Audit {
        repairs: vec![Repair { part: Part::Link, name: link(1) }, Repair { part: Part::Pin, name: "CONFIG".into() }],
        failures: vec![Failure { part: Part::Link, name: link(2), cause: "another program is there".into() }],
    };
    world.now += PERIOD;
    world.settle();
    let mut told = || std::iter::from_fn(|| notes.try_recv().ok()).map(|note| format!("{note:?}")).collect::<Vec<_>>();
    let texts = told().join("\n");
    for part in ["pins (CONFIG)", "programs on devices (TC ingress on eth1)", "TC ingress on eth2 was lost", "Node"] {
        assert!(texts.contains(part), "{part} in {texts}");
    }
    assert_eq!([Part::Link, Part::Pin, Part::Map].map(|part| world.metrics.repairs(part)), [1, 1, 0]);
    assert_eq!(world.agent.reporter.standing(), 1, "as long as it is lost");
    world.now += PERIOD;
    world.settle();
    assert_eq!(world.agent.reporter.standing(), 0);

    let lost = vec![Item::Device, Item::Route("10.96.0.0/12".parse().unwrap()), Item::Rule { is_v4: true }];
    world.agent.take_notice(Notice::Net(Told { lost, ..Told::default() }), world.now);
    let texts = told().join("\n");
    for part in [
        "devices (device shunt0)",
        "routes (route 10.96.0.0/12 dev shunt0 table 83, rule 96: from all lookup 83 (IPv4))",
    ] {
        assert!(texts.contains(part), "{part} in {texts}");
    }
    assert_eq!([Part::Device, Part::Route].map(|part| world.metrics.repairs(part)), [1, 2]);
}

#[test]
fn a_hint_is_followed_within_a_second_or_two() {
    let mut world = synced();
    let before = world.text();
    for hint in [Notice::Removal, Notice::Removal] {
        world.agent.take_notice(hint, world.now);
    }
    let key = FrontendKey::new(std::net::Ipv4Addr::new(10, 96, 0, 1).into(), 80_u16.to_be(), protocol::TCP);
    world.doors().maps.write(&Operation::RemoveFrontend { key }).unwrap();
    world.settle();
    world.now += Duration::from_secs(1);
    world.settle();
    assert_eq!(world.text(), before);
    let key_gone = Operation::RemoveFrontend { key };
    world.change(Change::Routes { may_be_default: false });
    world.agent.take_change(Change::FiltersGone, world.now);
    world.doors().maps.write(&key_gone).unwrap();
    world.now += Duration::from_secs(1);
    world.settle();
    assert_eq!(world.text(), before, "TC filters that go are a hint, too");
}

#[test]
fn livez_fails_while_the_loop_hangs_in_the_kernel() {
    let (word, hold_up) = mpsc::channel();
    let mut world = World::new(FakeDoors { hold_up: Some(hold_up), ..fake_doors() });
    let (health, start) = (world.health.clone(), world.now);
    let hanging = thread::spawn(move || {
        world.settle();
        world
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while !health.has_turned() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    let minute = Duration::from_secs(61);
    assert!(health.is_healthy_at(start) && !health.is_healthy_at(start + minute));
    word.send(()).unwrap();
    let mut world = hanging.join().unwrap();
    world.now += minute;
    world.settle();
    assert!(health.is_healthy_at(world.now));
}
