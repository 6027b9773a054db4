// SPDX-License-Identifier: MIT OR Apache-2.0
//! Follows the kernel's route netlink in the network namespace of the thread that starts it.
//!
//! Out: [`Change`]s. Reports that the kernel had to throw away (`ENOBUFS`) lead to a new look at everything, as does a
//! socket that broke.

use std::{io, net::Ipv4Addr, net::Ipv6Addr, time::Duration};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket, SocketAddr},
};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    decode::decode,
    state::{Change, NodeState},
};

/// Whatever can change a device, its role, or a cached next hop, or takes our filters away. Changes of next-hop objects come as those of the routes
/// that use them (`net.ipv4.nexthop_compat_mode`, on by default).
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Tc,
];

/// Room for the reports of a burst; the kernel grants at most `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: u32 = 4 << 20;

/// Pause before another attempt to open the socket.
const RETRY: Duration = Duration::from_secs(1);

/// Netlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("can't open a route netlink socket")]
    Open(#[source] io::Error),
    /// A question that the kernel did not answer.
    #[error("can't list this machine's {what}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// The kernel took a question, and did not answer.
    #[error("the kernel does not answer")]
    NoAnswer,
    /// A route that could not be changed.
    #[error("can't {verb} the route blackhole {range}: {source}")]
    Route {
        /// What was to be done.
        verb: &'static str,
        /// The route's destination.
        range: IpNet,
        /// Why not.
        source: rtnetlink::Error,
    },
}

type Reports = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A subscription to the kernel's reports.
#[derive(Debug)]
pub struct Follower {
    reports: Reports,
}

impl Follower {
    /// Subscribes, then looks at what is there: nothing falls between the two, and what is seen twice does no harm.
    ///
    /// # Errors
    /// Where netlink fails.
    pub async fn start() -> Result<(Self, NodeState), NetlinkError> {
        Self::start_with_room(RECEIVE_BUFFER_BYTES).await
    }

    async fn start_with_room(bytes: u32) -> Result<(Self, NodeState), NetlinkError> {
        let (mut connection, _, reports) = rtnetlink::new_multicast_connection(&GROUPS).map_err(NetlinkError::Open)?;
        if let Err(error) = connection.socket_mut().socket_mut().set_rx_buf_sz(bytes) {
            debug!("the netlink socket keeps its small receive buffer: {error}");
        }
        tokio::spawn(connection);
        Ok((Self { reports }, look().await?))
    }

    /// Passes on what the kernel reports, until nobody listens any more.
    pub async fn run(mut self, changes: mpsc::Sender<Change>) {
        loop {
            let change = match self.reports.next().await {
                Some((message, _)) => match message.payload {
                    NetlinkPayload::InnerMessage(message) => decode(message),
                    NetlinkPayload::Overrun(_) => {
                        warn!("the kernel reported more than could be followed; looking at everything anew");
                        Some(self.resync().await)
                    }
                    _ => None,
                },
                None => {
                    warn!("the netlink socket broke; opening it anew");
                    Some(self.resync().await)
                }
            };
            if let Some(change) = change
                && changes.send(change).await.is_err()
            {
                return;
            }
        }
    }

