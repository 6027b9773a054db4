// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of routes to the net's device, and the rules that lead to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use nix::libc;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
    sys::AsyncSocket as _,
};
use tracing::{debug, info};

use super::{Item, NetError, PREFERENCE, PROTOCOL, Routes, TABLE, device::errno};
use crate::node::netlink::{NetlinkError, list, look, open};

/// A route of ours.
#[derive(Clone, Debug)]
pub struct Found {
    /// As the kernel tells of it.
    pub message: RouteMessage,
    ifindex: Option<u32>,
    source: Option<IpAddr>,
}

/// What became of the routes.
#[derive(Debug, Default)]
pub struct Changed {
    /// Those that are there now.
    pub standing: BTreeSet<IpNet>,
    /// Those that were missing.
    pub added: BTreeSet<IpNet>,
    /// What the kernel refused. The others stand all the same.
    pub error: Option<NetError>,
}

/// Makes the routes of our table these.
pub async fn make(handle: &Handle, ifindex: u32, wanted: &Routes) -> Result<Changed, NetError> {
    let found = of_table().await?;
    let mut changed = Changed { standing: found.keys().copied().collect(), ..Changed::default() };
    let (mut refused, mut source_of_refusal) = (Vec::new(), None);
    for (range, source) in &wanted.ranges {
        let is_right = |held: &Found| held.ifindex == Some(ifindex) && held.source == *source;
        if found.get(range).is_some_and(is_right) {
            continue;
        }
        let Some(message) = message(range, ifindex, *source) else { continue };
        match handle.route().add(message).replace().execute().await {
            Ok(()) => {
                info!("route {range} leads to the net's device");
                if changed.standing.insert(*range) {
                    changed.added.insert(*range);
                }
            }
            Err(error) => {
                refused.push(*range);
                source_of_refusal.get_or_insert(error);
            }
        }
    }
    changed.error = refusal("add", &refused, source_of_refusal);
    if wanted.are_more {
        return Ok(changed);
    }
    for (range, held) in found.into_iter().filter(|(range, _)| !wanted.ranges.contains_key(range)) {
        match remove(handle, range, held.message).await {
            Ok(()) => {
                changed.standing.remove(&range);
                info!("route {range} to the net's device is removed: no Service has addresses there any more");
            }
            Err(error) => changed.error = changed.error.or(Some(error)),
        }
    }
    Ok(changed)
}

fn refusal(verb: &'static str, refused: &[IpNet], source: Option<rtnetlink::Error>) -> Option<NetError> {
    Some(NetError::Routes { verb, count: refused.len(), first: *refused.first()?, source: source? })
}

/// The route of a range. `None` for what is no range, which can't be: its type says so.
fn message(range: &IpNet, ifindex: u32, source: Option<IpAddr>) -> Option<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new().destination_prefix(range.network(), range.prefix_len()).ok()?;
    let builder = builder.table_id(TABLE.into()).protocol(PROTOCOL).scope(RouteScope::Link).output_interface(ifindex);
    let builder = match source {
        Some(source) => builder.pref_source(source).ok()?,
        None => builder,
    };
    Some(builder.build())
}

/// Removes a route, which need not be there.
pub async fn remove(handle: &Handle, range: IpNet, message: RouteMessage) -> Result<(), NetError> {
    match handle.route().del(message).execute().await {
        Err(error) if errno(&error) == Some(libc::ESRCH) => Ok(()),
        Err(source) => Err(NetError::Routes { verb: "remove", count: 1, first: range, source }),
        Ok(()) => Ok(()),
    }
}

/// The routes of our table that an agent has made.
pub async fn of_table() -> Result<BTreeMap<IpNet, Found>, NetError> {
    let routes = look(|| listed(TABLE, RouteType::Unicast)).await?;
    let found = routes.into_iter().map(|(range, message)| (range, Found::new(message)));
    Ok(found.collect())
}

/// What there is in the main table while there is no net.
pub async fn blackholes() -> Result<Vec<(IpNet, RouteMessage)>, NetError> {
    Ok(look(|| listed(RouteHeader::RT_TABLE_MAIN, RouteType::BlackHole)).await?)
}

