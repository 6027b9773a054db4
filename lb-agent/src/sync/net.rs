// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net under the doors, from here: its device in the configuration, and what shall be routed to it.
//!
//! Nothing meets a gap: the programs are on the device, and the maps complete, before anything is routed there; and a device
//! that can't be had is not in the configuration, so that the socket door does without.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use lb_common::config;
use tokio::sync::watch;

use super::{Loop, devices::Devices, doors::Doors, report::Scope};
use crate::{
    dataplane::{Part, Repair},
    diff::State,
    model::Model,
    node::net::{Addresses, Item, NetSources, Routes, Told, Wanted},
};

/// The flags of the net.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetOptions {
    /// `--net off`.
    pub is_off: bool,
    /// `--service-cidr`.
    pub ranges: Vec<IpNet>,
    /// `--net-sources`.
    pub sources: NetSources,
}

/// What routes followed from when they were last looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Basis {
    frontend_changes: u64,
    device_changes: u64,
    service_ranges: Option<BTreeSet<IpNet>>,
}

/// The net as far as this loop knows.
#[derive(Debug, Default)]
pub struct Net {
    options: NetOptions,
    wanted: watch::Sender<Wanted>,
    routes: Option<(Basis, Arc<Routes>)>,
    is_refused: bool,
}

impl Net {
    /// As the flags want it.
    #[must_use]
    pub fn new(options: NetOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Tells what is wanted of the net.
    #[must_use]
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// What the configuration says of a device that runs its programs.
    fn config(&self, devices: &Devices) -> config::Net {
        let Some((ifindex, mac)) = devices.served_net_device() else { return config::Net::default() };
        let mut macs = [[0; 4]; 3];
        macs.as_flattened_mut().chunks_exact_mut(mac.len()).for_each(|place| place.copy_from_slice(&mac));
        config::Net { ifindex, macs: macs.map(u32::from_ne_bytes), sources: self.options.sources.to_config() }
    }

    /// The same ones as long as they follow from the same things.
    fn routes(&mut self, model: &Model, devices: &Devices, state: &State) -> Arc<Routes> {
        let basis = Basis {
            frontend_changes: state.frontend_changes(),
            device_changes: devices.changes(),
            service_ranges: model.service_cidrs(),
        };
        if let Some((held, routes)) = &self.routes
            && *held == basis
        {
            return Arc::clone(routes);
        }
        let addresses = Addresses {
            service_ranges: basis.service_ranges.clone(),
            given_ranges: &self.options.ranges,
            local: &devices.all_local_addresses(),
            own: devices.sources(),
            families: devices.families(),
            sources: self.options.sources,
        };
        let cluster_ips = state.frontend_addresses().filter(|(_, is_cluster_ip)| *is_cluster_ip);
        let routes = Arc::new(addresses.routes(cluster_ips.map(|(address, _)| address.into())));
        self.routes = Some((basis, Arc::clone(&routes)));
        routes
    }
}

impl<D: Doors> Loop<D> {
    /// Makes the configuration say what there is of the net, and tells what shall be there.
    pub(super) fn work_net(&mut self) {
        let is_synced = self.health.is_synced();
        let there = self.net.config(&self.devices);
        let former = self.maps.doors.net();
        // Until the maps are complete, what an earlier agent's programs do stays as it is.
        let is_same = there.ifindex == former.ifindex;
        let config = match self.net.options.is_off {
            true if is_synced => config::Net::default(),
            true => former,
            false if self.net.is_refused || !is_synced && !is_same => config::Net::default(),
            false => there,
        };
        if config != former {
            self.maps.doors.set_net(config);
        }
        let wanted = match self.net.options.is_off {
            // None where the node's own processes reach Services by the kernel's routes: rules for them (kube-proxy's) come after the
            // look-up of a route, which must find one.
            true if is_synced && !self.maps.doors.is_socket_door_open() => Wanted::Off(Some(BTreeSet::new())),
            true if is_synced => Wanted::Off(self.services.model().service_cidrs()),
            true => Wanted::Unknown,
            false => {
                let is_ready = is_synced && there.is_there();
                let routes = is_ready.then(|| self.net.routes(self.services.model(), &self.devices, &self.maps.state));
                Wanted::On { mtu: self.devices.net_mtu(), routes, hint: self.devices.net_hint() }
            }
        };
        self.net.wanted.send_if_modified(|held| {
            let is_new = *held != wanted;
            *held = wanted;
            is_new
        });
    }

    /// Takes in what came of a look at the net.
    pub(super) fn take_net(&mut self, told: Told, now: std::time::Instant) {
        self.net.is_refused = told.is_refused;
        self.reporter.set(Scope::Net, told.problems);
        let repairs: Vec<_> = told.lost.iter().map(repair).collect();
        self.tell_repairs(&repairs, now);
    }
}

fn repair(item: &Item) -> Repair {
    let part = if *item == Item::Device { Part::Device } else { Part::Route };
    Repair { part, name: item.to_string() }
}
