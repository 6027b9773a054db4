// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loop, turn by turn, on fake maps and doors.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::NodeAddress;
use lb_common::{
    address::Address,
    config::{self, role},
    maps::{FRONTENDS, INTERFACES},
};
use nix::libc;
use tokio::sync::{mpsc, oneshot};

use super::{
    Devices, Inputs, Loop, LoopError, Maps, Services,
    doors::{Attached, DoorError, Doors},
};
use crate::{
    dataplane::{Audit, MapError, fake::Fake},
    diff::{Capacities, Dump, Filter, Operation, State, WriteError, Writer},
    hash_seed::HashSeed,
    health::Health,
    metrics::Metrics,
    model::{
        Model,
        builders::{deleted, endpoint, node, service, service_cidr, slice},
    },
    node::{
        addresses::NodePortAddresses,
        roles::{Duty, Selection},
        state::{Change, Link, LocalAddress, NodeState},
    },
    problem::Problem,
    source::{Event, Kind, Object},
};

mod audit;
mod devices;
mod frontends;
mod health;
mod neighbours;
mod net;
mod uplinks;
mod writes;

/// Maps in memory, and doors that only remember who was there.
#[derive(Debug, Default)]
struct FakeDoors {
    maps: Fake,
    attached: BTreeMap<u32, u16>,
    /// Devices for which programs were asked, in order.
    attachments: Vec<u32>,
    refuses: bool,
    is_policy_routed: bool,
    /// Whether routing rules counted, at each time that next hops began anew.
    bumps: Vec<bool>,
    next_hops: BTreeSet<(u32, [u8; 6])>,
    hash_seed: Option<HashSeed>,
    node_addresses: [Address; 2],
    net: config::Net,
    writes: usize,
    sweeps: usize,
    /// The maps at each time.
    take_overs: Vec<String>,
    has_no_socket_door: bool,
    /// What the next audit finds.
    audit: Audit,
    /// Nothing is attached before a word comes, if there is an end to send it.
    hold_up: Option<std::sync::mpsc::Receiver<()>>,
    /// What the kernel says to every write of a frontend, if not yes.
    refusal: Option<i32>,
}

impl Writer for FakeDoors {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        self.writes += 1;
        match (operation, self.refusal) {
            (Operation::UpsertFrontend { .. }, Some(code)) => {
                Err(WriteError::Refused { map: FRONTENDS, cause: io::Error::from_raw_os_error(code) })
            }
            _ => self.maps.write(operation),
        }
    }
}

impl Doors for FakeDoors {
    fn attach(&mut self, ifindex: u32, _link: &Link, duty: Duty) -> Result<Attached, DoorError> {
        if let Some(word) = self.hold_up.take() {
            let _ = word.recv();
        }
        if self.refuses {
            return Err(DoorError::Refused { cause: "no".into(), remedy: "ask again".into() });
        }
        self.attached.insert(ifindex, duty.role);
        self.attachments.push(ifindex);
        Ok(Attached { is_native_xdp: duty.role & role::UPLINK != 0 && duty.is_main, text: String::new() })
    }

    fn take_over(&mut self) -> Vec<Problem> {
        self.take_overs.push(self.maps.to_string());
        Vec::new()
    }

    fn is_socket_door_open(&self) -> bool {
        !self.has_no_socket_door && !self.take_overs.is_empty()
    }

    fn detach(&mut self, ifindex: u32) {
        self.attached.remove(&ifindex);
    }

    fn attached(&self) -> BTreeSet<u32> {
        self.attached.keys().copied().collect()
    }

    fn bump_next_hops(&mut self) {
        self.bumps.push(self.is_policy_routed);
    }

    fn set_policy_routing(&mut self, is_policy_routed: bool) {
        self.is_policy_routed = is_policy_routed;
    }

    fn next_hops(&self) -> BTreeSet<(u32, [u8; 6])> {
        self.next_hops.clone()
    }

    fn set_node_addresses(&mut self, addresses: [Address; 2]) {
        self.node_addresses = addresses;
    }

    fn net(&self) -> config::Net {
        self.net
    }

    fn set_net(&mut self, net: config::Net) {
        self.net = net;
    }

    fn set_hash_seed(&mut self, seed: HashSeed) {
        self.hash_seed = Some(seed);
    }

    fn audit(&mut self) -> Audit {
        std::mem::take(&mut self.audit)
    }

    fn holds(&self, operation: &Operation) -> Result<bool, MapError> {
        Ok(self.maps.holds(operation))
    }

