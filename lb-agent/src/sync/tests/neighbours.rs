// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cached next hops: when they begin anew, and when their neighbours are asked for.

use std::net::IpAddr;

use tokio::sync::watch;

use super::*;
use crate::node::state::Neighbour;

/// Has two minutes pass. Returns when neighbours were told.
fn two_minutes(world: &mut World, told: &mut watch::Receiver<Vec<(u32, IpAddr)>>) -> Vec<Instant> {
    let end = world.now + Duration::from_secs(120);
    let mut times = Vec::new();
    while world.now < end {
        let wake_at = world.settle().unwrap();
        if told.has_changed().unwrap() {
            told.mark_unchanged();
            times.push(world.now);
        }
        world.now = wake_at.min(end);
    }
    times
}

#[test]
fn pitfall_27_neighbours_in_use_are_told_every_four_seconds_and_forgotten_after_a_minute_without_packets() {
    let mut world = World::new(fake_doors());
    let mut told = world.agent.neighbours();
    for (last, is_learned) in [(9, true), (10, true), (11, false)] {
        let ip = IpAddr::from([192, 0, 2, last]);
        let neighbour = Some(Neighbour { mac: [last; 6], is_learned });
        world.change(Change::Neighbour { ifindex: 2, ip, neighbour });
    }
    world.event(Event::Synced).settle();
    let bumps = world.doors().bumps.len();
    assert_eq!(two_minutes(&mut world, &mut told), [], "nobody is in use");
    assert_eq!(world.doors().bumps.len(), bumps);

    world.doors().next_hops = [(2, [9; 6]), (2, [11; 6]), (3, [10; 6])].into();
    let times = two_minutes(&mut world, &mut told);
    assert_eq!(*told.borrow(), [(2, IpAddr::from([192, 0, 2, 9]))]);
    assert_eq!(times.len(), 30);
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == Duration::from_secs(4)), "{times:?}");
    assert_eq!(world.doors().bumps.len(), bumps + 2);
}

#[test]
fn next_hops_begin_anew_only_when_the_programs_know_whether_routing_rules_count() {
    let mut world = World::new(fake_doors());
    world.settle();
    for is_policy_routed in [true, false] {
        let bumps = world.doors().bumps.len();
        world.change(Change::PolicyRouting(is_policy_routed)).settle();
        assert_eq!(world.doors().bumps[bumps..], [is_policy_routed]);
    }
}
