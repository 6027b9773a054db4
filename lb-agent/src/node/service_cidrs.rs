// SPDX-License-Identifier: MIT OR Apache-2.0
//! Drops what is sent to addresses from which ClusterIPs are allocated, but which are nobody's (rule 44).
//!
//! Such packets belong to no Service, so the programs leave them alone; a `blackhole` route for each range keeps the node
//! from sending them out by its default route. It stands behind every other route of the same range, and packets for a
//! Service are translated before the kernel looks for a route.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::netlink::NetlinkError;

/// Marks our routes: `ip route show protocol 83`. A number that nobody has reserved (`/etc/iproute2/rt_protos`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);

/// Behind whatever else there is for a range.
const METRIC: u32 = 1 << 30;

/// When the routes are looked at although nothing changed: somebody may have flushed the table, or the kernel refused. So what
/// is lost is back within half a minute.
const LOOK_AGAIN: Duration = Duration::from_secs(25);

/// The kernel answers at once, or a lock is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the routes follow the ranges, until nobody tells of them any more. `None` leaves everything as it is: what an
/// earlier agent made stays until the sources have told what there is. `tell_lost` hears of routes that somebody has removed.
pub async fn follow(mut ranges: watch::Receiver<Option<BTreeSet<IpNet>>>, tell_lost: impl Fn(&IpNet)) {
    let mut held = BTreeSet::new();
    loop {
        let wanted = ranges.borrow_and_update().clone();
        if let Some(wanted) = wanted {
            match tokio::time::timeout(PATIENCE, make(&wanted)).await.unwrap_or(Err(NetlinkError::NoAnswer)) {
                Ok(added) => {
                    added.intersection(&held).for_each(&tell_lost);
                    held = wanted;
                }
                Err(error) => {
                    warn!(
                        "addresses of ServiceCIDRs that are nobody's may leave this node: {error}; it is tried again"
                    );
                }
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, ranges.changed()).await {
            return;
        }
    }
}

/// Removes all routes that an agent ever made here; with `dry_run` it only finds them.
///
/// # Errors
/// Where netlink fails.
pub async fn remove_all(dry_run: bool) -> Result<BTreeSet<IpNet>, NetlinkError> {
    let handle = connect()?;
    let ours = ours(&handle).await?;
    for (range, route) in &ours {
        if !dry_run {
            remove(&handle, range, route).await?;
        }
    }
    Ok(ours.into_keys().collect())
}

/// Makes the routes exactly these. Returns those that were missing.
async fn make(wanted: &BTreeSet<IpNet>) -> Result<BTreeSet<IpNet>, NetlinkError> {
    let handle = connect()?;
    let ours = ours(&handle).await?;
    for (range, route) in ours.iter().filter(|(range, _)| !wanted.contains(range)) {
        remove(&handle, range, route).await?;
        info!("route blackhole {range} removed: no ServiceCIDR holds it any more");
    }
    let missing: BTreeSet<_> = wanted.iter().filter(|range| !ours.contains_key(range)).copied().collect();
    for (range, route) in missing.iter().filter_map(|range| Some((range, route(range)?))) {
        let added = handle.route().add(route).execute().await;
        added.map_err(|source| NetlinkError::Route { verb: "add", range: *range, source })?;
        info!("route blackhole {range} added: of this ServiceCIDR only Services are reached");
    }
    Ok(missing)
}

fn connect() -> Result<Handle, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The route of a range. `None` for what is no range, which can't be: its type says so.
fn route(range: &IpNet) -> Option<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new().destination_prefix(range.network(), range.prefix_len()).ok()?;
    Some(builder.kind(RouteType::BlackHole).protocol(PROTOCOL).priority(METRIC).build())
}

async fn remove(handle: &Handle, range: &IpNet, route: &RouteMessage) -> Result<(), NetlinkError> {
    let removed = handle.route().del(route.clone()).execute().await;
    removed.map_err(|source| NetlinkError::Route { verb: "remove", range: *range, source })
}

