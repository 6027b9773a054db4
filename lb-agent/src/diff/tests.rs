// SPDX-License-Identifier: MIT OR Apache-2.0
//! Examples of planning against the fake. The random sequences are in [`property`].

mod property;
mod scarcity;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::Address,
    config::{Interface, role},
    filter::Concern,
    flow::protocol,
    frontend::{FrontendKey, Scope, frontend_flags},
    hash::{scale, siphash13},
};

use self::world::{World, address, backend, frontend, key, unit, unit_id};
use super::{Capacities, GRACE, Operation, Plan, State, Writer as _};
use crate::{
    compile::{FrontendPlan, List, ServiceKey, Unit, UnitId},
    dataplane::fake::Fake,
};

fn small() -> Capacities {
    Capacities {
        frontends: 4,
        backends: 6,
        table_slots: 3 * 416,
        flows: 16,
        families: [true; 2],
        services: 4,
        source_ranges: 4,
        affinity: 1,
        fragments: 16,
        interfaces: 16,
        node_addresses: 16,
        sockets: 16,
    }
}

/// What one node sends a tuple to: the hash as the programs take it, and the maps as the agent has written them.
fn choice(world: &World, seed: [u64; 2], tuple: u64) -> (Address, u16) {
    let dump = world.fake.dump();
    let target = dump.frontends[&key(1)].target(Scope::External);
    let hash = siphash13(&seed, &[tuple, 80]);
    let index = dump.tables[&target.offset][scale(hash, target.slots) as usize];
    let backend = dump.backends[index as usize];
    (backend.address, backend.port_be)
}

/// Two nodes that have come to the same objects by other ways: other indices, other places of the tables.
#[test]
fn two_nodes_with_one_seed_send_ten_thousand_tuples_to_the_same_backends() {
    let web = || unit(&[(1, 1), (2, 3), (3, 1), (4, 1), (5, 1)], &[(1, List::Cluster)]);
    let mut fresh = World::new(Capacities::default());
    fresh.want("web", 10, web());
    let mut old = World::new(Capacities::default());
    old.want("other", 10, unit(&[(8, 1), (9, 1)], &[(2, List::Cluster)]));
    old.want("web", 10, unit(&[(5, 1), (4, 1), (7, 1)], &[(1, List::Cluster)]));
    old.restart();
    old.want("web", 10, web());
    assert_ne!(fresh.fake.to_string(), old.fake.to_string());

    let (shared, of_its_own) = ([1, 2], [3, 4]);
    let differ = |seed| (0..10_000).filter(|&n| choice(&fresh, shared, n) != choice(&old, seed, n)).count();
    assert_eq!(differ(shared), 0);
    assert!(differ(of_its_own) > 5000, "the seed decides");
}

#[test]
fn a_service_from_its_birth_to_its_end() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1), (2, 1)], &[(1, List::Cluster)]));
    assert_eq!(
        world.fake.to_string(),
        "service 1 default/web:http TCP IPv4\n\
         frontend 10.96.0.1:80/TCP -> service 1, internal 401 slots (1: 201, 2: 200), external 401 slots (1: 201, 2: 200)\n\
         backend 1 10.0.0.1:8080 service 1 active in-cluster-list generation 0\n\
         backend 2 10.0.0.2:8080 service 1 active in-cluster-list generation 0\n"
    );
    world.want("web", 10, unit(&[(2, 1), (3, 3)], &[(1, List::Cluster)]));
    assert_eq!(
        world.fake.to_string(),
        "service 1 default/web:http TCP IPv4\n\
         frontend 10.96.0.1:80/TCP -> service 1, internal 401 slots (2: 100, 3: 301), external 401 slots (2: 100, 3: 301)\n\
         backend 2 10.0.0.2:8080 service 1 active in-cluster-list generation 0\n\
         backend 3 10.0.0.3:8080 service 1 active in-cluster-list generation 0\n"
    );
    world.remove("web");
    assert_eq!(world.fake.to_string(), "");
    assert_eq!(world.state.services().count(), 0);
}

