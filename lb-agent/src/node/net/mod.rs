// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net under the doors: a device of our own to which the addresses of Services are routed, so that packets for them that no
//! door has translated meet a program there. What is for nobody goes no further (rule 44); where there is no net, `blackhole` routes see
//! to that.
//!
//! In: what is wanted ([`Wanted`]), from the one loop. Out: the device, a table of routes of our own and the rules that lead to
//! it, kept as they should be; and what was lost, and what fails ([`Told`]). All of it outlives the agent. Nothing here knows
//! of programs: the loop asks for routes when they are there.

mod device;
mod routes;
mod sources;
mod wanted;

use std::{collections::BTreeSet, fmt, io, net::IpAddr, time::Duration};

use ipnet::IpNet;
use rtnetlink::{Handle, packet_route::route::RouteProtocol};
use tokio::sync::watch;
use tracing::info;

pub use self::{
    sources::{NetSources, NetSourcesError, ServiceRange, ServiceRangeError},
    wanted::{Addresses, Routes, Wanted, mtu},
};
use super::netlink::NetlinkError;
use crate::problem::Problem;

/// The device.
pub const DEVICE: &str = "shunt0";
/// The other end of the device, where it is one of a pair.
pub const PEER: &str = "shunt0-peer";

/// The table of our routes: `ip route show table 83`.
const TABLE: u8 = 83;
/// Marks our routes and rules: `ip route show protocol 83`. A number that nobody has reserved (`/etc/iproute2/rt_protos`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);
/// Place of our rules: before the main table's, and those of network plug-ins for their pods.
const PREFERENCE: u32 = 96;

/// When everything is looked at although nothing changed: somebody may have flushed a table, or the kernel refused. So what is
/// lost is back within half a minute.
const LOOK_AGAIN: Duration = Duration::from_secs(25);
/// The same after a failure: the first of these, then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The kernel answers at once, or a lock is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something of the net can't be made, kept or taken away.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Netlink as such.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel has no kind of device that serves.
    #[error("can't be made: {refusals}")]
    Unmade {
        /// What it said to each.
        refusals: String,
    },
    /// The name is taken.
    #[error("is not Shunt's: it is of the kind {kind:?}")]
    NotOurs {
        /// Its driver.
        kind: String,
    },
    /// A device can't be changed.
    #[error("can't be {act}: {source}")]
    Device {
        /// What was to be done.
        act: &'static str,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// A setting of the device can't be changed.
    #[error("can't set {setting} to {value}: {source}")]
    Setting {
        /// The sysctl.
        setting: String,
        /// What it should be.
        value: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A routing rule.
    #[error("can't {verb} the rule {rule}: {source}")]
    Rule {
        /// What was to be done.
        verb: &'static str,
        /// The rule.
        rule: Item,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// Some routes.
    #[error("can't {verb} {count} routes, the first of them {first}: {source}")]
    Routes {
        /// What was to be done.
        verb: &'static str,
        /// How many of them.
        count: usize,
        /// The first one.
        first: IpNet,
        /// Why not.
        source: rtnetlink::Error,
    },
}

impl NetError {
    fn problem(&self) -> Problem {
        let (effect, remedy) = match self {
            Self::Unmade { .. } | Self::NotOurs { .. } => (
                "what no door translates reaches no Service: pods that are born while no agent runs, and connected UDP sockets of \
                 this node when their backend goes; the packet doors and the socket door go on",
                "load one of the kernel modules dummy, netkit, ifb or veth, rename another device of this name, or give --net off",
            ),
            Self::Setting { .. } => (
                "packets that no door translates may not be forwarded",
                "set it by hand, or let new devices have it (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding)",
            ),
            Self::Netlink(_) | Self::Device { .. } | Self::Rule { .. } | Self::Routes { .. } => (
                "what no door translates may not reach a Service; the packet doors and the socket door go on",
                "it is tried again; see `ip rule`, `ip route show table 83` and their -6 for what is in the way",
            ),
        };
        Problem::new(format!("device {DEVICE}"), format!("{self}: {effect}"), remedy).with_reason("NoNet")
    }
}

/// What belongs to the net, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// The rule of a family.
    Rule {
        /// Whether it is the one of IPv4.
        is_v4: bool,
    },
    /// A route to the device.
    Route(IpNet),
    /// What drops what is for nobody where there is no net.
    Blackhole(IpNet),
    /// The device.
    Device,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { is_v4 } => {
                write!(f, "rule {PREFERENCE}: from all lookup {TABLE} (IPv{})", if *is_v4 { 4 } else { 6 })
            }
            Self::Route(range) => write!(f, "route {range} dev {DEVICE} table {TABLE}"),
            Self::Blackhole(range) => write!(f, "route blackhole {range}"),
            Self::Device => write!(f, "device {DEVICE}"),
        }
    }
}