/// The routes that an agent has made.
async fn ours(handle: &Handle) -> Result<BTreeMap<IpNet, RouteMessage>, NetlinkError> {
    let mut ours = BTreeMap::new();
    for nothing in ["0.0.0.0/0", "::/0"] {
        // A question for all routes of a family.
        let Some(mut question) = nothing.parse().ok().and_then(|range| route(&range)) else { continue };
        question.attributes.clear();
        let mut routes = handle.route().get(question).execute();
        while let Some(route) = routes.try_next().await.map_err(NetlinkError::Routes)? {
            if let Some(range) = range_of(&route) {
                ours.insert(range, route);
            }
        }
    }
    Ok(ours)
}

/// The range of a route of ours.
fn range_of(route: &RouteMessage) -> Option<IpNet> {
    let header = &route.header;
    let is_ours = header.protocol == PROTOCOL
        && header.kind == RouteType::BlackHole
        && header.table == RouteHeader::RT_TABLE_MAIN;
    let ip = route.attributes.iter().filter(|_| is_ours).find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    IpNet::new(ip, header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::netlink::tests::{in_new_namespace, ip, output_of_ip};

    fn ranges(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rule_44_addresses_of_a_service_cidr_that_are_nobodys_are_dropped() {
        in_new_namespace(|| async {
            ip("link set lo up");
            ip("link add veth0 type veth peer name peer0");
            ip("link set veth0 up");
            ip("address add 192.0.2.1/24 dev veth0");
            ip("route add default via 192.0.2.9 dev veth0");
            let both = ranges(&["10.96.0.0/12", "fd00:96::/108"]);
            for _ in 0..2 {
                make(&both).await.unwrap();
                let routes = output_of_ip("route show protocol 83") + &output_of_ip("-6 route show protocol 83");
                let lines: Vec<_> = routes.lines().map(|line| line.split(" dev ").next().unwrap().trim()).collect();
                assert_eq!(lines, ["blackhole 10.96.0.0/12 metric 1073741824", "blackhole fd00:96::/108"]);
            }
            assert_eq!(output_of_ip("-o route get 10.96.0.1"), "", "no way out");
            ip("route add 10.96.0.0/12 via 192.0.2.8");
            assert!(output_of_ip("-o route get 10.96.0.1").contains("192.0.2.8"), "others come first");

            make(&ranges(&["10.96.0.0/12", "172.30.0.0/16"])).await.unwrap();
            let held = remove_all(true).await.unwrap();
            assert_eq!(held, ranges(&["10.96.0.0/12", "172.30.0.0/16"]));
            assert_eq!(remove_all(false).await.unwrap(), held);
            assert_eq!(remove_all(false).await.unwrap(), ranges(&[]));
            assert!(output_of_ip("route").contains("10.96.0.0/12 via 192.0.2.8"), "somebody else's stays");
        });
    }

    #[test]
    fn rule_44_routes_follow_the_ranges_once_they_are_known() {
        in_new_namespace(|| async {
            ip("link set lo up");
            make(&ranges(&["10.96.0.0/12"])).await.unwrap();
            let (sender, receiver) = watch::channel(None);
            let following = tokio::spawn(follow(receiver, |_| {}));
            let settled = async |texts: &[&str]| {
                for _ in 0..100 {
                    if remove_all(true).await.unwrap() == ranges(texts) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                panic!("{:?}", remove_all(true).await);
            };
            tokio::time::sleep(Duration::from_millis(50)).await;
            settled(&["10.96.0.0/12"]).await;
            sender.send(Some(ranges(&["172.30.0.0/16"]))).unwrap();
            settled(&["172.30.0.0/16"]).await;
            sender.send(Some(ranges(&[]))).unwrap();
            settled(&[]).await;
            drop(sender);
            following.await.unwrap();
        });
    }
}