#[test]
fn the_order_is_backends_tables_filter_names_frontends_and_removals_backwards() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster), (2, List::Cluster)]));
    let mut desired = unit(&[(2, 1)], &[(2, List::Cluster)]);
    desired.backends.insert(backend(3), world::spec(false, false));
    assert_eq!(
        kinds(&world.plan("web", 10, desired)),
        [
            "backend 2 state 1",
            "table",
            "filter backend",
            "filter backend",
            "frontend",
            "backend 3 state 2",
            "remove frontend",
            "backend 1 state 0"
        ]
    );
}

#[test]
fn a_table_of_the_same_size_is_changed_in_place_when_all_that_it_will_name_is_there() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster), (2, List::Cluster)]));
    let target = |world: &World| world.fake.dump().frontends[&key(1)].targets[0];
    let before = target(&world);
    let desired = unit(&[(2, 1)], &[(1, List::Cluster), (2, List::Cluster)]);
    let plan = world.plan("web", 10, desired);
    assert_eq!(kinds(&plan), ["backend 2 state 1", "filter backend", "change table", "backend 1 state 0"]);
    world.carry_out(plan);
    assert_eq!(target(&world), before);
    assert!(world.fake.table(before).iter().all(|&index| index == 2));
}

/// Else it would serve with the new table and its old flags for a moment, or for as long as a write fails.
#[test]
fn a_table_is_built_anew_where_a_frontend_that_leads_there_changes_or_goes() {
    let both = &[(1, List::Cluster), (2, List::Cluster)];
    let mut with_affinity = unit(&[(2, 1)], both);
    with_affinity.affinity_secs = 10;
    let mut with_flags = unit(&[(2, 1)], both);
    with_flags.frontends.get_mut(&key(1)).unwrap().flags = frontend_flags::SOURCE_RANGES;
    let mut local = unit(&[(2, 1)], &[(1, List::Local), (2, List::Local)]);
    local.local = local.cluster.clone();
    for desired in [with_affinity, with_flags, local, unit(&[(2, 1)], &[(1, List::Cluster)])] {
        let mut world = World::new(Capacities::default());
        world.want("web", 10, unit(&[(1, 1)], both));
        let kinds = kinds(&world.plan("web", 10, desired));
        assert!(kinds.contains(&"table".to_owned()) && !kinds.contains(&"change table".to_owned()), "{kinds:?}");
    }
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1)], both));
    let kinds = kinds(&world.plan("web", 10, unit(&[(2, 1)], &[both, &[(3, List::Cluster)][..]].concat())));
    assert!(kinds.contains(&"change table".to_owned()), "another frontend changes nothing for these: {kinds:?}");
}

#[test]
fn a_table_that_could_not_be_changed_is_changed_the_next_time_without_more_room() {
    let mut world = World::new(Capacities { table_slots: 416, ..Capacities::default() });
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
    let target = world.fake.dump().frontends[&key(1)].targets[0];
    let desired = unit(&[(2, 1)], &[(1, List::Cluster)]);
    // The backend and its filter bit are written, the table is not.
    world.fake.fail_after(2);
    world.want("web", 10, desired.clone());
    assert!(world.fake.table(target).iter().all(|&index| index == 1));
    assert_eq!(world.want("web", 10, desired), []);
    assert!(world.fake.table(target).iter().all(|&index| index == 2));
}

/// An agent died while it changed a table.
#[test]
fn a_restart_finds_a_table_that_was_changed_by_half() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
    let target = world.fake.dump().frontends[&key(1)].targets[0];
    let desired = unit(&[(2, 1)], &[(1, List::Cluster)]);
    let plan = world.plan("web", 10, desired.clone());
    for operation in &plan.operations {
        if let Operation::ChangeTable { offset, slots } = operation {
            let half = Operation::ChangeTable { offset: *offset, slots: slots[..slots.len() / 2].to_vec() };
            world.fake.write(&half).unwrap();
            break;
        }
        world.fake.write(operation).unwrap();
    }
    world.restart();
    let plan = world.plan("web", 10, desired);
    assert_eq!(kinds(&plan), ["change table", "backend 1 state 0"]);
    world.carry_out(plan);
    assert!(world.fake.table(target).iter().all(|&index| index == 2));
}

