// SPDX-License-Identifier: MIT OR Apache-2.0
//! Follows the kernel's route netlink in the network namespace of the thread that starts it.
//!
//! Out: [`Change`]s. Reports that the kernel had to throw away (`ENOBUFS`) lead to a new look at everything, as does a
//! socket that broke.

use std::{collections::BTreeSet, io, time::Duration};

use nix::libc;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::LinkMessage,
        neighbour::NeighbourMessage,
        route::{RouteHeader, RouteMessage},
        rule::RuleMessage,
    },
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    decode::{decode, is_default, is_policy, ways},
    next_hop_objects,
    state::{Change, NodeState},
};

/// Whatever can change a device, its role, or a cached next hop, or takes our filters away. Changes of next-hop objects come as those of
/// the routes that use them, too, but not where `net.ipv4.nexthop_compat_mode` is off.
const GROUPS: [MulticastGroup; 10] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Tc,
    MulticastGroup::Nexthop,
];

/// Room for the reports of a burst; the kernel grants at most `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: u32 = 4 << 20;

/// Pause before another attempt to open the socket.
const RETRY: Duration = Duration::from_secs(1);

/// The kernel answers at once, or a lock is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a list is asked for that was changed while it was read.
const MOST_LOOKS: usize = 20;

/// Netlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("can't open a route netlink socket")]
    Open(#[source] io::Error),
    /// A question that the kernel did not answer.
    #[error("can't list this machine's {what}: {source}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No list could be read while nothing changed.
    #[error("this machine's devices, addresses, routes or neighbours change too fast to be listed")]
    Restless,
    /// The kernel took a question, and did not answer.
    #[error("the kernel does not answer")]
    NoAnswer,
}

