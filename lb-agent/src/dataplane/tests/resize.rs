// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps of another size, and what an agent of another layout has left.

use super::*;

/// All sizes but those of the flow tables, `times` as large.
fn sized(capacities: Capacities, times: u32) -> Capacities {
    Capacities {
        frontends: capacities.frontends * times,
        backends: capacities.backends * times,
        table_slots: capacities.table_slots * times,
        services: capacities.services * times,
        source_ranges: capacities.source_ranges * times,
        affinity: capacities.affinity * times,
        fragments: capacities.fragments * times,
        interfaces: capacities.interfaces * times,
        node_addresses: capacities.node_addresses * times,
        sockets: capacities.sockets * times,
        ..capacities
    }
}

/// Writes a Service, with some of what programs write, and leaves it to the next agent.
fn leave_a_service(place: &Place) {
    let (web, now) = (ServiceKey::new("default", "web"), Instant::now());
    let mut dataplane = place.open();
    let mut state = State::adopt(dataplane.maps().dump().unwrap(), &dataplane.capacities());
    for last in [1, 2] {
        let plan = state.plan(&web, 10, &desired(last), now);
        state.carry_out(plan, &mut dataplane, now).unwrap();
    }
    let maps = dataplane.maps();
    let affinity = Affinity { backend: 2, generation: 0, last_used: 7 };
    maps.affinity.insert(&bytemuck::Zeroable::zeroed(), &affinity).unwrap();
    maps.sockets.insert(&9, &bytemuck::Zeroable::zeroed()).unwrap();
    maps.backend_counters.elements(2).for_each(|words| words[0].store(5, Ordering::Relaxed));
}

#[test]
fn maps_get_another_size_in_place_with_all_that_they_hold() {
    let Some(mut place) = Place::new("sizes") else { return };
    leave_a_service(&place);
    let before = place.open().maps().dump().unwrap();
    let small = place.options.capacities;
    for capacities in [sized(small, 4), small] {
        place.options.capacities = capacities;
        let dataplane = place.open();
        assert_eq!(dataplane.capacities(), capacities);
        let dump = dataplane.maps().dump().unwrap();
        assert_eq!(dump, before);
        assert_eq!(dump.backends.iter().map(|backend| backend.generation).collect::<Vec<_>>(), [0, 1, 0]);
        let mut state = State::adopt(dump, &dataplane.capacities());
        let plan = state.plan(&ServiceKey::new("default", "web"), 10, &desired(2), Instant::now());
        assert_eq!(plan.operations, []);
        let maps = dataplane.maps();
        assert_eq!((maps.affinity.count().unwrap(), maps.sockets.count().unwrap()), (1, 1));
        let cpus = super::super::cpu_numbers().unwrap() as usize;
        assert_eq!(maps.backend_counters.get(2).map(|counters| counters.packets[0]).collect::<Vec<_>>(), vec![5; cpus]);
        assert!(!Pins::new(&place.options.bpffs).set_aside().maps().exists());
    }
}

#[test]
fn a_map_does_not_become_smaller_than_what_it_holds() {
    let Some(mut place) = Place::new("shrink") else { return };
    leave_a_service(&place);
    let small = place.options.capacities;
    // Index 2 is in use, and three source ranges are.
    place.options.capacities = Capacities { backends: 2, source_ranges: 2, frontends: 32, ..small };
    let dataplane = place.open();
    assert_eq!(dataplane.capacities(), Capacities { frontends: 32, ..small });
    assert_eq!(dataplane.maps().dump().unwrap().source_ranges.len(), 3);
}

/// What runs is replaced at once, and an agent that died on the way, or found no memory, has spoiled nothing.
#[test]
fn a_resize_that_came_to_no_end_is_begun_anew() {
    let Some(mut place) = Place::new("unfinished") else { return };
    let uplink = left_by_an_earlier_agent(&mut place);
    leave_a_service(&place);
    let before = place.open().maps().dump().unwrap();
    let pins = Pins::new(&place.options.bpffs);
    let door = pins.links().join(Door::TcIngress.pin_name(uplink));
    for name in [maps::BACKENDS, maps::BACKEND_COUNTERS] {
        super::super::resize::set_aside(&pins, name).unwrap();
    }
    // A new one has been pinned already, and is empty.
    fs::rename(pins.map(maps::SERVICE_COUNTERS), pins.map(maps::BACKENDS)).unwrap();
    let (_, program) = link(&door);
    let dataplane = place.open();
    assert_eq!(dataplane.maps().dump().unwrap(), before);
    assert_ne!(link(&door).1, program, "it may have run with the maps that are gone");
    drop(dataplane);

    let small = place.options.capacities;
    let (_, program) = link(&door);
    let too_many = Capacities { backends: u32::MAX, ..small };
    assert!(Dataplane::open(&Options { capacities: too_many, ..place.options.clone() }).is_err());
    assert_eq!(link(&door).1, program);
    let dataplane = place.open();
    assert_eq!((dataplane.capacities(), dataplane.maps().dump().unwrap()), (small, before));
}

#[test]
fn flow_tables_keep_their_capacities() {
    let Some(place) = Place::new("capacities") else { return };
    drop(place.open());
    let capacities = Capacities { flows: 256, ..place.options.capacities };
    let dataplane = Dataplane::open(&Options { capacities, ..place.options.clone() }).unwrap();
    assert_eq!(dataplane.capacities(), place.options.capacities);
}

