// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps without room: what has gone goes all the same, what fits is served, and the rest follows when there is room.

use lb_common::clock::Clock;

use super::*;

/// Endpoints of these numbers, served at one address.
fn with(endpoints: &[u8]) -> Unit {
    let weights: Vec<_> = endpoints.iter().map(|&n| (n, 1)).collect();
    unit(&weights, &[(1, List::Cluster)])
}

/// The last bytes of the endpoints' addresses that new clients of a frontend can get.
fn served(world: &World, n: u8) -> Vec<u8> {
    let dump = world.fake.dump();
    let targets = dump.frontends.get(&key(n)).into_iter().flat_map(|frontend| frontend.targets);
    let indices: BTreeSet<u32> = targets.flat_map(|target| world.fake.table(target).to_vec()).collect();
    let backends = indices.into_iter().map(|index| dump.backends[index as usize]);
    let last = |address: Address| match address.into() {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(ip) => ip.octets()[15],
    };
    let ends: BTreeSet<u8> = backends.map(|backend| last(backend.address)).collect();
    ends.into_iter().collect()
}

/// What has rested may be used again; the Service is planned anew, as the loop does.
fn after_a_rest(world: &mut World, desired: Unit) -> Vec<String> {
    world.now += GRACE;
    assert_eq!(world.state.take_dirty(world.now), BTreeSet::from([ServiceKey::new("default", "web")]));
    world.want("web", 10, desired).iter().map(ToString::to_string).collect()
}

#[test]
fn a_full_map_of_backends_keeps_no_service_on_endpoints_that_have_gone() {
    let mut world = World::new(Capacities { backends: 4, ..Capacities::default() });
    assert_eq!(world.want("web", 10, with(&[1, 2, 3])), []);
    let plan = world.plan("web", 10, with(&[2, 3, 4]));
    assert!(!plan.is_whole());
    let problems = world.carry_out(plan);
    assert_eq!(served(&world, 1), [2, 3]);
    assert_eq!(
        problems[0].to_string(),
        "Service default/web: there is not enough room for its backends, so it is served by those that fit; \
         raise --max-backends and restart the agent"
    );
    assert_eq!(problems.len(), 1);
    assert_eq!(after_a_rest(&mut world, with(&[2, 3, 4])), Vec::<String>::new());
    assert_eq!(served(&world, 1), [2, 3, 4]);
}

#[test]
fn where_all_endpoints_of_a_full_map_have_gone_clients_are_refused_until_there_is_room() {
    let mut world = World::new(Capacities { backends: 4, ..Capacities::default() });
    world.want("web", 10, with(&[1, 2, 3]));
    world.want("web", 10, with(&[4, 5, 6]));
    assert_eq!((served(&world, 1), world.fake.dump().frontends.len()), (vec![], 1));
    after_a_rest(&mut world, with(&[4, 5, 6]));
    assert_eq!(served(&world, 1), [4, 5, 6]);
}

#[test]
fn of_more_endpoints_than_fit_those_that_get_new_flows_here_come_first() {
    let mut world = World::new(Capacities { backends: 3, ..Capacities::default() });
    let mut desired = unit(&[(1, 1), (2, 1), (3, 1), (4, 1)], &[(1, List::Cluster)]);
    desired.backends.insert(backend(1), world::spec(false, true));
    desired.cluster.remove(&backend(1));
    desired.backends.insert(backend(4), world::spec(true, true));
    world.want("web", 10, desired);
    assert_eq!(served(&world, 1), [2, 4]);
}

#[test]
fn a_full_array_of_tables_keeps_no_service_on_endpoints_that_have_gone() {
    let mut world = World::new(Capacities { table_slots: 416, ..Capacities::default() });
    world.want("web", 10, with(&[1, 2, 3, 4]));
    // Five would get 1021 slots.
    let plan = world.plan("web", 10, with(&[2, 3, 4, 5, 6]));
    assert!(plan.is_whole(), "all of them are served");
    let problems = world.carry_out(plan);
    assert!(problems[0].remedy.contains("--max-table-slots"), "{}", problems[0]);
    assert_eq!(served(&world, 1), [2, 3, 4, 5, 6]);
    assert_eq!(world.plan("web", 10, with(&[2, 3, 4, 5, 6])).operations, [], "the same again");
    world.restart();
    let plan = world.plan("web", 10, with(&[2, 3, 4, 5, 6]));
    assert_eq!((plan.operations.len(), plan.problems.len()), (0, 1), "the same after a restart");
    assert_eq!(world.carry_out(plan).len(), 1);
    assert_eq!(world.want("web", 10, with(&[5, 6])), []);
    assert_eq!(served(&world, 1), [5, 6]);
}

/// Its flags change, too, so that the table could not be changed in place if there were room.
#[test]
fn a_full_array_of_tables_follows_a_service_whose_frontends_change_with_its_endpoints() {
    let mut world = World::new(Capacities { table_slots: 416, ..Capacities::default() });
    world.want("web", 10, with(&[1, 2]));
    let desired = Unit { affinity_secs: 10, ..with(&[2, 3]) };
    world.want("web", 10, desired);
    assert_eq!(served(&world, 1), [2, 3]);
    assert_eq!(world.fake.dump().frontends[&key(1)].affinity_timeout, Clock::new(1_000).ticks(10));
}