/// A subscription to the kernel's reports. They are read no faster than they are taken: what waits meanwhile waits in the
/// socket, whose room is bounded, and where that ends the kernel says so.
pub struct Follower {
    socket: TokioSocket,
    /// See [`Change::DefaultDevices`].
    default_devices: BTreeSet<u32>,
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
        let socket = open().map_err(NetlinkError::Open)?;
        if let Err(error) = socket.socket_ref().set_rx_buf_sz(bytes) {
            debug!("the netlink socket keeps its small receive buffer: {error}");
        }
        for group in GROUPS {
            socket.socket_ref().add_membership(group as u32).map_err(NetlinkError::Open)?;
        }
        let state = look(everything).await?;
        let default_devices = state.default_devices().clone();
        Ok((Self { socket, default_devices }, state))
    }

    /// Passes on what the kernel reports, until nobody listens any more.
    pub async fn run(mut self, changes: mpsc::Sender<Change>) {
        loop {
            let reported = match self.socket.recv_from_full().await {
                // Others may write to a netlink socket, too.
                Ok((_, from)) if from.port_number() != 0 => continue,
                Ok((bytes, _)) => self.reported(&bytes).await,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    warn!("the kernel reported more than could be followed; looking at everything anew");
                    vec![self.resync().await]
                }
                Err(error) => {
                    warn!("the netlink socket broke: {error}; opening it anew");
                    vec![self.resync().await]
                }
            };
            for change in reported {
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What a datagram reports.
    async fn reported(&mut self, bytes: &[u8]) -> Vec<Change> {
        let mut changes: Vec<Change> = messages(bytes).filter_map(changed).collect();
        if next_hop_objects::are_in(bytes) {
            changes.push(Change::Routes { may_be_default: true });
        }
        if changes.iter().any(|change| self.may_change_default_routes(change)) {
            match look(default_routes).await {
                Ok(devices) => {
                    self.default_devices.clone_from(&devices);
                    changes.push(Change::DefaultDevices(devices));
                }
                Err(error) => {
                    warn!("{error}; looking at everything anew");
                    changes.push(self.resync().await);
                }
            }
        }
        if changes.contains(&Change::Rules) {
            match look(rules).await {
                Ok(is_policy_routed) => changes.push(Change::PolicyRouting(is_policy_routed)),
                Err(error) => {
                    warn!("{error}; looking at everything anew");
                    changes.push(self.resync().await);
                }
            }
        }
        changes
    }

    /// Of IPv4 routes that go with an address, or because their device was shut, the kernel says nothing.
    fn may_change_default_routes(&self, change: &Change) -> bool {
        match change {
            Change::Routes { may_be_default } => *may_be_default,
            Change::Link { ifindex, link } => !link.is_up && self.default_devices.contains(ifindex),
            Change::AddressGone { ifindex, .. } => self.default_devices.contains(ifindex),
            _ => false,
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

pub(super) fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn changed(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
    match message.payload {
        NetlinkPayload::InnerMessage(message) => decode(message),
        _ => None,
    }
}

/// The messages of a datagram, without those that can't be read.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    let next = move || {
        let len = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let (message, rest) = (&bytes[..len], &bytes[len.next_multiple_of(4).min(bytes.len())..]);
        bytes = rest;
        Some(NetlinkMessage::deserialize(message))
    };
    std::iter::from_fn(next)
        .filter_map(|message| message.inspect_err(|error| debug!("a netlink message can't be read: {error}")).ok())
}

/// What is there now. While the machine changes, the kernel may leave something out and say so: then it is asked again.
pub(super) async fn look<T, F>(at: impl Fn() -> F) -> Result<T, NetlinkError>
where
    F: Future<Output = Result<(T, bool), NetlinkError>>,
{
    for _ in 0..MOST_LOOKS {
        if let (seen, true) = at().await? {
            return Ok(seen);
        }
    }
    Err(NetlinkError::Restless)
}

/// Everything, and whether it was looked at as a whole.
async fn everything() -> Result<(NodeState, bool), NetlinkError> {
    let mut state = NodeState::default();
    let socket = open().map_err(NetlinkError::Open)?;
    let questions = [
        ("devices", RouteNetlinkMessage::GetLink(LinkMessage::default())),
        ("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())),
        ("neighbours", RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())),
    ];
    let mut is_whole = true;
    for (what, question) in questions {
        is_whole &= list(&socket, what, question, |message| take_in(&mut state, message)).await?;
    }
    let (devices, are_whole) = default_routes().await?;
    is_whole &= are_whole;
    state.apply(Change::DefaultDevices(devices));
    let (is_policy_routed, are_whole) = rules().await?;
    state.apply(Change::PolicyRouting(is_policy_routed));
    Ok((state, is_whole && are_whole))
}

/// Whether there are rules for which [`is_policy`] is so; and whether they were looked at as a whole.
async fn rules() -> Result<(bool, bool), NetlinkError> {
    let socket = open().map_err(NetlinkError::Open)?;
    let (mut is_policy_routed, mut is_whole) = (false, true);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        is_whole &= list(&socket, "routing rules", RouteNetlinkMessage::GetRule(question), |message| {
            is_policy_routed |= matches!(message, RouteNetlinkMessage::NewRule(rule) if is_policy(&rule));
        })
        .await?;
    }
    Ok((is_policy_routed, is_whole))
}

/// The devices through which the main table's default routes lead; and whether they were looked at as a whole.
async fn default_routes() -> Result<(BTreeSet<u32>, bool), NetlinkError> {
    let socket = open().map_err(NetlinkError::Open)?;
    // Else the kernel lists the routes of all tables.
    if let Err(error) = socket.socket_ref().set_netlink_get_strict_chk(true) {
        debug!("routes of all tables are listed: {error}");
    }
    let (mut devices, mut objects, mut is_whole) = (BTreeSet::new(), BTreeSet::new(), true);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.table = RouteHeader::RT_TABLE_MAIN;
        // Where there is no such table yet, the list is an empty one.
        is_whole &= list(&socket, "routes", RouteNetlinkMessage::GetRoute(question), |message| {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && is_default(&route)
            {
                let (ifindexes, object) = ways(&route);
                devices.extend(ifindexes);
                objects.extend(object);
            }
        })
        .await?;
    }
    if !objects.is_empty() {
        let listed = tokio::time::timeout(PATIENCE, next_hop_objects::list(&socket)).await;
        let listed = listed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let known = listed.map_err(|source| NetlinkError::List { what: "next-hop objects", source })?;
        devices.extend(objects.iter().flat_map(|id| next_hop_objects::devices(*id, &known)));
    }
    Ok((devices, is_whole))
}

/// Asks for a list. Returns whether nothing was changed while the kernel went through it.
pub(super) async fn list(
    socket: &TokioSocket,
    what: &'static str,
    question: RouteNetlinkMessage,
    mut take: impl FnMut(RouteNetlinkMessage),
) -> Result<bool, NetlinkError> {
    let mut request = NetlinkMessage::from(question);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.header.sequence_number = 1;
    let answered = tokio::time::timeout(PATIENCE, ask(socket, request, &mut take)).await;
    let answered = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    answered.map_err(|source| NetlinkError::List { what, source })
}