/// What came of a look at the net.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What somebody else had taken away. It is back.
    pub lost: Vec<Item>,
    /// What is wrong with it now.
    pub problems: Vec<Problem>,
    /// Whether it can't be had. One that has stood once is not given up for a failure.
    pub is_refused: bool,
}

/// Keeps the net as it is wanted, until nobody wants anything any more.
pub async fn follow(mut wanted: watch::Receiver<Wanted>, tell: impl Fn(Told)) {
    let mut keeper = Keeper::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let now = wanted.borrow_and_update().clone();
        let looked = tokio::time::timeout(PATIENCE, keeper.look(&now)).await;
        let mut looked =
            looked.unwrap_or_else(|_| Look { errors: vec![NetlinkError::NoAnswer.into()], ..Look::default() });
        let next = if looked.errors.is_empty() { LOOK_AGAIN } else { pause };
        pause = if looked.errors.is_empty() { FIRST_PAUSE } else { (pause * 2).min(LOOK_AGAIN) };
        tell(Told {
            lost: std::mem::take(&mut looked.lost),
            problems: looked.errors.iter().map(NetError::problem).collect(),
            is_refused: !keeper.has_stood
                && looked.errors.iter().any(|error| !matches!(error, NetError::Setting { .. })),
        });
        if let Ok(Err(_)) = tokio::time::timeout(next, wanted.changed()).await {
            return;
        }
    }
}

/// Removes all that an agent ever made of the net; with `dry_run` it only finds it.
///
/// # Errors
/// Where netlink fails.
pub async fn remove_all(dry_run: bool) -> Result<Vec<Item>, NetError> {
    let handle = connect()?;
    let mut removed = remove_net(&handle, dry_run).await?;
    removed.extend(remove_blackholes(&handle, dry_run).await?);
    Ok(removed)
}

/// Routes are withdrawn before the device goes: until then packets meet its program.
async fn remove_net(handle: &Handle, dry_run: bool) -> Result<Vec<Item>, NetError> {
    let mut removed = Vec::new();
    for is_v4 in routes::rules().await? {
        if !dry_run {
            routes::remove_rule(handle, is_v4).await?;
        }
        removed.push(Item::Rule { is_v4 });
    }
    for (range, route) in routes::of_table().await? {
        if !dry_run {
            routes::remove(handle, range, route.message).await?;
        }
        removed.push(Item::Route(range));
    }
    if let Some(device) = device::find(handle).await?.filter(device::Found::is_ours) {
        if !dry_run {
            device::remove(handle, device.ifindex).await?;
        }
        removed.push(Item::Device);
    }
    Ok(removed)
}

async fn remove_blackholes(handle: &Handle, dry_run: bool) -> Result<Vec<Item>, NetError> {
    let blackholes = routes::blackholes().await?;
    for (range, route) in blackholes.iter().filter(|_| !dry_run) {
        routes::remove(handle, *range, route.clone()).await?;
    }
    Ok(blackholes.into_iter().map(|(range, _)| Item::Blackhole(range)).collect())
}

