// SPDX-License-Identifier: MIT OR Apache-2.0
//! ClusterIPs at which the node answers itself are left to it: NodeLocal DNSCache does so at that of the cluster's DNS.
//!
//! All Services are looked through only where something of it can have changed, and where a device holds addresses at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tracing::{info, warn};

use crate::model::Model;

/// How many ClusterIPs a device of the node may hold for somebody who answers there himself, as a cache of DNS does. One that
/// holds more is no cache's, but what a proxy like kube-proxy's IPVS mode has left behind.
const HELD_BY_A_CACHE: usize = 8;

/// Addresses at which somebody on this node answers.
#[derive(Debug, Default)]
pub struct Held {
    /// With the names of the devices that hold them.
    addresses: BTreeMap<IpAddr, String>,
    /// Devices with so many ClusterIPs that they are another proxy's.
    left_over: BTreeSet<String>,
    is_dirty: bool,
}

impl Held {
    /// From now on they are these.
    pub fn set(&mut self, addresses: BTreeMap<IpAddr, String>) {
        self.is_dirty |= self.addresses != addresses;
        self.addresses = addresses;
    }

    /// Some Service has changed.
    pub fn note_service(&mut self) {
        self.is_dirty = true;
    }

    /// Leaves to the node what it holds, and tells what that changes.
    pub fn leave_to_node(&mut self, model: &mut Model) {
        if !model.is_synced() || !std::mem::take(&mut self.is_dirty) {
            return;
        }
        let mut left = model.cluster_ips_among(&self.addresses);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        left.iter().for_each(|(_, ip)| *counts.entry(&self.addresses[ip]).or_default() += 1);
        let crowded = counts.into_iter().filter(|(_, count)| *count > HELD_BY_A_CACHE);
        let left_over: BTreeSet<String> = crowded.map(|(device, _)| device.to_owned()).collect();
        for device in left_over.difference(&self.left_over) {
            warn!(
                "device {device} holds more than {HELD_BY_A_CACHE} ClusterIPs: it is taken for what another proxy has left \
                 behind, and the Services are served; remove it when that proxy has gone"
            );
        }
        left.retain(|(_, ip)| !left_over.contains(&self.addresses[ip]));
        self.left_over = left_over;
        let former = model.leave_to_node(left.clone());
        for (key, ip) in left.difference(&former) {
            warn!("Service {key}: {ip} is left to this node, which holds it on {}", self.addresses[ip]);
        }
        for (key, ip) in former.difference(&left) {
            if !self.addresses.contains_key(ip) && model.has_service(key) {
                info!("Service {key}: {ip} is served again, no device of this node holds it any more");
            }
        }
    }
}
