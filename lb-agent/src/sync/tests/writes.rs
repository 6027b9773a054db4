// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that fail, and Services that are not written because what was found of them is better.

use super::*;
use crate::compile::ServiceKey;
use jiff::Timestamp;

#[test]
fn a_write_that_fails_is_tried_again_and_stops_no_other_service() {
    let mut world = World::new(fake_doors());
    world.event(Event::Synced).settle();
    world.events(web());
    world.event(service("zoo").cluster_ips(&["10.96.0.9"]).tcp("http", 80).applied());
    world.doors().maps.fail_after(3);
    let wake_at = world.settle().expect("a retry");
    assert!(world.text().contains("10.96.0.9"), "{}", world.text());
    assert!(!world.text().contains("10.96.0.1:80"), "{}", world.text());
    assert_eq!(world.agent.reporter.standing(), 1);

    assert_eq!(wake_at, world.now + Duration::from_secs(1));
    world.now = wake_at;
    world.settle();
    assert!(world.text().contains("10.96.0.1:80"), "{}", world.text());
    assert_eq!(world.agent.reporter.standing(), 0);
}

#[test]
fn rule_71_a_write_that_fails_keeps_the_first_sync_from_ending() {
    let mut world = World::new(FakeDoors { refusal: Some(libc::ENOMEM), ..fake_doors() });
    world.events(web()).event(service("zoo").cluster_ips(&["10.96.0.9"]).tcp("http", 80).applied());
    let wake_at = world.event(Event::Synced).settle().expect("a retry");
    assert!(!world.health.is_synced() && world.doors().take_overs.is_empty());
    assert!(world.health.is_waiting(), "so that it gets unhealthy");
    world.now = wake_at;
    world.settle();
    assert!(!world.health.is_synced() && world.doors().take_overs.is_empty());

    world.doors().refusal = None;
    world.now += Duration::from_secs(10);
    world.settle();
    assert!(world.health.is_synced() && !world.health.is_waiting());
    assert_eq!(world.doors().take_overs.len(), 1);
}

#[test]
fn rule_71_a_write_that_fails_later_counts_until_it_is_done() {
    let mut world = World::new(fake_doors());
    world.events(web()).event(Event::Synced).settle();
    world.doors().refusal = Some(libc::ENOMEM);
    let [_, slice] = web();
    world.event(deleted(Kind::EndpointSlice, "web-1")).settle();
    assert!(world.health.is_waiting());
    world.event(slice).settle();
    assert!(world.health.is_waiting(), "another change does not make it good");
    world.doors().refusal = None;
    world.now += Duration::from_secs(10);
    world.settle();
    assert!(!world.health.is_waiting());
    assert_eq!(world.doors().take_overs.len(), 1);
}

#[test]
fn a_service_that_no_map_has_room_for_holds_back_nobody() {
    let too_small = Capacities { frontends: 1, ..Capacities::default() };
    let no_room = World::new(FakeDoors { maps: Fake::new(too_small), ..FakeDoors::default() });
    let refused = World::new(FakeDoors { refusal: Some(libc::E2BIG), ..fake_doors() });
    for (what, mut world) in [("planned", no_room), ("refused", refused)] {
        world.events(web()).event(Event::Synced).settle();
        assert_eq!(world.agent.reporter.standing(), 1, "{what}");
        assert_eq!(world.agent.metrics.not_programmed(), 1, "{what}");
        assert!(world.health.is_synced() && !world.health.is_waiting(), "{what}");
        assert_eq!(world.doors().take_overs.len(), 1, "{what}");
    }
}

