// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real thing on the kernel of this machine: needs root and the built object, and is skipped without, saying so.

mod links;
mod net;
mod resize;

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
    config::{Config, FIRST_GENERATION, PortRange, role},
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

/// A device with all programs, whose agent has gone.
fn left_by_an_earlier_agent(place: &mut Place) -> u32 {
    place.options.xdp = XdpMode::Generic;
    ip("link add uplink type veth peer name pod");
    let uplink = ifindex("uplink");
    place.open().attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
    uplink
}

/// What the kernel says of a pinned link: its device and its program.
fn link(path: &Path) -> (u32, u32) {
    let info = super::sys::link_info(super::sys::open_pin(path).unwrap().as_fd()).unwrap();
    (info.ifindex, info.program_id)
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
    assert_eq!(dataplane.config(), Config { next_hop_generation: FIRST_GENERATION, ..config });
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
fn a_second_agent_on_the_same_directory_is_refused() {
    let Some(place) = Place::new("second") else { return };
    let _first = place.open();
    let error = Dataplane::open(&place.options).err().unwrap();
    assert!(matches!(error, OpenError::Pin(PinError::Locked { pid: Some(pid), .. }) if pid == std::process::id()));
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
    assert_eq!(announced.len(), 2 + 1 + 6 + lb_common::maps::PINNED.len());
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