async fn ask(
    socket: &TokioSocket,
    mut request: NetlinkMessage<RouteNetlinkMessage>,
    take: &mut impl FnMut(RouteNetlinkMessage),
) -> io::Result<bool> {
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes).await?;
    let mut is_whole = true;
    loop {
        let (bytes, _) = socket.recv_from_full().await?;
        for message in messages(&bytes) {
            if message.header.sequence_number != request.header.sequence_number {
                continue;
            }
            is_whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => take(message),
                NetlinkPayload::Done(_) => return Ok(is_whole),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
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

    pub async fn follow_until(
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

    /// One after the other is added. At first there is no table at all.
    #[test]
    fn default_routes_are_those_of_the_main_table_of_both_families() {
        in_new_namespace(|| async {
            assert_eq!(look(default_routes).await.unwrap(), BTreeSet::new());
            for index in 20..24 {
                ip(&format!("link add d{index} index {index} type veth peer name p{index}"));
                ip(&format!("link set p{index} up"));
                ip(&format!("link set d{index} up"));
                ip(&format!("address add 192.0.{index}.1/24 dev d{index}"));
            }
            for (route, expected) in [
                ("-4 route add default dev d20 table 100", vec![]),
                ("-6 route add default dev d20 table 1000", vec![]),
                ("-6 route add default dev d21", vec![21]),
                ("-4 route add 198.51.100.0/24 dev d20", vec![21]),
                ("-4 route add default dev d22 proto static", vec![21, 22]),
                ("-4 route add default dev d23 proto boot metric 7", vec![21, 22, 23]),
            ] {
                ip(route);
                assert_eq!(look(default_routes).await.unwrap(), BTreeSet::from_iter(expected), "{route}");
            }
        });
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
            assert!(!state.is_default_device(veth0));

            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            ip("link set veth0 up");
            ip("route add default via 192.0.2.9 dev veth0");
            follow_until(&mut changes, &mut state, |state| state.is_default_device(veth0)).await;
            ip("link set veth0 down");
            follow_until(&mut changes, &mut state, |state| !state.is_default_device(veth0)).await;
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
    fn rules_that_ask_for_more_than_a_destination_are_followed() {
        in_new_namespace(|| async {
            let (follower, mut state) = Follower::start().await.unwrap();
            assert!(!state.is_policy_routed());
            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            for rule in ["from 192.0.2.1 lookup 100", "iif lo lookup 100", "tos 0x10 lookup 100"] {
                ip(&format!("rule add {rule}"));
                follow_until(&mut changes, &mut state, NodeState::is_policy_routed).await;
                ip(&format!("rule del {rule}"));
                follow_until(&mut changes, &mut state, |state| !state.is_policy_routed()).await;
            }
            ip("rule add to 192.0.2.0/24 lookup 100");
            ip("rule add fwmark 7 lookup 100");
            ip("rule add pref 96 lookup 83 protocol 83");
            ip("-6 rule add from fd00::1 lookup 100");
            follow_until(&mut changes, &mut state, NodeState::is_policy_routed).await;
            ip("-6 rule del from fd00::1 lookup 100");
            follow_until(&mut changes, &mut state, |state| !state.is_policy_routed()).await;
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

    /// What nobody takes yet waits in the socket, whose room is bounded, and not in this process.
    #[test]
    fn reports_that_nobody_takes_fill_no_memory() {
        in_new_namespace(|| async {
            let (follower, mut state) = Follower::start_with_room(1 << 14).await.unwrap();
            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            for index in 0..60 {
                ip(&format!("link add burst{index} type veth peer name tsrub{index}"));
                // The follower has time enough to read all there is.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut before = 0;
            loop {
                let change = changes.recv().await.unwrap();
                let is_resync = matches!(change, Change::Resync(_));
                state.apply(change);
                if is_resync {
                    break;
                }
                before += 1;
                assert!(before < 100, "all were kept");
            }
            follow_until(&mut changes, &mut state, |state| state.links().len() == 121).await;
        });
    }

    #[test]
    fn a_list_that_was_changed_while_it_was_read_is_known_as_such() {
        let message = |flags| {
            let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(LinkMessage::default()));
            message.header.flags = flags;
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let bytes = [message(0), message(NLM_F_DUMP_INTR), vec![0; 3]].concat();
        let flags: Vec<_> = messages(&bytes).map(|message| message.header.flags & NLM_F_DUMP_INTR != 0).collect();
        assert_eq!(flags, [false, true]);
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