/// What has no room is not said to be programmed, however long that lasts; once there is room it took as long as that.
#[test]
fn rule_74_what_a_full_map_has_no_room_for_counts_as_programmed_only_when_it_is() {
    let capacities = Capacities { backends: 3, ..Capacities::default() };
    let mut world = World::new(FakeDoors { maps: Fake::new(capacities), ..FakeDoors::default() });
    world.events(web()).event(Event::Synced).settle();
    let in_future = || (Timestamp::now() + jiff::SignedDuration::from_secs(1)).to_string();
    let replaced = slice("web-1", "web").tcp("http", 8080).with(endpoint("10.0.0.3")).with(endpoint("10.0.0.4"));
    let mut replaced = replaced.0;
    let annotations = replaced.metadata.annotations.get_or_insert_default();
    annotations.insert("endpoints.kubernetes.io/last-change-trigger-time".into(), in_future());
    let wake_at = world.event(Event::Apply(Object::EndpointSlice(Box::new(replaced)))).settle().unwrap();
    assert!(!world.text().contains(" active "), "{}", world.text());
    assert_eq!((world.agent.metrics.programmed(), world.agent.metrics.not_programmed()), (0, 1));
    assert!(!world.health.is_waiting());
    world.now = wake_at;
    world.settle();
    assert!(world.text().contains("10.0.0.3:8080") && world.text().contains("10.0.0.4:8080"), "{}", world.text());
    assert_eq!((world.agent.metrics.programmed(), world.agent.metrics.not_programmed()), (1, 0));
    assert_eq!(world.agent.reporter.standing(), 0);
}

#[test]
fn rule_73_what_concerns_no_service_is_not_pending() {
    let mut world = World::new(fake_doors());
    world.events(web()).event(Event::Synced).settle();
    let pending = |world: &World| world.agent.metrics.pending();
    assert_eq!(pending(&world), [0, 0]);
    world.event(slice("stray-1", "stray").tcp("http", 80).with(endpoint("10.0.0.9")).applied());
    assert_eq!(pending(&world), [0, 1]);
    world.settle();
    assert_eq!(pending(&world), [0, 0]);
}

/// `web`, split among `v1` and `v2`, and what an agent leaves that knew a good split and then an unknown name.
fn split_world() -> (Vec<Event>, FakeDoors) {
    let part = |name: &str, ip: &str, backend: &str| {
        let slice = slice(&format!("{name}-1"), name).tcp("http", 8080).with(endpoint(backend));
        [service(name).cluster_ips(&[ip]).tcp("http", 80).applied(), slice.applied()]
    };
    let web = |split: &str| service("web").tcp("http", 80).annotation("shunt.dev/split", split).applied();
    let parts = || [part("v1", "10.96.0.11", "10.0.0.1"), part("v2", "10.96.0.12", "10.0.0.2")].into_iter().flatten();
    let mut before = World::new(fake_doors());
    before.events(parts()).event(web("v1=50,v2=50")).event(Event::Synced).settle();
    let good = before.text();
    before.event(web("v1=50,v3=50")).settle();
    assert_eq!(frontends(&before.text()), frontends(&good));
    (parts().chain([web("v1=50,v3=50")]).collect(), before.into_doors())
}

#[test]
fn the_last_good_split_outlives_a_restart_that_meets_an_unknown_name() {
    let (events, doors) = split_world();
    let good = doors.maps.to_string();
    let mut world = World::new(doors);
    world.events(events).event(Event::Synced).settle();
    assert_eq!(world.text(), good);
    let told = world.agent.reporter.texts();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("not there: v3") && told[0].ends_with("stays as it was before the agent started"));
    assert!(world.health.is_synced());

    let v3 = service("v3").cluster_ips(&["10.96.0.13"]).tcp("http", 80).applied();
    let slice = slice("v3-1", "v3").tcp("http", 8080).with(endpoint("10.0.0.3")).applied();
    world.events([v3, slice]).settle();
    let held = backends_of_web(&world);
    assert_eq!(held, ["10.0.0.1", "10.0.0.3"]);
    assert_eq!(world.agent.reporter.standing(), 0);
}

#[test]
fn a_split_kept_over_a_restart_sends_nothing_to_an_endpoint_that_has_gone() {
    let (events, doors) = split_world();
    let mut world = World::new(doors);
    world.events(events).event(Event::Synced).settle();
    assert_eq!(backends_of_web(&world), ["10.0.0.1", "10.0.0.2"]);
    world.event(deleted(Kind::EndpointSlice, "v2-1")).settle();
    assert_eq!(backends_of_web(&world), ["10.0.0.1"], "the others get its share");
}

fn backends_of_web(world: &World) -> Vec<String> {
    let key = ServiceKey::new("default", "web");
    let addresses = world.agent.maps.state.backends_of(&key).map(|backend| backend.address.to_string());
    addresses.collect::<BTreeSet<_>>().into_iter().collect()
}