#[test]
fn a_family_that_the_node_gets_later_gets_its_table_with_the_next_agent() {
    let Some(place) = Place::new("families") else { return };
    let with = |families| {
        let capacities = Capacities { families, ..place.options.capacities };
        let dataplane = Dataplane::open(&Options { capacities, ..place.options.clone() }).unwrap();
        [dataplane.maps().flows_v4.capacity(), dataplane.maps().flows_v6.capacity()]
    };
    assert_eq!(with([true, false]), [128, 4]);
    assert_eq!(with([true, true]), [128, 128]);
    assert_eq!(with([true, false]), [128, 128], "it may have flows");
}

#[test]
fn a_flow_table_without_its_key_is_made_anew() {
    let Some(place) = Place::new("key") else { return };
    let dataplane = place.open();
    let (config, slot) = (dataplane.config(), 3 * 8);
    let pins = Pins::new(&place.options.bpffs);
    let table = || Shared::<FlowSet<V4>>::open(&pins, maps::FLOWS_V4).unwrap();
    let found = || table().words()[slot].load(Ordering::Relaxed);
    table().words()[slot].store(1, Ordering::Relaxed);
    drop(dataplane);
    let dataplane = place.open();
    assert_eq!((dataplane.config().table_key, found()), (config.table_key, 1));
    drop(dataplane);
    fs::remove_file(pins.map(maps::CONFIG)).unwrap();
    let dataplane = place.open();
    assert_ne!(dataplane.config().table_key, config.table_key);
    assert_eq!(found(), 0);
}

/// The tables of layout 3 were LRU hashes: the choice of backends is carried over, the flows are counted.
#[test]
fn an_upgrade_keeps_the_seed_and_says_how_many_flows_it_loses() {
    let Some(place) = Place::new("layout-3") else { return };
    drop(place.open());
    let root = place.options.bpffs.clone();
    let own = root.join(format!("v{LAYOUT_VERSION}"));
    fs::remove_dir_all(&own).unwrap();
    let maps = root.join("v3/maps");
    fs::create_dir_all(&maps).unwrap();
    fs::create_dir_all(root.join("v3/links")).unwrap();
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    let config = make_map(&maps.join("CONFIG"), array, [4, 136, 1, BPF_F_MMAPABLE]);
    let mut value = [0_u8; 136];
    value[..16].copy_from_slice(bytemuck::bytes_of(&[5_u64, 6]));
    // SAFETY: the map has just been made with these sizes.
    unsafe { super::super::sys::update(config.as_fd(), &0_u32, &value) }.unwrap();
    for (name, flows) in [("FLOWS_V4", 6_u8), ("YOUNG_V4", 3)] {
        let map = make_map(&maps.join(name), bpf_map_type::BPF_MAP_TYPE_LRU_HASH, [16, 52, 64, 0]);
        for n in 0..flows {
            // SAFETY: as above.
            unsafe { super::super::sys::update(map.as_fd(), &[n; 16], &[n; 52]) }.unwrap();
        }
    }
    let mut dataplane = place.open();
    assert_eq!(dataplane.config().seed, [5, 6]);
    assert_eq!(dataplane.earlier_flows(), Some((3, 5)), "nine entries");
    let told: Vec<_> = Doors::take_over(&mut dataplane).iter().map(ToString::to_string).collect();
    assert!(told.len() == 1 && told[0].contains("the up to 5 flows of the maps of layout 3"), "{told:?}");
    assert_eq!(dataplane.earlier_flows(), None);
    drop(dataplane);
    assert_eq!(place.open().config().seed, [5, 6]);
}

/// Makes and pins a map.
fn make_map(path: &Path, map_type: bpf_map_type, [key_size, value_size, max_entries, flags]: [u32; 4]) -> OwnedFd {
    let info = MapInfo { map_type: map_type as u32, id: 0, key_size, value_size, max_entries, flags };
    let map = super::super::sys::create_map(&info).unwrap();
    super::super::sys::pin(map.as_fd(), path).unwrap();
    map
}

#[test]
fn counters_that_fit_no_more_are_made_anew() {
    let Some(place) = Place::new("counters") else { return };
    drop(place.open());
    let pin = |name| Pins::new(&place.options.bpffs).map(name);
    // The backends are more than before; and where the Services' counters should be is a map of another shape.
    fs::remove_file(pin(maps::BACKENDS)).unwrap();
    fs::rename(pin(maps::REASONS), pin(maps::SERVICE_COUNTERS)).unwrap();
    let capacities = Capacities { backends: 128, ..place.options.capacities };
    let dataplane = Dataplane::open(&Options { capacities, ..place.options.clone() }).unwrap();
    assert_eq!(dataplane.capacities(), capacities);
    let cpus = super::super::cpu_numbers().unwrap() as usize;
    let Maps { reasons, backend_counters, service_counters, .. } = dataplane.maps();
    assert!(reasons.get(u32::MAX).unwrap().is_empty(), "a reason of another version is no error");
    assert_eq!([127, 128].map(|index| backend_counters.get(index).count()), [cpus, 0]);
    assert_eq!([31, 32].map(|index| service_counters.get(index).count()), [cpus, 0]);
}