/// What a plan does, in its order.
fn kinds(plan: &Plan) -> Vec<String> {
    let kind = |operation: &Operation| match operation {
        Operation::SetBackend { index, backend } => format!("backend {index} state {}", backend.state),
        Operation::FillTable { .. } => "table".to_owned(),
        Operation::ChangeTable { .. } => "change table".to_owned(),
        Operation::Pass(Concern::Backend(..)) => "filter backend".to_owned(),
        Operation::Pass(_) => "filter frontend".to_owned(),
        Operation::UpsertFrontend { .. } => "frontend".to_owned(),
        Operation::RemoveFrontend { .. } => "remove frontend".to_owned(),
        other => panic!("{other:?}"),
    };
    plan.operations.iter().map(kind).collect()
}

#[test]
fn the_same_again_is_nothing_to_do() {
    let mut world = World::new(Capacities::default());
    let desired = unit(&[(1, 1), (2, 1)], &[(1, List::Cluster), (2, List::Local)]);
    world.want("web", 10, desired.clone());
    assert_eq!(world.plan("web", 10, desired).operations, []);
}

#[test]
fn equal_lists_share_a_table_and_only_a_changed_list_is_built_again() {
    let mut world = World::new(Capacities::default());
    let mut desired = unit(&[(1, 1), (2, 1)], &[(1, List::Cluster), (2, List::Local)]);
    desired.local = desired.cluster.clone();
    world.want("web", 10, desired.clone());
    let targets = |world: &World| [1, 2].map(|n| world.fake.dump().frontends[&key(n)].targets[1]);
    let [cluster, local] = targets(&world);
    assert_eq!(cluster, local);
    desired.local.remove(&backend(1));
    world.want("web", 10, desired.clone());
    let [cluster_after, local_after] = targets(&world);
    assert_eq!(cluster_after, cluster);
    assert_ne!(local_after.offset, cluster.offset);
    desired.local = desired.cluster.clone();
    world.want("web", 10, desired);
    assert_eq!(targets(&world), [cluster, cluster]);
}

#[test]
fn a_list_that_no_frontend_uses_has_no_table() {
    let mut world = World::new(Capacities::default());
    let mut desired = unit(&[(1, 1), (2, 1)], &[(1, List::Cluster)]);
    desired.local = BTreeMap::from([(backend(1), 1)]);
    world.want("web", 10, desired);
    assert_eq!(world.state.mirror.tables.len(), 1);
}

#[test]
fn a_freed_index_rests_and_comes_back_with_its_generation() {
    let mut world = World::new(Capacities { backends: 3, ..Capacities::default() });
    world.want("web", 10, unit(&[(1, 1), (2, 1)], &[(1, List::Cluster)]));
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
    let problems = world.want("web", 10, unit(&[(1, 1), (3, 1)], &[(1, List::Cluster)]));
    assert_eq!(problems.len(), 1, "index 2 must rest");
    assert!(world.state.wake_at().is_some_and(|at| at <= world.now + GRACE));
    world.now += GRACE;
    assert_eq!(world.state.take_dirty(world.now), BTreeSet::from([ServiceKey::new("default", "web")]));
    assert_eq!(world.want("web", 10, unit(&[(1, 1), (3, 1)], &[(1, List::Cluster)])), []);
    assert_eq!(world.fake.dump().backends[2].generation, 1);
    assert_eq!(world.fake.dump().backends[2].address, address(3));
}

