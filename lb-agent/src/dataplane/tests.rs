// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real thing on the kernel of this machine: needs root and the built object, and is skipped without, saying so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use lb_common::{
    address::V4,
    config::{Config, PortRange, role},
    filter::Concern,
    flow::{Control, Entry, FlowState, flow_flags, protocol},
    frontend::{Affinity, FrontendKey},
    maps::{self, FlowSet, LAYOUT_VERSION},
};
use nix::sched::{CloneFlags, unshare};

use super::{
    Capacities, Census, Dataplane, Door, Maps, OpenError, Options, PinError, Pins, SocketOptions, XdpMode,
    maps::Shared, sys::MapInfo,
};
use crate::{
    compile::{BackendKey, BackendSpec, FrontendPlan, List, ServiceKey, Unit, UnitId},
    diff::State,
    node::{roles::Duty, state::VETH},
    sync::doors::Doors,
};

/// A directory of pins and a network namespace of this thread's own.
pub struct Place {
    pub options: Options,
}

impl Place {
    /// `None`, with a word on standard error, where the test can't run.
    pub fn new(test: &str) -> Option<Self> {
        if !super::capabilities::missing().is_empty() || super::load::is_empty() {
            eprintln!("skipped: {test} needs root and the eBPF object");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/shunt-test-{}-{test}", std::process::id()));
        let capacities = Capacities {
            frontends: 64,
            backends: 64,
            table_slots: 4096,
            flows: 128,
            families: [true; 2],
            services: 32,
            source_ranges: 16,
            affinity: 128,
            fragments: 128,
            interfaces: 16,
            node_addresses: 16,
            sockets: 16,
        };
        Some(Self {
            options: Options { bpffs, capacities, xdp: XdpMode::Auto, sockets: SocketOptions::OFF, log: false },
        })
    }

    pub fn open(&self) -> Dataplane {
        Dataplane::open(&self.options).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only what this test has made: its own directory of pins.
        let _ = fs::remove_dir_all(&self.options.bpffs);
    }
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Index of a device.
pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn pins_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A Service of one unit: 10.96.0.1:80/TCP, and one backend on this node, 10.0.0.`last`:8080.
pub fn desired(last: u8) -> BTreeMap<UnitId, Unit> {
    let backend = BackendKey { address: Ipv4Addr::new(10, 0, 0, last).into(), port: 8080 };
    let key = FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80_u16.to_be(), protocol::TCP);
    let id = UnitId {
        namespace: "default".into(),
        name: "web".into(),
        port_name: "http".into(),
        protocol: protocol::TCP,
        is_v4: true,
    };
    let unit = Unit {
        backends: BTreeMap::from([(backend, BackendSpec { active: true, local: true })]),
        cluster: BTreeMap::from([(backend, 1)]),
        frontends: BTreeMap::from([(key, FrontendPlan { internal: List::Cluster, external: List::Cluster, flags: 0 })]),
        source_ranges: ["192.0.2.0/24", "192.0.2.7/32", "2001:db8::/48"].map(|range| range.parse().unwrap()).into(),
        ..Unit::default()
    };
    BTreeMap::from([(id, unit)])
}

#[test]
fn what_is_written_is_adopted_after_a_restart() {
    let Some(place) = Place::new("adopted") else { return };
    let (web, now) = (ServiceKey::new("default", "web"), Instant::now());
    let mut dataplane = place.open();
    let mut state = State::adopt(dataplane.maps().dump().unwrap(), &dataplane.capacities());
    for last in [1, 2] {
        let plan = state.plan(&web, 10, &desired(last), now);
        state.carry_out(plan, &mut dataplane, now).unwrap();
    }
    assert_ne!(dataplane.config().table_key, [0; 2]);
    let source_ports = [PortRange { first: 61_000, last: 61_009 }, PortRange::default()];
    let config = Config { seed: [1, 2], next_hop_generation: u32::MAX, source_ports, ..dataplane.config() };
    dataplane.set_config(&config);
    dataplane.bump_next_hops();
    drop(dataplane);

    let dataplane = place.open();
    assert_eq!(dataplane.config(), Config { next_hop_generation: 1, ..config });
    let dump = dataplane.maps().dump().unwrap();
    for (port, passes) in [(61_000, true), (61_009, true), (61_010, false)] {
        assert_eq!(dump.filter.contains(Concern::NodePort(port, protocol::SCTP)), passes, "{port}");
    }
    assert_eq!(dump.frontends.len(), 1);
    assert_eq!(dump.source_ranges.len(), 3);
    assert_eq!(dump.backends.iter().map(|backend| backend.generation).collect::<Vec<_>>(), [0, 1, 0]);
    let backend = |last| Concern::Backend(Ipv4Addr::new(10, 0, 0, last).into(), 8080_u16.to_be(), protocol::TCP);
    let frontend = Concern::Frontend(Ipv4Addr::new(10, 96, 0, 1).into(), 80_u16.to_be(), protocol::TCP);
    assert!([frontend, backend(1), backend(2)].into_iter().all(|concern| dump.filter.contains(concern)));
    let mut state = State::adopt(dump, &dataplane.capacities());
    assert_eq!(state.plan(&web, 10, &desired(2), now).operations, []);

    let swept = dataplane.maps().sweep_filter(&state.needed_filter());
    assert_eq!(dataplane.maps().filter(), swept);
    assert!(swept.contains(backend(2)) && !swept.contains(backend(1)));
    let counters = dataplane.maps().counters().unwrap();
    assert_eq!((counters.services.len(), counters.backends.len()), (1, 1));
    assert_eq!(dataplane.maps().census().unwrap(), Census::default());
}

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
        let cpus = super::cpu_numbers().unwrap() as usize;
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
        super::resize::set_aside(&pins, name).unwrap();
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
fn the_programs_tell_the_time() {
    let Some(place) = Place::new("time") else { return };
    let dataplane = place.open();
    let ticker = &dataplane.maps().ticker;
    let (start, before) = (Instant::now(), ticker.now().unwrap());
    std::thread::sleep(Duration::from_millis(200));
    let (after, most) = (ticker.now().unwrap(), start.elapsed());
    let jiffies = u128::from(after.jiffy.wrapping_sub(before.jiffy));
    let hz = u128::from(ticker.clock().hz());
    assert!(
        jiffies + 2 >= hz / 5 && jiffies <= most.as_nanos() * hz / 1_000_000_000 + 2,
        "{jiffies} jiffies in {most:?}"
    );
}

/// What has expired stays where it is until somebody needs the place.
#[test]
fn flows_are_read_from_the_programs_memory_without_those_that_have_expired() {
    let Some(place) = Place::new("flows") else { return };
    let mut dataplane = place.open();
    let mut config = dataplane.config();
    config.timeouts[FlowState::ESTABLISHED.index()] = 80;
    dataplane.set_config(&config);
    let table = Shared::<FlowSet<V4>>::open(&Pins::new(&place.options.bpffs), maps::FLOWS_V4).unwrap();
    let tick = dataplane.maps().ticker.now().unwrap().tick;
    // Up to an eighth of the time-out, and at most eight ticks, may be missing from one direction's time.
    for (slot, idle, flags) in [(5, 0, 0), (6, 85, flow_flags::REPLY), (64, 89, 0)] {
        let control = Control::from_bits(0).claimed().published(FlowState::ESTABLISHED, flags, tick.wrapping_sub(idle));
        let start = slot * size_of::<Entry<V4>>() / size_of::<u64>();
        table.long_words()[start].store(control.to_bits(), Ordering::Release);
    }
    let flows: Vec<_> = dataplane.maps().flows().unwrap().collect();
    assert_eq!(flows.iter().map(|flow| flow.flags & flow_flags::REPLY).collect::<Vec<_>>(), [0, flow_flags::REPLY]);
    assert!((85..88).contains(&flows[1].idle_ticks), "{flows:?}");
    let census = dataplane.maps().census().unwrap();
    assert_eq!((census.entries, census.flows), ([2, 0], [1, 0]));
    let usage = dataplane.maps().usage(&Pins::new(&place.options.bpffs)).unwrap();
    let usage = usage.into_iter().find(|usage| usage.name == maps::FLOWS_V4).unwrap();
    assert_eq!((usage.entries, usage.capacity), (Some(2), 128));
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
    unsafe { super::sys::update(config.as_fd(), &0_u32, &value) }.unwrap();
    for (name, flows) in [("FLOWS_V4", 6_u8), ("YOUNG_V4", 3)] {
        let map = make_map(&maps.join(name), bpf_map_type::BPF_MAP_TYPE_LRU_HASH, [16, 52, 64, 0]);
        for n in 0..flows {
            // SAFETY: as above.
            unsafe { super::sys::update(map.as_fd(), &[n; 16], &[n; 52]) }.unwrap();
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
    let map = super::sys::create_map(&info).unwrap();
    super::sys::pin(map.as_fd(), path).unwrap();
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
    let cpus = super::cpu_numbers().unwrap() as usize;
    let Maps { reasons, backend_counters, service_counters, .. } = dataplane.maps();
    assert!(reasons.get(u32::MAX).unwrap().is_empty(), "a reason of another version is no error");
    assert_eq!([127, 128].map(|index| backend_counters.get(index).count()), [cpus, 0]);
    assert_eq!([31, 32].map(|index| service_counters.get(index).count()), [cpus, 0]);
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    let Some(place) = Place::new("second") else { return };
    let _first = place.open();
    let error = Dataplane::open(&place.options).err().unwrap();
    assert!(matches!(error, OpenError::Pin(PinError::Locked { pid: Some(pid), .. }) if pid == std::process::id()));
}

#[test]
fn links_outlive_the_agent_and_get_its_successor_s_programs() {
    let Some(place) = Place::new("links") else { return };
    ip("link add uplink type veth peer name pod");
    let (uplink, pod) = (ifindex("uplink"), ifindex("pod"));
    let mut dataplane = place.open();
    let attachment = dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    assert!(attachment.has_tc_links && attachment.xdp.is_err(), "{attachment}");
    dataplane.attach(pod, "pod", Duty { role: role::POD, is_main: false }, VETH).unwrap();
    drop(dataplane);

    let links = Pins::new(&place.options.bpffs).links();
    let tc = |ifindex| [Door::TcEgress, Door::TcIngress].map(|door| door.pin_name(ifindex));
    let mut expected: Vec<_> = tc(uplink).into_iter().chain(tc(pod)).collect();
    expected.sort();
    assert_eq!(pins_in(&links), expected);

    let driver = Options { xdp: XdpMode::Driver, ..place.options.clone() };
    let mut dataplane = Dataplane::open(&driver).unwrap();
    assert_eq!(dataplane.attached(), BTreeSet::from([uplink, pod]));
    let attachment = dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    assert!(attachment.is_native_xdp(), "{attachment}");
    dataplane.detach(pod);
    assert_eq!(dataplane.attached(), BTreeSet::from([uplink]));
    drop(dataplane);

    ip("link del uplink");
    assert_eq!(place.open().attached(), BTreeSet::new());
    assert!(pins_in(&links).is_empty());
}

/// What the kernel says of a pinned link: its device and its program.
fn link(path: &Path) -> (u32, u32) {
    let info = super::sys::link_info(super::sys::open_pin(path).unwrap().as_fd()).unwrap();
    (info.ifindex, info.program_id)
}

/// A device with all programs, whose agent has gone.
fn left_by_an_earlier_agent(place: &mut Place) -> u32 {
    place.options.xdp = XdpMode::Generic;
    ip("link add uplink type veth peer name pod");
    let uplink = ifindex("uplink");
    place.open().attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    uplink
}

#[test]
fn programs_of_another_layout_run_on_until_they_are_taken_over() {
    let Some(mut place) = Place::new("upgrade") else { return };
    let uplink = left_by_an_earlier_agent(&mut place);
    let root = place.options.bpffs.clone();
    let ours = format!("v{LAYOUT_VERSION}");
    for layout in ["v0", &ours] {
        if layout != ours {
            fs::rename(root.join(&ours), root.join(layout)).unwrap();
        }
        let doors = [Door::TcIngress, Door::TcEgress, Door::XdpGeneric].map(|door| door.pin_name(uplink));
        let pin = |layout: &str, door: &String| root.join(layout).join("links").join(door);
        let before = doors.each_ref().map(|door| link(&pin(layout, door)));

        let mut dataplane = place.open();
        assert_eq!(dataplane.attached(), BTreeSet::from([uplink]));
        // `get` and `trace` would look at maps that serve nobody.
        let serves = Pins::new(&root).check_serving();
        match serves {
            Ok(()) => assert_eq!(layout, ours),
            Err(error) => assert!(error.to_string().starts_with(&format!("{}/v0 serves, ", root.display())), "{error}"),
        }
        dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        assert_eq!(doors.each_ref().map(|door| link(&pin(layout, door))), before, "they run on as they are");

        assert!(dataplane.take_over().is_empty());
        for (door, (_, program)) in doors.iter().zip(before) {
            let (device, new_program) = link(&pin(&ours, door));
            assert!(device == uplink && new_program != program, "{door} of {layout}");
        }
        assert_eq!(pins_in(&root), [ours.as_str()]);
        Pins::new(&root).check_serving().unwrap();
        assert_eq!(dataplane.attached(), BTreeSet::from([uplink]));
    }
}

#[test]
fn a_device_that_comes_back_under_its_old_index_is_attached_anew() {
    let Some(place) = Place::new("again") else { return };
    let mut dataplane = place.open();
    for _ in 0..2 {
        ip("link add uplink index 77 type veth peer name pod");
        dataplane.attach(77, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        let pins = Pins::new(&place.options.bpffs);
        assert_eq!(link(&pins.links().join(Door::TcIngress.pin_name(77))).0, 77);
        ip("link del uplink");
    }
}

#[test]
fn a_link_that_takes_no_new_program_runs_until_there_is_another() {
    let Some(mut place) = Place::new("refusal") else { return };
    let uplink = left_by_an_earlier_agent(&mut place);
    let pin = |door: Door| Pins::new(&place.options.bpffs).links().join(door.pin_name(uplink));
    // A TC link under the name of an XDP link refuses the XDP program; and there is an XDP program already.
    fs::rename(pin(Door::TcEgress), pin(Door::XdpDriver)).unwrap();
    let mut dataplane = place.open();
    let refused: Vec<_> = dataplane.take_over().iter().map(ToString::to_string).collect();
    assert!(refused.len() == 1 && refused[0].starts_with("XDP in the driver on uplink: "), "{refused:?}");
    assert_eq!(link(&pin(Door::XdpDriver)).0, uplink, "it still runs");
    drop(dataplane);

    // An XDP link under the name of a TC link refuses the TC program; TC has room for a second link.
    fs::rename(pin(Door::XdpGeneric), pin(Door::TcEgress)).unwrap();
    let (_, program) = link(&pin(Door::TcEgress));
    fs::remove_file(pin(Door::XdpDriver)).unwrap();
    let mut dataplane = place.open();
    assert!(dataplane.take_over().is_empty());
    let (device, new_program) = link(&pin(Door::TcEgress));
    assert!(device == uplink && new_program != program);
}

#[test]
fn xdp_changes_its_mode_with_the_flag() {
    let Some(place) = Place::new("mode") else { return };
    ip("link add uplink type veth peer name pod");
    let uplink = ifindex("uplink");
    let modes = [
        (XdpMode::Driver, Some(Door::XdpDriver)),
        (XdpMode::Generic, Some(Door::XdpGeneric)),
        (XdpMode::Auto, None),
        (XdpMode::Generic, Some(Door::XdpGeneric)),
        (XdpMode::Off, None),
    ];
    for (xdp, door) in modes {
        let mut dataplane = Dataplane::open(&Options { xdp, ..place.options.clone() }).unwrap();
        let attachment = dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        assert_eq!(attachment.xdp.ok(), door, "{xdp:?}");
    }
}

/// Frames in several buffers are for TC: XDP sees one page. `--xdp auto` makes do with that, and says so.
#[test]
fn jumbo_frames_are_left_to_tc() {
    let Some(place) = Place::new("jumbo") else { return };
    ip("link add uplink mtu 9000 type veth peer name pod mtu 9000");
    let uplink = ifindex("uplink");
    let kind_with_xdp = "";
    let attachment =
        place.open().attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, kind_with_xdp).unwrap();
    assert!(attachment.to_string().contains("no XDP (") && attachment.to_string().contains("MTU"), "{attachment}");
    let mut dataplane = Dataplane::open(&Options { xdp: XdpMode::Driver, ..place.options.clone() }).unwrap();
    let error =
        dataplane.attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, kind_with_xdp).unwrap_err();
    assert!(error.to_string().contains("MTU") && error.remedy().contains("--xdp auto"), "{error}");
}

#[test]
fn what_is_no_ethernet_device_or_has_gone_is_named() {
    let Some(place) = Place::new("devices") else { return };
    let mut dataplane = place.open();
    let error = dataplane.attach(1, "lo", Duty { role: role::UPLINK, is_main: true }, "").unwrap_err();
    assert!(error.to_string().contains("lo is no Ethernet device"), "{error}");
    let error = dataplane.attach(99, "nowhere", Duty { role: role::UPLINK, is_main: true }, "").unwrap_err();
    assert!(error.to_string().contains("nowhere (index 99) has gone"), "{error}");
}

#[test]
fn filters_serve_where_links_are_unknown() {
    let Some(place) = Place::new("filters") else { return };
    ip("link add uplink type veth peer name pod");
    let device = ifindex("uplink");
    let mut dataplane = place.open();
    let Dataplane { ebpf, .. } = &mut dataplane;
    let pins = Pins::new(&place.options.bpffs);
    super::filters::attach(ebpf, &pins, "uplink", device).unwrap();
    drop(dataplane);
    let mut dataplane = place.open();
    assert_eq!(dataplane.attached(), BTreeSet::from([device]));
    let attachment = dataplane.attach(device, "uplink", Duty { role: role::POD, is_main: false }, VETH).unwrap();
    assert!(!attachment.has_tc_links);
    dataplane.detach(device);
    assert!(super::filters::detach("uplink").is_empty(), "nothing is left");
    assert_eq!(dataplane.attached(), BTreeSet::new());
}

#[test]
fn cleanup_removes_all_that_was_made() {
    let Some(place) = Place::new("cleanup") else { return };
    let root = &place.options.bpffs;
    ip("link add uplink type veth peer name pod");
    let mut dataplane = place.open();
    dataplane.attach(ifindex("uplink"), "uplink", Duty { role: role::POD, is_main: false }, VETH).unwrap();
    super::filters::attach(&mut dataplane.ebpf, &Pins::new(root), "pod", ifindex("pod")).unwrap();
    let refused = super::remove_all(root, false, &mut |_| {}).unwrap_err();
    assert!(refused.to_string().starts_with("another agent"), "{refused}");
    drop(dataplane);
    fs::create_dir_all(root.join("v0/maps")).unwrap();

    let items = |dry_run| {
        let mut items = Vec::new();
        super::remove_all(root, dry_run, &mut |item| items.push(item.to_string())).unwrap();
        items.retain(|item| !item.starts_with("directory"));
        items
    };
    let announced = items(true);
    assert!(announced.iter().any(|item| item.ends_with(&format!("tc-ingress-{} (on uplink)", ifindex("uplink")))));
    assert!(announced.contains(&"TC filters on pod".to_owned()));
    assert_eq!(announced.len(), 2 + 1 + 4 + lb_common::maps::PINNED.len());
    assert_eq!(items(false), announced);
    assert!(!root.exists());
    assert!(items(false).is_empty());
}

/// An upgrade that never got to its first sync leaves two layouts, and on kernels before 6.6 marks in both.
#[test]
fn cleanup_gets_past_the_marks_of_another_layout() {
    let Some(place) = Place::new("marks") else { return };
    let root = &place.options.bpffs;
    drop(place.open());
    let nowhere = 4_000_000;
    for layout in ["v0", &format!("v{LAYOUT_VERSION}"), "v99"] {
        fs::create_dir_all(super::filters::mark(&root.join(layout).join("links"), nowhere)).unwrap();
    }
    super::remove_all(root, true, &mut |_| {}).unwrap();
    super::remove_all(root, false, &mut |_| {}).unwrap();
    assert!(!root.exists());
}

#[test]
fn a_directory_elsewhere_gets_a_bpffs_of_its_own() {
    let Some(place) = Place::new("elsewhere") else { return };
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("pins");
    let options = Options { bpffs: root.clone(), ..place.options.clone() };
    drop(Dataplane::open(&options).unwrap());
    drop(Dataplane::open(&options).unwrap());
    let mut last = None;
    super::remove_all(&root, false, &mut |item| last = Some(item.clone())).unwrap();
    assert_eq!(last, Some(super::Item::Mount(root.clone())));
    assert!(fs::read_dir(&root).unwrap().next().is_none());
    let refused = super::remove_all(&root, false, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, PinError::NotBpffs { .. }));
}