#[test]
fn a_table_that_was_too_small_gets_its_full_size_when_there_is_room() {
    let mut world = World::new(Capacities { table_slots: 1024 + 416 + 16, ..Capacities::default() });
    let five = || with(&[1, 2, 3, 4, 5]);
    world.want("other", 10, unit(&[(6, 1), (7, 1), (8, 1), (9, 1), (10, 1)], &[(9, List::Cluster)]));
    world.want("web", 10, five());
    assert_eq!(world.fake.dump().frontends[&key(1)].targets[0].slots, 401);
    world.remove("other");
    assert_eq!(after_a_rest(&mut world, five()), Vec::<String>::new());
    assert_eq!(world.fake.dump().frontends[&key(1)].targets[0].slots, 1021);
}

#[test]
fn a_full_map_of_frontends_gives_one_up_before_it_takes_another() {
    let mut world = World::new(Capacities { frontends: 1, ..Capacities::default() });
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
    let plan = world.plan("web", 10, unit(&[(2, 1)], &[(2, List::Cluster)]));
    assert!(plan.is_whole() && plan.problems.is_empty());
    world.carry_out(plan);
    assert_eq!((served(&world, 1), served(&world, 2)), (vec![], vec![2]));
    let plan = world.plan("web", 10, unit(&[(3, 1)], &[(2, List::Cluster), (3, List::Cluster)]));
    assert!(!plan.is_whole());
    assert!(world.carry_out(plan)[0].remedy.contains("--max-frontends"));
    assert_eq!((served(&world, 2), served(&world, 3)), (vec![3], vec![]));
}

#[test]
fn a_full_map_of_source_ranges_shuts_out_whom_it_must_before_it_admits_others() {
    let mut world = World::new(Capacities { source_ranges: 1, ..Capacities::default() });
    world.want("web", 10, restricted(1, &["192.0.2.0/24"]));
    assert_eq!(world.want("web", 10, restricted(1, &["198.51.100.0/24"])), []);
    assert_eq!(world.fake.dump().source_ranges.len(), 1);
    let problems = world.want("web", 10, restricted(1, &["198.51.100.0/24", "203.0.113.0/24"]));
    assert!(problems[0].remedy.contains("--max-source-ranges"), "{}", problems[0]);
    assert!(world.fake.to_string().contains("198.51.100.0/24"));
}

#[test]
fn a_service_without_room_takes_no_frontend_from_another() {
    let mut world = World::new(Capacities { backends: 2, ..Capacities::default() });
    world.want("young", 20, unit(&[(1, 1)], &[(1, List::Cluster)]));
    let old = || unit(&[(2, 1)], &[(1, List::Cluster)]);
    world.want("old", 10, old());
    assert_eq!((world.owner(1), served(&world, 1)), (Some("default/young:http".to_owned()), vec![1]));
    world.want("young", 20, unit(&[], &[(1, List::Cluster)]));
    world.now += GRACE;
    assert!(world.state.take_dirty(world.now).contains(&ServiceKey::new("default", "old")));
    world.want("old", 10, old());
    assert_eq!((world.owner(1), served(&world, 1)), (Some("default/old:http".to_owned()), vec![2]));
}

#[test]
fn a_full_map_names_the_service_and_the_flag_and_touches_no_other() {
    let ranges = ["192.0.2.0/24", "198.51.100.0/24"].map(|range| range.parse().unwrap());
    let three =
        |n| Unit { source_ranges: ranges.into(), ..unit(&[(n, 1), (n + 1, 1), (n + 2, 1)], &[(n, List::Cluster)]) };
    let cases = [
        ("--max-backends", Capacities { backends: 6, ..Capacities::default() }),
        ("--max-table-slots", Capacities { table_slots: 800, ..Capacities::default() }),
        ("--max-frontends", Capacities { frontends: 1, ..Capacities::default() }),
        ("--max-services", Capacities { services: 2, ..Capacities::default() }),
        ("--max-source-ranges", Capacities { source_ranges: 3, ..Capacities::default() }),
    ];
    for (flag, capacities) in cases {
        let mut world = World::new(capacities);
        world.want("first", 10, three(1));
        let before = world.fake.to_string();
        let problems = world.want("second", 10, three(4));
        assert!(!problems.is_empty());
        for problem in &problems {
            assert_eq!(problem.subject, "Service default/second");
            assert!(problem.remedy.contains(flag), "{problem}");
        }
        let after = world.fake.to_string();
        assert!(before.lines().all(|line| after.lines().any(|other| other == line)), "{flag}\n{after}");
        world.remove("first");
        world.now += GRACE;
        assert!(world.state.take_dirty(world.now).contains(&ServiceKey::new("default", "second")), "{flag}");
        assert_eq!(world.want("second", 10, three(4)), [], "{flag}");
        assert_eq!(served(&world, 4), [4, 5, 6], "{flag}");
    }
}

#[test]
fn a_shortage_leaks_nothing() {
    let mut world = World::new(small());
    let six = || unit(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)], &[(1, List::Cluster)]);
    for _ in 0..5 {
        assert!(!world.want("big", 10, six()).is_empty());
    }
    world.remove("big");
    world.now += GRACE;
    assert_eq!(world.want("fits", 10, unit(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)], &[(1, List::Local)])), []);
}