/// Makes the blackhole routes of the main table these. Gives those that were missing.
pub async fn make_blackholes(handle: &Handle, wanted: &BTreeSet<IpNet>) -> Result<BTreeSet<IpNet>, NetError> {
    /// Behind whatever else there is for a range.
    const METRIC: u32 = 1 << 30;
    let found: BTreeMap<_, _> = blackholes().await?.into_iter().collect();
    for (range, route) in found.iter().filter(|(range, _)| !wanted.contains(range)) {
        remove(handle, *range, route.clone()).await?;
        info!("route blackhole {range} removed: no ServiceCIDR holds it any more");
    }
    let missing: BTreeSet<_> = wanted.iter().filter(|range| !found.contains_key(range)).copied().collect();
    for range in &missing {
        let prefix = (range.network(), range.prefix_len());
        let Ok(builder) = RouteMessageBuilder::<IpAddr>::new().destination_prefix(prefix.0, prefix.1) else { continue };
        let route = builder.kind(RouteType::BlackHole).protocol(PROTOCOL).priority(METRIC).build();
        let added = handle.route().add(route).execute().await;
        added.map_err(|source| NetError::Routes { verb: "add", count: 1, first: *range, source })?;
        info!("route blackhole {range} added: of this ServiceCIDR only Services are reached");
    }
    Ok(missing)
}

/// Routes of ours in a table; and whether they were looked at as a whole.
async fn listed(table: u8, kind: RouteType) -> Result<(Vec<(IpNet, RouteMessage)>, bool), NetlinkError> {
    let socket = open().map_err(NetlinkError::Open)?;
    // Else the kernel lists the routes of all tables.
    if let Err(error) = socket.socket_ref().set_netlink_get_strict_chk(true) {
        debug!("routes of all tables are listed: {error}");
    }
    let (mut found, mut is_whole) = (Vec::new(), true);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.table = table;
        question.header.protocol = PROTOCOL;
        // Where there is no such table yet, the list is an empty one.
        is_whole &= list(&socket, "routes", RouteNetlinkMessage::GetRoute(question), |message| {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && (route.header.protocol, route.header.table, route.header.kind) == (PROTOCOL, table, kind)
                && let Some(range) = range_of(&route)
            {
                found.push((range, route));
            }
        })
        .await?;
    }
    Ok((found, is_whole))
}

fn range_of(route: &RouteMessage) -> Option<IpNet> {
    let ip = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip_of(address),
        _ => None,
    })?;
    IpNet::new(ip, route.header.destination_prefix_length).ok()
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

impl Found {
    fn new(message: RouteMessage) -> Self {
        let ifindex = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        });
        let source = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => ip_of(address),
            _ => None,
        });
        Self { message, ifindex, source }
    }
}

/// Families whose rule leads to our table: whether it is IPv4.
pub async fn rules() -> Result<BTreeSet<bool>, NetError> {
    Ok(look(listed_rules).await?)
}

async fn listed_rules() -> Result<(BTreeSet<bool>, bool), NetlinkError> {
    let socket = open().map_err(NetlinkError::Open)?;
    let (mut found, mut is_whole) = (BTreeSet::new(), true);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        is_whole &= list(&socket, "routing rules", RouteNetlinkMessage::GetRule(question), |message| {
            if let RouteNetlinkMessage::NewRule(rule) = message
                && is_ours(&rule)
            {
                found.insert(rule.header.family == AddressFamily::Inet);
            }
        })
        .await?;
    }
    Ok((found, is_whole))
}

fn is_ours(rule: &RuleMessage) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    rule.header.table == TABLE && has(&RuleAttribute::Priority(PREFERENCE)) && has(&RuleAttribute::Protocol(PROTOCOL))
}

/// Leads the packets of a family to our table.
pub async fn add_rule(handle: &Handle, is_v4: bool) -> Result<(), NetError> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule(is_v4);
    let added = request.execute().await;
    added.map_err(|source| NetError::Rule { verb: "add", rule: Item::Rule { is_v4 }, source })
}

/// No longer does.
pub async fn remove_rule(handle: &Handle, is_v4: bool) -> Result<(), NetError> {
    let removed = handle.rule().del(rule(is_v4)).execute().await;
    removed.map_err(|source| NetError::Rule { verb: "remove", rule: Item::Rule { is_v4 }, source })
}

fn rule(is_v4: bool) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    rule.header.table = TABLE;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![RuleAttribute::Priority(PREFERENCE), RuleAttribute::Protocol(PROTOCOL)];
    rule
}