    /// Starts over, as often as it takes.
    async fn resync(&mut self) -> Change {
        loop {
            match Self::start().await {
                Ok((follower, state)) => {
                    *self = follower;
                    return Change::Resync(state);
                }
                Err(error) => warn!("{error}; trying again in {} s", RETRY.as_secs()),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Everything that is there now.
async fn look() -> Result<NodeState, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    let mut state = NodeState::default();
    look_at_devices(&handle, &mut state).await?;
    look_at_next_hops(&handle, &mut state).await?;
    Ok(state)
}

async fn look_at_devices(handle: &Handle, state: &mut NodeState) -> Result<(), NetlinkError> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(|source| NetlinkError::List { what: "devices", source })? {
        take_in(state, RouteNetlinkMessage::NewLink(link));
    }
    let mut addresses = handle.address().get().execute();
    while let Some(address) =
        addresses.try_next().await.map_err(|source| NetlinkError::List { what: "addresses", source })?
    {
        take_in(state, RouteNetlinkMessage::NewAddress(address));
    }
    Ok(())
}

async fn look_at_next_hops(handle: &Handle, state: &mut NodeState) -> Result<(), NetlinkError> {
    let questions = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for question in questions {
        let mut routes = handle.route().get(question).execute();
        while let Some(route) =
            routes.try_next().await.map_err(|source| NetlinkError::List { what: "routes", source })?
        {
            take_in(state, RouteNetlinkMessage::NewRoute(route));
        }
    }
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(neighbour) =
        neighbours.try_next().await.map_err(|source| NetlinkError::List { what: "neighbours", source })?
    {
        take_in(state, RouteNetlinkMessage::NewNeighbour(neighbour));
    }
    Ok(())
}

fn take_in(state: &mut NodeState, message: RouteNetlinkMessage) {
    if let Some(change) = decode(message) {
        state.apply(change);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{net::IpAddr, process::Command, thread};

    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };

    use super::*;
    use crate::node::state::VETH;

    /// Runs `ip`.
    pub fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    /// What `ip` says; nothing where it fails.
    pub fn output_of_ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the test on a thread in a network namespace of its own, which goes with the thread. Skips it without root,
    /// saying so.
    pub fn in_new_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        let thread = thread::spawn(move || {
            match unshare(CloneFlags::CLONE_NEWNET) {
                Err(Errno::EPERM) => return eprintln!("skipped: a network namespace needs root"),
                made => made.unwrap(),
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        });
        thread.join().unwrap();
    }

    async fn follow_until(
        changes: &mut mpsc::Receiver<Change>,
        state: &mut NodeState,
        is_done: impl Fn(&NodeState) -> bool,
    ) {
        let follow = async {
            while !is_done(state) {
                state.apply(changes.recv().await.unwrap());
            }
        };
        let patience = Duration::from_secs(5);
        assert!(tokio::time::timeout(patience, follow).await.is_ok(), "{state:#?}");
    }

    #[test]
    fn devices_addresses_and_routes_are_followed() {
        in_new_namespace(|| async {
            ip("link add veth0 type veth peer name peer0");
            ip("address add 192.0.2.1/24 dev veth0");
            let (follower, mut state) = Follower::start().await.unwrap();
            let (&veth0, link) = state.links().iter().find(|(_, link)| link.name == "veth0").unwrap();
            assert!(link.kind == VETH && link.is_ethernet && link.mac != [0; 6]);
            assert_eq!(state.addresses(veth0)[0].ip, "192.0.2.1".parse::<IpAddr>().unwrap());
            assert!(!state.is_outward_device(veth0));

            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            ip("link set veth0 up");
            ip("route add default via 192.0.2.9 dev veth0");
            follow_until(&mut changes, &mut state, |state| state.is_outward_device(veth0)).await;
            ip("address add fd00::1/64 dev veth0 nodad");
            let fd00: IpAddr = "fd00::1".parse().unwrap();
            follow_until(&mut changes, &mut state, |state| {
                state.addresses(veth0).iter().any(|own| own.ip == fd00 && own.is_global)
            })
            .await;
            ip("link del veth0");
            follow_until(&mut changes, &mut state, |state| state.links().len() == 1).await;
        });
    }

    #[test]
    fn a_bridge_keeps_the_device_that_leaves_it() {
        in_new_namespace(|| async {
            ip("link add veth0 type veth peer name peer0");
            ip("link add bridge0 type bridge");
            ip("link set veth0 master bridge0");
            let (follower, mut state) = Follower::start().await.unwrap();
            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            ip("link set veth0 nomaster");
            ip("link set peer0 name peer1");
            follow_until(&mut changes, &mut state, |state| state.links().values().any(|link| link.name == "peer1"))
                .await;
            assert!(state.links().values().any(|link| link.name == "veth0"));
        });
    }

    #[test]
    fn a_burst_that_overflows_the_socket_is_made_up_for() {
        in_new_namespace(|| async {
            let (follower, mut state) = Follower::start_with_room(1 << 14).await.unwrap();
            // Nobody reads meanwhile: this runtime has one thread, and it is here.
            for index in 0..30 {
                ip(&format!("link add burst{index} type veth peer name tsrub{index}"));
            }
            for index in 0..30 {
                ip(&format!("link del burst{index}"));
            }
            ip("link add last0 type veth peer name last1");
            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            let mut is_resynced = false;
            while !is_resynced {
                let change = changes.recv().await.unwrap();
                is_resynced = matches!(change, Change::Resync(_));
                state.apply(change);
            }
            follow_until(&mut changes, &mut state, |state| {
                state.links().len() == 3 && state.links().values().any(|link| link.name == "last0")
            })
            .await;
        });
    }
}
