// SPDX-License-Identifier: MIT OR Apache-2.0
//! When the neighbours are asked for that cached next hops stand for (ARP, neighbour discovery).
//!
//! The kernel confirms the neighbours that it sends to itself. Those of next hops only programs send to, by redirect: without
//! this, one whose Ethernet address has changed and who has told nobody would be out of reach for ever (cilium 37725, 34503).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{devices::Devices, doors::Doors};

/// How often they are asked, within a second ([`crate::node::neighbours`]). The kernel gives up a neighbour after three questions, a
/// second apart, and asks the whole link then: one that has moved is found again within ten seconds. The kernel calls a neighbour reachable
/// for up to 45 s after its last answer, dead or not, so that those are asked, too.
const PERIOD: Duration = Duration::from_secs(4);

/// How often the cache begins anew, so that nobody is asked for whom nothing was sent for as long.
const RENEWAL: Duration = Duration::from_secs(60);

/// The schedule, and where the neighbours are told.
#[derive(Debug, Default)]
pub struct Neighbours {
    due: Option<Instant>,
    renewal: Option<Instant>,
    told: watch::Sender<Vec<(u32, IpAddr)>>,
}

impl Neighbours {
    /// Hears of the neighbours to be asked for.
    pub fn subscribe(&self) -> watch::Receiver<Vec<(u32, IpAddr)>> {
        self.told.subscribe()
    }

    /// Tells them if it is time to. Returns when it will be.
    pub fn work(&mut self, devices: &Devices, doors: &mut impl Doors, now: Instant) -> Instant {
        if let Some(due) = self.due.filter(|due| *due > now) {
            return due;
        }
        let neighbours = devices.neighbours_in_use(doors);
        if self.renewal.is_none_or(|at| at <= now) {
            if !neighbours.is_empty() {
                doors.bump_next_hops();
            }
            self.renewal = Some(now + RENEWAL);
        }
        if !neighbours.is_empty() {
            self.told.send_replace(neighbours);
        }
        let due = now + PERIOD;
        self.due = Some(due);
        due
    }
}
