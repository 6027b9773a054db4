// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has the kernel ask for neighbours (ARP, neighbour discovery) to which only programs send.
//!
//! A neighbour is set to the state `probe` (`ip neigh change … nud probe`): the kernel asks it three times, a second apart, and
//! goes on as with any other; whoever does not answer is given up, and with the next packet the whole link is asked.
//! `NTF_USE` would do no more than a packet does, which is nothing until the neighbour's time is up, up to 45 s; and
//! `NTF_EXT_MANAGED` is the same every 5 s.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    io,
    net::IpAddr,
    time::Duration,
};

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    },
    sys::{AsyncSocketExt, TokioSocket},
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tracing::debug;

use super::netlink::open;

/// Messages in a datagram.
const AT_ONCE: usize = 64;

/// Parts in which they are asked, one after the other: the whole link would have to carry all questions and answers at once.
const PARTS: u32 = 16;
/// Between one part and the next: all are asked within a second.
const STEP: Duration = Duration::from_millis(1000 / PARTS as u64);

/// Asks for these neighbours, whenever they are told, until nobody tells them any more.
pub async fn ask(mut neighbours: watch::Receiver<Vec<(u32, IpAddr)>>) {
    while neighbours.changed().await.is_ok() {
        let told = parts(&neighbours.borrow_and_update());
        let start = Instant::now();
        for (part, some) in told {
            time::sleep_until(start + STEP * part).await;
            if let Err(error) = ask_once(&some).await {
                debug!("neighbours can't be asked for: {error}");
            }
        }
    }
}

/// A neighbour is always of the same part, whoever else comes or goes: it is asked as often as neighbours are told.
fn parts(neighbours: &[(u32, IpAddr)]) -> BTreeMap<u32, Vec<(u32, IpAddr)>> {
    let mut parts = BTreeMap::<_, Vec<_>>::new();
    for neighbour in neighbours {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(neighbour);
        parts.entry((hash % u64::from(PARTS)) as u32).or_default().push(*neighbour);
    }
    parts
}

async fn ask_once(neighbours: &[(u32, IpAddr)]) -> io::Result<()> {
    // A new one each time: what the kernel says of those that have gone meanwhile goes with it.
    let socket = open()?;
    for some in neighbours.chunks(AT_ONCE) {
        send(&socket, some).await?;
    }
    Ok(())
}

async fn send(socket: &TokioSocket, neighbours: &[(u32, IpAddr)]) -> io::Result<()> {
    let mut bytes = Vec::new();
    for &(ifindex, ip) in neighbours {
        let mut message = question(ifindex, ip);
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + message.buffer_len()]);
    }
    socket.send(&bytes).await?;
    // What has come in meanwhile is not of interest: refusals, of what has gone.
    while let Ok(Ok(_)) = time::timeout(Duration::ZERO, socket.recv_from_full()).await {}
    Ok(())
}

/// No new one is made, and none gets another Ethernet address. The kernel refuses if it knows none.
fn question(ifindex: u32, ip: IpAddr) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Probe;
    let (family, address) = match ip {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    message.header.flags = NLM_F_REQUEST;
    message
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::node::netlink::tests::{in_new_namespace, ip, output_of_ip};

    #[test]
    fn pitfall_27_neighbours_are_asked_one_part_after_the_other_and_each_with_its_own() {
        let neighbours: Vec<_> = (0..1600_u32).map(|n| (2, Ipv4Addr::from(0x0a00_0000 + n).into())).collect();
        let all = parts(&neighbours);
        assert_eq!(all.values().map(Vec::len).sum::<usize>(), neighbours.len());
        assert!(all.len() == 16 && all.values().all(|part| (50..150).contains(&part.len())), "{all:?}");
        for (part, some) in parts(&neighbours[7..900]) {
            assert!(some.iter().all(|neighbour| all[&part].contains(neighbour)));
        }
    }

    #[test]
    fn pitfall_27_the_kernel_asks_those_that_it_knows() {
        in_new_namespace(|| async {
            ip("link add veth0 index 20 up type veth peer name peer0");
            ip("link set peer0 up");
            ip("address add 192.0.2.1/24 dev veth0");
            ip("address add fd00::1/64 dev veth0 nodad");
            let known = ["192.0.2.8", "fd00::8"];
            known.iter().for_each(|at| ip(&format!("neigh add {at} lladdr 02:00:00:00:00:08 nud stale dev veth0")));
            let (sender, told) = watch::channel(Vec::new());
            sender.send_replace(known.iter().chain(&["192.0.2.9"]).map(|at| (20, at.parse().unwrap())).collect());
            drop(sender);
            let start = Instant::now();
            ask(told).await;
            assert!(start.elapsed() < Duration::from_secs(2), "all are asked within a second: {:?}", start.elapsed());
            let seen = output_of_ip("neigh show dev veth0");
            assert_eq!(seen.matches("lladdr 02:00:00:00:00:08 PROBE").count(), 2, "{seen}");
            assert!(!seen.contains("192.0.2.9"), "{seen}");
        });
    }
}