    fn sweep_filter(&mut self, needed: &Filter) -> Filter {
        self.sweeps += 1;
        needed.clone()
    }
}

/// The test's world: a loop, and the time.
struct World {
    agent: Loop<FakeDoors>,
    health: Health,
    metrics: Metrics,
    now: Instant,
}

impl World {
    /// A node with an uplink and a pod's device, and with what an earlier agent left.
    fn new(doors: FakeDoors) -> Self {
        Self::answering_at(NodePortAddresses::default(), doors)
    }

    fn answering_at(node_ports: NodePortAddresses, doors: FakeDoors) -> Self {
        let mut node = NodeState::default();
        for (ifindex, name) in [(1, "lo"), (2, "eth0"), (3, "veth3")] {
            node.apply(Change::Link { ifindex, link: link(name) });
        }
        for (ifindex, ip) in [(1, "127.0.0.1"), (2, "192.0.2.1"), (2, "fd00::1")] {
            node.apply(Change::Address { ifindex, address: address(ip) });
        }
        node.apply(Change::DefaultDevices([2].into()));
        let dump: Dump = doors.maps.dump();
        let adopted = dump.interfaces.clone();
        let state = State::adopt(dump, &doors.maps.capacities());
        let selection = Selection { uplinks: Vec::new(), pods: vec!["veth*".parse().unwrap()] };
        let devices = Devices::new(node, selection, node_ports, adopted);
        let services = Services::new(Model::new("node-1".into()), "61000-65535".parse().unwrap());
        let health = Health::default();
        let metrics = Metrics::default();
        let agent = Loop::new(services, devices, Maps { state, doors }, health.clone(), metrics.clone());
        Self { agent, health, metrics, now: Instant::now() }
    }

    fn event(&mut self, event: Event) -> &mut Self {
        self.events([event])
    }

    fn events(&mut self, events: impl IntoIterator<Item = Event>) -> &mut Self {
        events.into_iter().for_each(|event| self.agent.take_event(event, self.now));
        self
    }

    fn change(&mut self, change: Change) -> &mut Self {
        self.agent.devices.take_change(change);
        self
    }

    /// Turns until nothing is left to do at once.
    fn settle(&mut self) -> Option<Instant> {
        loop {
            let wake_at = self.agent.turn(self.now);
            if wake_at.is_none_or(|at| at > self.now) {
                return wake_at;
            }
        }
    }

    fn doors(&mut self) -> &mut FakeDoors {
        &mut self.agent.maps.doors
    }

    fn text(&self) -> String {
        self.agent.maps.doors.maps.to_string()
    }

    fn into_doors(self) -> FakeDoors {
        self.agent.maps.doors
    }
}

fn fake_doors() -> FakeDoors {
    FakeDoors { maps: Fake::new(Capacities::default()), ..FakeDoors::default() }
}

fn link(name: &str) -> Link {
    let is_loopback = name == "lo";
    Link { name: name.into(), is_ethernet: !is_loopback, is_loopback, is_up: true, ..Link::default() }
}

fn address(ip: &str) -> LocalAddress {
    LocalAddress { ip: ip.parse().unwrap(), is_global: true, is_secondary: false }
}

fn web() -> [Event; 2] {
    let slice = slice("web-1", "web").tcp("http", 8080).with(endpoint("10.0.0.1")).with(endpoint("10.0.0.2"));
    [service("web").tcp("http", 80).applied(), slice.applied()]
}

#[test]
fn rule_7_nothing_of_a_service_is_written_before_the_sources_have_synced() {
    let mut world = World::new(fake_doors());
    world.events(web()).settle();
    assert!(!world.text().contains("frontend"), "{}", world.text());
    assert!(!world.health.is_synced());
    world.event(Event::Synced).settle();
    assert!(world.text().contains("frontend 10.96.0.1:80/TCP"), "{}", world.text());
    assert!(world.health.is_synced());
}

/// Thread cilium 27215.
#[test]
fn pitfall_2_a_restart_removes_what_has_gone_only_after_the_sources_have_synced() {
    let mut before = World::new(fake_doors());
    before.events(web());
    before.event(service("old").cluster_ips(&["10.96.0.9"]).tcp("http", 80).applied()).event(Event::Synced).settle();

    let mut doors = before.into_doors();
    doors.writes = 0;
    let mut after = World::new(doors);
    after.settle();
    after.events(web());
    after.settle();
    assert!(after.text().contains("10.96.0.9"));
    assert_eq!(after.doors().writes, 2, "filter bits of the local addresses, which are not looked up first");

    after.event(Event::Synced).settle();
    assert!(!after.text().contains("10.96.0.9"), "{}", after.text());
    assert!(after.text().contains("10.96.0.1"), "{}", after.text());
}

