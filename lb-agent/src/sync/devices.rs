// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the kernel's reports to programs on devices, and to the maps of interfaces and node addresses.
//!
//! Roles follow from the machine, and from the Node object's addresses where nothing else tells uplinks from pods' devices; so do the
//! addresses that answer NodePorts. That object is unknown until the sources have told all they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use lb_common::{
    address::Address,
    config::{Interface, role},
    filter::Concern,
};
use tracing::{debug, info};

use super::{
    Maps,
    doors::{DoorError, Doors},
    queue::Queue,
    report::{Reporter, Scope},
};
use crate::{
    diff::{Operation, WriteError},
    health::HealthPorts,
    node::{
        addresses::{NodePortAddresses, local_addresses},
        net,
        roles::{Choice, Duty, Selection, net_device, primary_addresses},
        state::{Change, NodeState},
    },
    problem::Problem,
};

/// What the sources say of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Whether they have told all there was at the start.
    pub is_synced: bool,
    /// The Node object's addresses.
    pub internal_addresses: Vec<IpAddr>,
    /// Those that may be some router's.
    pub external_addresses: Vec<IpAddr>,
}

/// The machine, and how far the programs and maps follow it.
pub struct Devices {
    node: NodeState,
    selection: Selection,
    node_ports: NodePortAddresses,
    told: Told,
    /// Uplinks of an earlier agent, until the sources have told all they hold.
    adopted_uplinks: BTreeMap<u32, Interface>,
    /// Devices whose XDP program runs in the driver.
    native_xdp: BTreeSet<u32>,
    /// The duty for which this process has attached programs to each device.
    attached: BTreeMap<u32, Duty>,
    to_attach: Queue<u32>,
    /// Local addresses whose bit is set in the filter.
    filtered: BTreeSet<Address>,
    are_devices_dirty: bool,
    are_next_hops_dirty: bool,
    /// How often something of the devices, or of what the sources say of this node, has changed.
    changes: u64,
    /// How often something may have been taken away from the net.
    net_hint: u64,
    /// What packets of this node may have as a source, IPv4 and IPv6.
    primary: [Option<IpAddr>; 2],
    /// The least MTU of devices of pods and uplinks decides that of the net's.
    net_mtu: u32,
    are_held_dirty: bool,
    /// Local addresses that answer NodePorts.
    node_port_addresses: BTreeSet<Address>,
}

impl Devices {
    /// The machine as it is now, and what an earlier agent left.
    #[must_use]
    pub fn new(
        node: NodeState,
        selection: Selection,
        node_ports: NodePortAddresses,
        adopted: BTreeMap<u32, Interface>,
    ) -> Self {
        let is_native = |(_, interface): &(&u32, &Interface)| interface.role & role::XDP != 0;
        let is_uplink = |(_, interface): &(&u32, &Interface)| interface.role & role::UPLINK != 0;
        Self {
            node,
            selection,
            node_ports,
            told: Told::default(),
            adopted_uplinks: adopted.iter().filter(is_uplink).map(|(&ifindex, own)| (ifindex, *own)).collect(),
            native_xdp: adopted.iter().filter(is_native).map(|(&ifindex, _)| ifindex).collect(),
            attached: BTreeMap::new(),
            to_attach: Queue::default(),
            filtered: BTreeSet::new(),
            are_devices_dirty: true,
            are_next_hops_dirty: true,
            changes: 0,
            net_hint: 0,
            primary: [None; 2],
            net_mtu: net::mtu([].into_iter()),
            are_held_dirty: true,
            node_port_addresses: BTreeSet::new(),
        }
    }

    /// Takes in what the kernel reports. A device that has gone may be back, under the same index, before anything is done.
    pub fn take_change(&mut self, change: Change) {
        match &change {
            Change::LinkGone { ifindex } => drop(self.attached.remove(ifindex)),
            // Which have gone and come back in the meantime isn't said.
            Change::Resync(_) => self.attached.clear(),
            _ => {}
        }
        self.net_hint += u64::from(self.concerns_net(&change));
        let effect = self.node.apply(change);
        self.changes += u64::from(effect.devices);
        self.are_devices_dirty |= effect.devices;
        self.are_held_dirty |= effect.devices;
        self.are_next_hops_dirty |= effect.next_hops;
    }