#[test]
fn rule_18_the_loser_is_reported_and_takes_over() {
    let mut world = World::new(Capacities::default());
    world.want("young", 20, unit(&[(1, 1)], &[(1, List::Cluster), (2, List::Cluster)]));
    assert_eq!(world.want("old", 10, unit(&[(2, 1)], &[(1, List::Cluster)])), []);
    let dirty = world.state.take_dirty(world.now);
    assert_eq!(dirty, BTreeSet::from([ServiceKey::new("default", "young")]));
    let problems = world.want("young", 20, unit(&[(1, 1)], &[(1, List::Cluster), (2, List::Cluster)]));
    assert_eq!(
        problems[0].to_string(),
        "Service default/young: 10.96.0.1:80/TCP belongs to Service default/old, which comes first by age, then name; change one of the two; it is served here as soon as default/old gives it up"
    );
    assert_eq!(world.owner(1), Some("default/old:http".to_owned()));
    assert_eq!(world.owner(2), Some("default/young:http".to_owned()));
    world.remove("old");
    assert_eq!(world.owner(1), None);
    assert_eq!(world.state.take_dirty(world.now), BTreeSet::from([ServiceKey::new("default", "young")]));
    world.want("young", 20, unit(&[(1, 1)], &[(1, List::Cluster), (2, List::Cluster)]));
    assert_eq!(world.owner(1), Some("default/young:http".to_owned()));
}

/// A frontend with source ranges.
fn restricted(n: u8, ranges: &[&str]) -> Unit {
    let mut desired = unit(&[(1, 1)], &[(n, List::Cluster)]);
    if !ranges.is_empty() {
        desired.frontends.get_mut(&key(n)).unwrap().flags = frontend_flags::SOURCE_RANGES;
    }
    desired.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    desired
}

/// The operations on ranges and frontends, in their order.
fn admissions(plan: &Plan) -> Vec<String> {
    let text = |operation: &Operation| match operation {
        Operation::UpsertSourceRange(key) => Some(format!("admit {}", key.range.address)),
        Operation::RemoveSourceRange(key) => Some(format!("shut out {}", key.range.address)),
        Operation::UpsertFrontend { frontend, .. } => Some(format!("frontend, flags {}", frontend.flags)),
        Operation::RemoveFrontend { .. } => Some("no frontend".into()),
        _ => None,
    };
    plan.operations.iter().filter_map(text).collect()
}

#[test]
fn rule_35_ranges_are_written_before_the_frontend_asks_for_them_and_removed_after() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, restricted(1, &[]));
    let steps: [(&[&str], &[&str]); 4] = [
        (&["192.0.2.0/24"], &["admit 192.0.2.0", "frontend, flags 16"]),
        (&["192.0.2.0/24", "198.51.100.0/24"], &["admit 198.51.100.0"]),
        (&["203.0.113.0/24", "198.51.100.0/24"], &["admit 203.0.113.0", "shut out 192.0.2.0"]),
        (&[], &["frontend, flags 0", "shut out 198.51.100.0", "shut out 203.0.113.0"]),
    ];
    for (ranges, expected) in steps {
        let plan = world.plan("web", 10, restricted(1, ranges));
        assert_eq!(admissions(&plan), expected);
        world.state.carry_out(plan, &mut world.fake, world.now).unwrap();
    }
}

#[test]
fn rule_35_ranges_are_adopted_and_go_with_their_service() {
    let mut world = World::new(Capacities::default());
    let desired = restricted(1, &["192.0.2.0/24", "192.0.2.7/32"]);
    world.want("web", 10, desired.clone());
    let text = world.fake.to_string();
    assert!(text.contains("source range 192.0.2.0/24 of service 1\nsource range 192.0.2.7/32 of service 1"), "{text}");
    world.restart();
    assert_eq!(world.plan("web", 10, desired).operations, []);
    world.remove("web");
    assert_eq!(world.fake.to_string(), "");
}