/// Maps as an agent leaves them that knew `web` and `old`.
fn doors_with_web_and_old() -> FakeDoors {
    let mut before = World::new(fake_doors());
    before.events(web()).event(service("old").cluster_ips(&["10.96.0.9"]).tcp("http", 80).applied());
    before.event(Event::Synced).settle();
    before.into_doors()
}

#[test]
fn a_file_broken_before_a_restart_takes_no_service_away() {
    let mut world = World::new(doors_with_web_and_old());
    let before = world.text();
    world.event(Event::Incomplete(true)).event(Event::Synced).settle();
    assert_eq!(frontends(&world.text()), frontends(&before), "nothing is told of either");
    let [service, slice] = web();
    world.event(service).settle();
    assert!(world.text().contains("10.0.0.1"), "the endpoints may stand in the broken file: {}", world.text());
    world.event(slice).event(Event::Incomplete(false)).settle();
    assert!(world.text().contains("10.96.0.1:80") && !world.text().contains("10.96.0.9"), "{}", world.text());
}

#[test]
fn programs_of_an_earlier_agent_run_on_until_the_maps_are_complete() {
    // Maps of another layout have been made anew: nothing in them says that there was an agent before.
    let doors = FakeDoors { attached: BTreeMap::from([(5, role::UPLINK)]), ..fake_doors() };
    let mut world = World::new(doors);
    world.change(Change::Link { ifindex: 5, link: Link { kind: "dummy".into(), ..link("eth5") } });
    world.events(web()).settle();
    assert_eq!((world.doors().take_overs.len(), world.doors().attached.get(&5)), (0, Some(&role::UPLINK)));
    world.event(Event::Synced).settle();
    assert_eq!((world.doors().take_overs.len(), world.doors().attached.get(&5)), (1, None));
    assert!(world.doors().take_overs[0].contains("frontend 10.96.0.1:80/TCP"), "{}", world.doors().take_overs[0]);
    world.event(deleted(Kind::Service, "web")).settle();
    assert_eq!(world.doors().take_overs.len(), 1);
}

#[test]
fn a_service_deleted_while_another_file_is_broken_goes() {
    let mut world = World::new(doors_with_web_and_old());
    let [service, _] = web();
    world.event(service).event(Event::Incomplete(true)).event(Event::Synced).settle();
    world.event(deleted(Kind::Service, "web")).settle();
    assert!(!world.text().contains("10.96.0.1:80") && world.text().contains("10.96.0.9"), "{}", world.text());
}

#[test]
fn a_service_made_impossible_before_a_restart_stays_as_it_was() {
    let mut world = World::new(doors_with_web_and_old());
    let before = world.text();
    let bad = service("old").cluster_ips(&["10.96.0.9"]).tcp("http", 80).tcp("more", 70_000);
    world.events(web()).event(bad.applied()).event(Event::Synced).settle();
    assert_eq!(frontends(&world.text()), frontends(&before));
    assert_eq!(world.agent.reporter.standing(), 1);
    world.event(service("old").cluster_ips(&["10.96.0.8"]).tcp("http", 80).applied()).settle();
    assert!(world.text().contains("10.96.0.8:80") && !world.text().contains("10.96.0.9"), "{}", world.text());
    assert_eq!(world.agent.reporter.standing(), 0);
}

/// It used to stay as it was found until an endpoint went: more of them were not followed, on nodes whose agent was restarted.
#[test]
fn a_bad_annotation_met_at_the_start_holds_nothing_but_itself() {
    let removal =
        |value: &str| service("web").tcp("http", 80).annotation("shunt.dev/on-backend-removal", value).applied();
    let slice_of = |ips: &[&str]| {
        let slice = slice("web-1", "web").tcp("http", 8080);
        ips.iter().fold(slice, |slice, ip| slice.with(endpoint(ip))).applied()
    };
    let mut before = World::new(fake_doors());
    before.event(removal("reset")).event(slice_of(&["10.0.0.1"])).event(Event::Synced).settle();
    let mut world = World::new(before.into_doors());
    world.event(removal("Reset")).event(slice_of(&["10.0.0.1", "127.0.0.1", "10.0.0.2"])).event(Event::Synced).settle();
    let text = world.text();
    assert!(text.contains("10.0.0.2:8080") && text.contains("reset-on-removal"), "{text}");
    assert_eq!(world.agent.reporter.standing(), 2);
    world.event(removal("keep")).settle();
    assert!(!world.text().contains("reset-on-removal"));
}