/// What a look has found.
#[derive(Debug, Default)]
struct Look {
    lost: Vec<Item>,
    errors: Vec<NetError>,
}

/// What has been made so far.
#[derive(Debug, Default)]
struct Keeper {
    /// Index of the device.
    device: Option<u32>,
    /// Families whose rule is there.
    rules: BTreeSet<bool>,
    /// Routes to the device that are there.
    routes: BTreeSet<IpNet>,
    /// Whether everything has stood on this device.
    has_stood: bool,
    /// Ranges whose blackhole routes are there.
    blackholes: BTreeSet<IpNet>,
}

impl Keeper {
    /// Makes the net what is wanted.
    async fn look(&mut self, wanted: &Wanted) -> Look {
        let mut look = Look::default();
        let kept = match wanted {
            Wanted::Unknown => Ok(()),
            Wanted::Off(ranges) => self.do_without(ranges.as_ref(), &mut look).await,
            Wanted::On { mtu, routes, .. } => self.keep(*mtu, routes.as_deref(), &mut look).await,
        };
        look.errors.extend(kept.err());
        look
    }

    async fn do_without(&mut self, ranges: Option<&BTreeSet<IpNet>>, look: &mut Look) -> Result<(), NetError> {
        *self = Self { blackholes: std::mem::take(&mut self.blackholes), ..Self::default() };
        let handle = connect()?;
        for item in remove_net(&handle, false).await? {
            info!("{item} removed: --net off");
        }
        let Some(ranges) = ranges else { return Ok(()) };
        let added = routes::make_blackholes(&handle, ranges).await?;
        look.lost.extend(added.intersection(&self.blackholes).copied().map(Item::Blackhole));
        self.blackholes.clone_from(ranges);
        Ok(())
    }

    async fn keep(&mut self, mtu: u32, routes: Option<&Routes>, look: &mut Look) -> Result<(), NetError> {
        let handle = connect()?;
        let found = device::find(&handle).await?;
        if found.as_ref().map(|found| found.ifindex) != self.device && self.device.is_some() {
            // Its routes went with it.
            *self = Self { rules: std::mem::take(&mut self.rules), ..Self::default() };
            look.lost.push(Item::Device);
        }
        if self.device.is_none() && found.is_some() {
            // An earlier agent's.
            self.has_stood |= !routes::rules().await?.is_empty();
        }
        let device = match found {
            Some(found) if found.is_ours() => found,
            Some(found) => return Err(NetError::NotOurs { kind: found.kind }),
            None => device::make(&handle, mtu).await?,
        };
        if self.device.is_none() {
            info!("device {DEVICE} ({}) is there: packets for Services that no door translates go to it", device.kind);
        }
        self.device = Some(device.ifindex);
        look.errors.extend(device::keep(&handle, &device, mtu).await?);
        if let Some(wanted) = routes {
            self.route(&handle, device.ifindex, wanted, look).await?;
            self.has_stood = true;
        }
        Ok(())
    }

    /// Routes first, and then the rules that lead to them.
    async fn route(&mut self, handle: &Handle, ifindex: u32, wanted: &Routes, look: &mut Look) -> Result<(), NetError> {
        let changed = routes::make(handle, ifindex, wanted).await?;
        look.lost.extend(changed.added.intersection(&self.routes).copied().map(Item::Route));
        self.routes = changed.standing;
        if let Some(error) = changed.error {
            return Err(error);
        }
        let found = routes::rules().await?;
        for is_v4 in wanted.families().difference(&found).copied() {
            routes::add_rule(handle, is_v4).await?;
            if !self.rules.insert(is_v4) {
                look.lost.push(Item::Rule { is_v4 });
            }
        }
        self.rules.extend(found);
        for item in remove_blackholes(handle, false).await? {
            info!("{item} removed: the device {DEVICE} takes its place");
        }
        Ok(())
    }
}

fn connect() -> Result<Handle, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The range of one address.
fn host(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

#[cfg(test)]
mod tests;