#[test]
fn rule_44_the_refusal_of_other_ports_goes_from_unit_to_unit_and_with_the_service() {
    let mut world = World::new(Capacities::default());
    let (web, refusal) = (ServiceKey::new("default", "web"), FrontendKey::any_port(frontend(1)));
    let mut first = unit(&[], &[(1, List::Cluster)]);
    first.frontends.insert(refusal, FrontendPlan::REFUSED);
    let mut second = unit(&[], &[]);
    second.frontends.insert(refusal, FrontendPlan::REFUSED);
    let second_id = UnitId { port_name: "https".into(), ..unit_id("web") };
    for desired in [BTreeMap::from([(unit_id("web"), first)]), BTreeMap::from([(second_id, second)])] {
        let plan = world.state.plan(&web, 10, &desired, world.now);
        world.state.carry_out(plan, &mut world.fake, world.now).unwrap();
        let held = world.fake.dump().frontends[&refusal];
        assert_eq!((held.flags, held.targets), (0, Default::default()));
        world.restart();
        assert_eq!(world.state.plan(&web, 10, &desired, world.now).operations, []);
    }
    let text = world.fake.to_string();
    assert!(text.contains("frontend all of 10.96.0.1 -> service 2, internal nothing, external nothing\n"), "{text}");
    world.remove("web");
    assert_eq!(world.fake.to_string(), "");
}

#[test]
fn rule_56_a_backend_tells_in_which_lists_it_is_and_a_frontend_which_list_serves() {
    let mut world = World::new(Capacities::default());
    let mut desired = unit(&[(1, 1), (2, 1)], &[(1, List::Cluster), (2, List::Local)]);
    desired.local = BTreeMap::from([(backend(2), 1)]);
    desired.backends.insert(backend(2), world::spec(true, true));
    desired.backends.insert(backend(3), world::spec(false, false));
    desired.affinity_secs = 60;
    world.want("web", 10, desired);
    let text = world.fake.to_string();
    for line in [
        "backend 1 10.0.0.1:8080 service 1 active in-cluster-list generation 0\n",
        "backend 2 10.0.0.2:8080 service 1 active local in-cluster-list in-local-list generation 0\n",
        "backend 3 10.0.0.3:8080 service 1 draining generation 0\n",
        ", affinity 59 ticks\n",
        ", affinity 59 ticks, internal-local, external-local\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_restart_with_unchanged_services_writes_nothing() {
    let mut world = World::new(Capacities::default());
    let mut mixed = unit(&[(1, 1), (2, 3)], &[(1, List::Cluster), (2, List::Local)]);
    mixed.local = BTreeMap::from([(backend(2), 3)]);
    world.want("web", 10, mixed.clone());
    world.want("none", 10, unit(&[], &[(3, List::Cluster)]));
    world.restart();
    assert_eq!(world.plan("web", 10, mixed.clone()).operations, []);
    assert_eq!(world.plan("none", 10, unit(&[], &[(3, List::Cluster)])).operations, []);
    assert_eq!(world.plan("web", 10, mixed).operations, [], "and what was adopted is known by its list from then on");
}

#[test]
fn a_restart_finds_what_a_dead_agent_left_unfinished() {
    let desired = unit(&[(2, 1)], &[(2, List::Cluster)]);
    for writes in 0..12 {
        let mut world = World::new(Capacities::default());
        world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
        world.fake.fail_after(writes);
        world.want("web", 10, desired.clone());
        world.restart();
        world.want("web", 10, desired.clone());
        assert_eq!(world.fake.dump().frontends.keys().collect::<Vec<_>>(), [&key(2)], "after {writes} writes");
        let live = world.fake.dump().backends.iter().filter(|backend| backend.state != 0).count();
        assert_eq!(live, 1, "after {writes} writes");
    }
}

#[test]
fn a_name_that_can_not_be_read_is_removed_with_the_absent() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
    let mut dump = world.fake.dump();
    dump.names.clear();
    world.state = State::adopt(dump, &Capacities::default());
    let absent: Vec<_> = world.state.services().collect();
    assert_eq!(absent, [ServiceKey::new("", "")]);
    let plan = world.state.plan(&absent[0], 0, &BTreeMap::new(), world.now);
    world.state.carry_out(plan, &mut world.fake, world.now).unwrap();
    assert!(world.fake.dump().frontends.is_empty());
}