fn frontends(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("frontend ")).collect()
}

/// Threads cilium 23604, 33723 and 42870.
#[test]
fn pitfall_6_a_node_port_among_the_source_ports_is_reported() {
    let mut world = World::new(fake_doors());
    world.event(service("web").of_type("NodePort").tcp("http", 80).node_port(61_001).applied());
    world.event(Event::Synced).settle();
    assert_eq!(world.agent.reporter.standing(), 1);
    world.event(deleted(Kind::Service, "web")).settle();
    assert_eq!(world.agent.reporter.standing(), 0);
}

#[test]
fn the_filter_is_swept_hourly_but_only_when_too_much_has_gathered() {
    let mut world = World::new(fake_doors());
    world.event(Event::Synced).settle();
    let an_hour = Duration::from_secs(3600);
    for (services, sweeps) in [(10, 0), (5000, 1), (0, 1)] {
        let ip = |index: u32| format!("10.{}.{}.{}", 96 + (index >> 16), index >> 8 & 255, index & 255);
        let services: Vec<(String, String)> = (0..services).map(|index| (format!("web-{index}"), ip(index))).collect();
        world.events(services.iter().map(|(name, ip)| service(name).cluster_ips(&[ip]).tcp("http", 80).applied()));
        world.settle();
        world.events(services.iter().map(|(name, _)| deleted(Kind::Service, name))).settle();
        world.now += an_hour;
        world.settle();
        assert_eq!(world.doors().sweeps, sweeps, "after {} Services", services.len());
    }
}

#[test]
fn the_seed_that_the_source_knows_is_the_programs() {
    let mut world = World::new(fake_doors());
    let seed = "0123456789abcdeffedcba9876543210".parse().unwrap();
    world.event(Event::HashSeed(seed)).settle();
    assert_eq!(world.agent.maps.doors.hash_seed, Some(seed));
}

/// Threads kubernetes 139513 and 48107: what a change costs does not grow with the cluster. Writes are counted, not time.
#[test]
fn pitfall_20_a_change_of_one_endpoint_costs_the_same_among_ten_services_and_two_thousand() {
    let costs = [10, 2_000].map(|services: u32| {
        let mut world = World::new(fake_doors());
        let slice_of = |index: u32, endpoints: u32| {
            let (name, service) = (format!("web-{index}-1"), format!("web-{index}"));
            let ip = |number: u32| format!("10.{number}.{}.{}", index >> 8, index & 255);
            let empty = slice(&name, &service).tcp("http", 8080);
            (0..endpoints).fold(empty, |slice, number| slice.with(endpoint(&ip(number)))).applied()
        };
        for index in 0..services {
            let ip = format!("10.96.{}.{}", index >> 8, index & 255);
            world.event(service(&format!("web-{index}")).cluster_ips(&[&ip]).tcp("http", 80).applied());
            world.event(slice_of(index, 2));
        }
        world.event(Event::Synced).settle();
        world.doors().writes = 0;
        world.event(slice_of(5, 3)).settle();
        let more = world.doors().writes;
        world.event(slice_of(5, 2)).settle();
        [more, world.doors().writes - more]
    });
    assert_eq!(costs[0], costs[1]);
    assert!(costs[0].iter().all(|writes| (1..=5).contains(writes)), "{costs:?} writes");
}

#[tokio::test]
async fn the_loop_runs_until_an_input_ends() {
    let world = World::new(fake_doors());
    let health = world.health.clone();
    let (event_sender, events) = mpsc::channel(8);
    let (_change_sender, changes) = mpsc::channel(8);
    let (request_sender, requests) = mpsc::channel(1);
    let (_notice_sender, notices) = mpsc::channel(1);
    let agent = tokio::spawn(world.agent.run(Inputs { events, changes, requests, notices }));
    for event in web().into_iter().chain([Event::Synced]) {
        event_sender.send(event).await.unwrap();
    }
    let (sender, directory) = oneshot::channel();
    request_sender.send(sender).await.unwrap();
    let ports: Vec<String> = directory.await.unwrap().services.iter().map(|(_, unit)| unit.to_string()).collect();
    assert!(ports.is_empty() || ports == ["default/web:http"], "{ports:?}");
    drop(event_sender);
    assert_eq!(agent.await.unwrap(), LoopError::SourceEnded);
    assert!(health.is_synced());
}