    /// Takes in what the sources say of this node.
    pub fn take_told(&mut self, told: Told) {
        if self.told != told {
            self.told = told;
            self.are_devices_dirty = true;
            self.changes += 1;
        }
    }

    /// Every local address by which other machines reach this one: the filter must let them pass.
    pub fn local_addresses(&self) -> impl Iterator<Item = Address> + '_ {
        local_addresses(&self.node).map(Address::from)
    }

    /// Addresses at which somebody on this node answers, with the names of the devices that hold them, if they may be others than
    /// the last time.
    pub fn take_held(&mut self) -> Option<BTreeMap<IpAddr, String>> {
        std::mem::take(&mut self.are_held_dirty).then(|| self.node.held_addresses())
    }

    /// Whether a change may have taken something away from the net: its routes go with its device or when that is shut, and may lose
    /// their source with an address.
    fn concerns_net(&self, change: &Change) -> bool {
        let is_nets = |ifindex: &u32| net_device(&self.node).is_some_and(|(own, _)| own == *ifindex);
        match change {
            Change::Link { ifindex, link } => is_nets(ifindex) && self.node.links().get(ifindex) != Some(link),
            Change::LinkGone { ifindex } => is_nets(ifindex),
            Change::AddressGone { ip, .. } => self.primary.contains(&Some(*ip)),
            Change::Rules | Change::Resync(_) => true,
            _ => false,
        }
    }

    /// Index and Ethernet address of the net's device, if it has its programs.
    #[must_use]
    pub fn served_net_device(&self) -> Option<(u32, [u8; 6])> {
        let (ifindex, link) = net_device(&self.node)?;
        self.attached.contains_key(&ifindex).then_some((ifindex, link.mac))
    }

    /// Another number says that something of the net may have been lost.
    #[must_use]
    pub const fn net_hint(&self) -> u64 {
        self.net_hint
    }

    /// The MTU of the net's device.
    #[must_use]
    pub const fn net_mtu(&self) -> u32 {
        self.net_mtu
    }

    /// Another number says that devices or addresses may be different now.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// All addresses that are this node's, those of its Node object among them.
    #[must_use]
    pub fn all_local_addresses(&self) -> BTreeSet<IpAddr> {
        let told = self.told.internal_addresses.iter().chain(&self.told.external_addresses).copied();
        self.node.all_addresses().map(|own| own.ip).chain(told).collect()
    }

    /// The node's address of each family, if it holds it.
    #[must_use]
    pub fn sources(&self) -> [Option<IpAddr>; 2] {
        self.primary.map(|own| own.filter(|ip| self.node.all_addresses().any(|own| own.ip == *ip)))
    }

    /// The families of which the node has addresses, IPv4 and IPv6.
    #[must_use]
    pub fn families(&self) -> [bool; 2] {
        self.node.families()
    }

    /// The neighbours that cached next hops stand for, as far as the kernel can be made to ask for them again.
    pub fn neighbours_in_use(&self, doors: &impl Doors) -> Vec<(u32, IpAddr)> {
        self.node.learned_neighbours(&doors.next_hops()).collect()
    }

    /// Where load balancers ask for Services (rule 65): wherever NodePorts are answered.
    pub fn health_check_addresses(&self) -> Vec<IpAddr> {
        if self.node_ports.are_all() {
            HealthPorts::EVERYWHERE.to_vec()
        } else {
            self.node_port_addresses.iter().copied().map(IpAddr::from).collect()
        }
    }

    /// Makes programs and maps follow the machine.
    pub fn work(&mut self, maps: &mut Maps<impl Doors>, reporter: &mut Reporter, now: Instant) {
        if std::mem::take(&mut self.are_next_hops_dirty) {
            maps.doors.set_policy_routing(self.node.is_policy_routed());
            maps.doors.bump_next_hops();
        }
        let is_dirty = std::mem::take(&mut self.are_devices_dirty);
        if !is_dirty && self.wake_at().is_none_or(|at| at > now) {
            return;
        }
        let wanted = self.choose();
        if is_dirty {
            self.net_mtu = self.mtu_of(&wanted);
            self.detach_others(&wanted, &mut maps.doors, reporter);
            let mut errors = self.describe(&wanted, maps);
            if self.told.is_synced {
                errors.extend(self.write_addresses(&wanted, maps));
            }
            self.report(&wanted, &errors, maps.state.families(), reporter);
            let with_role = wanted.interfaces.iter().filter(|(_, interface)| interface.role != 0);
            let new = with_role.filter(|(ifindex, _)| self.attached.get(ifindex) != Some(&wanted.duty(**ifindex)));
            // Without its record a pod's device would make its pod a client from outside.
            let new = new.filter(|(ifindex, _)| maps.state.has_interface(**ifindex));
            let new: Vec<u32> = new.map(|(&ifindex, _)| ifindex).collect();
            new.into_iter().for_each(|ifindex| self.to_attach.push(ifindex));
        }
        while let Some(ifindex) = self.to_attach.pop(now) {
            let problems = self.attach(ifindex, &wanted, maps, now);
            reporter.set(Scope::Device(ifindex), problems);
        }
    }

    /// When a device that refused its programs is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.to_attach.wake_at()
    }

    /// The Node object's addresses, the internal ones first (rule 5). What is some router's can be no source of ours.
    fn own_addresses(&self) -> Vec<IpAddr> {
        let is_here = |ip: &&IpAddr| self.node.all_addresses().any(|own| own.ip == **ip);
        let external = self.told.external_addresses.iter().filter(is_here);
        self.told.internal_addresses.iter().chain(external).copied().collect()
    }

    /// Chooses each device's role. An uplink of an earlier agent stays one until the sources have told: it may
    /// be so for the node's address alone.
    fn choose(&mut self) -> Choice {
        let mut wanted = self.selection.choose(&self.node, &self.told.internal_addresses);
        if self.told.is_synced {
            self.adopted_uplinks.clear();
        }
        for (ifindex, former) in &self.adopted_uplinks {
            let same = wanted.interfaces.get_mut(ifindex).filter(|own| own.mac == former.mac);
            if let Some(own) = same {
                own.role = role::UPLINK;
                if former.role & role::XDP != 0 {
                    wanted.main_uplinks.insert(*ifindex);
                }
            }
        }
        wanted
    }

    /// The least MTU by which packets for pods and from outside go.
    fn mtu_of(&self, wanted: &Choice) -> u32 {
        let served = wanted.interfaces.iter().filter(|(_, interface)| interface.role & (role::UPLINK | role::POD) != 0);
        net::mtu(served.filter_map(|(ifindex, _)| self.node.links().get(ifindex)).map(|link| link.mtu))
    }

    fn detach_others(&mut self, wanted: &Choice, doors: &mut impl Doors, reporter: &mut Reporter) {
        // What an earlier agent chose otherwise runs on until the maps are complete.
        let is_kept = |interface: &Interface| interface.role != 0 || !self.told.is_synced;
        let has_role = |ifindex: &u32| wanted.interfaces.get(ifindex).is_some_and(is_kept);
        let tried = self.attached.keys().copied().chain(self.to_attach.failed().copied());
        let others: BTreeSet<u32> = doors.attached().into_iter().chain(tried).filter(|at| !has_role(at)).collect();
        for ifindex in others {
            debug!(ifindex, "programs taken off a device that is gone or no longer ours");
            doors.detach(ifindex);
            self.native_xdp.remove(&ifindex);
            self.attached.remove(&ifindex);
            self.to_attach.succeed(&ifindex);
            reporter.set(Scope::Device(ifindex), Vec::new());
        }
    }

    /// Writes the map of interfaces and the filter, before any program there can ask.
    fn describe(&mut self, wanted: &Choice, maps: &mut Maps<impl Doors>) -> Vec<WriteError> {
        // Of others the programs need to know nothing, and on a large node they are many.
        let has_address = |interface: &Interface| interface.addresses.iter().any(|address| !address.is_unspecified());
        let of_interest =
            wanted.interfaces.iter().filter(|(_, interface)| interface.role != 0 || has_address(interface));
        let described = of_interest.map(|(&ifindex, interface)| {
            let xdp = if interface.role != 0 && self.native_xdp.contains(&ifindex) { role::XDP } else { 0 };
            (ifindex, Interface { role: interface.role | xdp, ..*interface })
        });
        let mut operations = maps.state.plan_interfaces(&described.collect());
        let local: BTreeSet<Address> = self.local_addresses().collect();
        let new = local.difference(&self.filtered);
        operations.extend(new.map(|&address| Operation::Pass(Concern::Node(address))));
        self.filtered = local;
        let is_of_known = |operation: &Operation| match operation {
            Operation::UpsertInterface { ifindex, .. } => maps.state.has_interface(*ifindex),
            Operation::RemoveInterface { .. } => true,
            _ => false,
        };
        let have_changed = operations.iter().any(is_of_known);
        let errors = maps.state.carry_out_each(&operations, &mut maps.doors);
        if have_changed {
            // What is kept of a next hop was found by what the map said of its device.
            maps.doors.bump_next_hops();
        }
        errors
    }

    fn write_addresses(&mut self, wanted: &Choice, maps: &mut Maps<impl Doors>) -> Vec<WriteError> {
        let primary = primary_addresses(&self.node, &wanted.interfaces, &self.own_addresses());
        self.primary = primary;
        maps.doors.set_node_addresses(primary.map(|ip| ip.map_or(Address::UNSPECIFIED, Address::from)));
        self.node_port_addresses = self.node_ports.select(&self.node, primary);
        let operations = maps.state.plan_node_addresses(&self.node_port_addresses);
        maps.state.carry_out_each(&operations, &mut maps.doors)
    }

    /// `families` are those for whose flows there is room.
    fn report(&self, wanted: &Choice, errors: &[WriteError], families: [bool; 2], reporter: &mut Reporter) {
        let mut problems = self.selection.problems(&self.node);
        let has_uplink = wanted.interfaces.values().any(|interface| interface.role & role::UPLINK != 0);
        if self.told.is_synced && !has_uplink && self.selection.uplinks.is_empty() {
            problems.push(Problem::new(
                "uplinks",
                "no Ethernet device leads anywhere but to pods: NodePorts can't be reached from outside",
                "name the devices that lead outside in --uplink",
            ));
        }
        reporter.set(Scope::Uplinks, problems);
        let problem =
            |error: &WriteError| Problem::new("this node's devices and addresses", error.to_string(), error.remedy());
        let new_families = ["IPv4", "IPv6"].into_iter().zip(self.node.families()).zip(families);
        let without_room = new_families.filter(|((_, is_there), has_room)| *is_there && !has_room).map(|((family, _), _)| {
            Problem::new(
                family,
                "this node had no address of the family when the agent started, so that hardly any of its flows has room",
                "restart the agent, which makes the flow table of the family anew; other traffic goes on meanwhile",
            )
        });
        reporter.set(Scope::Addresses, errors.iter().map(problem).chain(without_room).collect());
    }

    /// Attaches the programs of one device. What is returned is what is wrong with it now.
    fn attach(&mut self, ifindex: u32, wanted: &Choice, maps: &mut Maps<impl Doors>, now: Instant) -> Vec<Problem> {
        let Some(link) = self.node.links().get(&ifindex).filter(|_| wanted.interfaces.contains_key(&ifindex)) else {
            self.to_attach.succeed(&ifindex);
            return Vec::new();
        };
        let duty = wanted.duty(ifindex);
        match maps.doors.attach(ifindex, link, duty) {
            Ok(attached) => {
                let kind = match duty.role {
                    role if role & role::UPLINK != 0 => "uplink",
                    role if role & role::POD != 0 => "pod interface",
                    role if role & role::NET != 0 => "device of the net",
                    _ => "device for replies",
                };
                info!("{kind} {}: {}", link.name, attached.text);
                self.attached.insert(ifindex, duty);
                self.to_attach.succeed(&ifindex);
                let was_native = self.native_xdp.remove(&ifindex);
                if attached.is_native_xdp {
                    self.native_xdp.insert(ifindex);
                }
                if attached.is_native_xdp != was_native {
                    // A write that fails is planned again with the next change of a device.
                    self.describe(wanted, maps);
                }
                Vec::new()
            }
            Err(DoorError::Gone) => {
                self.to_attach.succeed(&ifindex);
                Vec::new()
            }
            Err(DoorError::Refused { cause, remedy }) => {
                self.to_attach.fail(ifindex, now);
                vec![Problem::new(format!("device {}", link.name), cause, remedy)]
            }
        }
    }
}