#[test]
fn node_addresses_and_devices_pass_the_filter_and_are_followed() {
    let mut fake = Fake::new(small());
    let mut state = State::adopt(fake.dump(), &small());
    let addresses = BTreeSet::from([address(1), address(2)]);
    let operations = state.plan_node_addresses(&addresses);
    assert!(state.carry_out_each(&operations, &mut fake).is_empty());
    assert_eq!(state.plan_node_addresses(&addresses), []);
    let interface = Interface {
        addresses: [address(3), Address::UNSPECIFIED],
        mac: [2; 6],
        role: role::UPLINK,
        ..Interface::default()
    };
    let operations = state.plan_interfaces(&BTreeMap::from([(7, interface)]));
    assert!(state.carry_out_each(&operations, &mut fake).is_empty());
    assert_eq!(fake.to_string(), "node address 10.0.0.1\nnode address 10.0.0.2\ninterface 7 uplink 10.0.0.3\n");
    for n in 1..=3 {
        assert!(fake.dump().filter.contains(Concern::Node(address(n))));
        assert!(!fake.dump().filter.contains(Concern::ClusterIp(address(n))));
    }
    let restarted = State::adopt(fake.dump(), &small());
    assert_eq!(restarted.plan_node_addresses(&addresses), []);
    assert_eq!(
        restarted.plan_node_addresses(&BTreeSet::from([address(2)])),
        [Operation::RemoveNodeAddress(address(1))]
    );
    assert_eq!(restarted.plan_interfaces(&BTreeMap::new()), [Operation::RemoveInterface { ifindex: 7 }]);
}

/// With `--max-flows 4` a family that is there was taken for one that is not.
#[test]
fn no_flow_table_is_as_small_as_that_of_a_family_that_is_not_there() {
    for flows in [0, 1, 4, 5, 8, 9] {
        let capacities = Capacities { flows, families: [true, false], ..Capacities::default() };
        let sets = [true, false].map(|is_v4| capacities.flow_sets(is_v4));
        assert_eq!(sets, [if flows > 8 { 4 } else { 2 }, Capacities::SETS_OF_NO_FAMILY], "{flows}");
    }
}

#[test]
fn a_failed_write_is_planned_again() {
    let mut fake = Fake::new(small());
    let mut state = State::adopt(fake.dump(), &small());
    let addresses = BTreeSet::from([address(1), address(2)]);
    fake.fail_after(1);
    let operations = state.plan_node_addresses(&addresses);
    assert_eq!(state.carry_out_each(&operations, &mut fake).len(), 1);
    let operations = state.plan_node_addresses(&addresses);
    assert!(state.carry_out_each(&operations, &mut fake).is_empty());
    assert_eq!(fake.dump().node_addresses.len(), 2);
}

#[test]
fn the_needed_filter_forgets_what_is_gone() {
    let mut world = World::new(Capacities::default());
    world.want("web", 10, unit(&[(1, 1)], &[(1, List::Cluster)]));
    world.want("web", 10, unit(&[(2, 1)], &[(2, List::Cluster)]));
    let backend = |n| Concern::Backend(address(n), 8080_u16.to_be(), protocol::TCP);
    assert!(world.fake.dump().filter.contains(backend(1)));
    let needed = world.state.needed_filter();
    assert!(!needed.contains(backend(1)));
    assert!(needed.contains(backend(2)));
    assert!(needed.contains(Concern::Frontend(frontend(2), 80_u16.to_be(), protocol::TCP)));
    assert_eq!(needed.counts(), [1, 1, 1, 1], "nothing else");
}
