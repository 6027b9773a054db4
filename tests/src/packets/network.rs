// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network of its own for a thread: devices, addresses, routes and neighbours, so that route look-ups give real answers.
//!
//! It has no name and ends with the thread.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use super::build::ETHERNET;
use crate::reference::{Route, Version};

/// The uplink that most things come by. Takes frames that XDP redirects.
pub const UPLINK: u32 = 10;
/// Another uplink, that does not.
pub const SECOND: u32 = 20;
/// MTU of all devices, in bytes.
pub const MTU: u16 = 1500;
/// Leads to the pods of this node.
pub const POD: u32 = 30;
/// An uplink without addresses.
pub const BARE: u32 = 40;
/// That of the net, without addresses.
pub const NET: u32 = 50;
/// The loopback device.
pub const LOOPBACK: u32 = 1;

/// The Ethernet address of the net's device.
const NETS: [u8; 6] = ethernet(0x5e);
/// That of all other devices: frames that tests build are for it.
const OWN: [u8; 6] = [ETHERNET[0], ETHERNET[1], ETHERNET[2], ETHERNET[3], ETHERNET[4], ETHERNET[5]];

/// Devices, each one end of a veth pair, with their addresses.
const DEVICES: [(u32, &str, &[&str]); 5] = [
    (UPLINK, "uplink", &["192.0.2.1/24", "2001:db8:1::1/64"]),
    (SECOND, "second", &["198.51.100.1/24", "2001:db8:2::1/64"]),
    (POD, "pod", &["10.1.0.1/24", "fd00:1::1/64"]),
    (BARE, "bare", &[]),
    (NET, "shunt0", &[]),
];

/// Routes beside those that addresses bring: to pods of other nodes, and to clients.
const ROUTES: [(&str, u8, u32, Option<&str>); 12] = [
    ("10.2.0.0", 16, UPLINK, Some("192.0.2.2")),
    ("10.3.0.0", 16, SECOND, Some("198.51.100.2")),
    // Nobody knows this gateway's Ethernet address.
    ("10.4.0.0", 16, UPLINK, Some("192.0.2.99")),
    ("10.6.0.0", 16, BARE, None),
    ("203.0.113.0", 24, UPLINK, Some("192.0.2.2")),
    ("198.18.0.0", 24, SECOND, Some("198.51.100.2")),
    ("fd00:2::", 64, UPLINK, Some("2001:db8:1::2")),
    ("fd00:3::", 64, SECOND, Some("2001:db8:2::2")),
    ("fd00:4::", 64, UPLINK, Some("2001:db8:1::99")),
    ("fd00:6::", 64, BARE, None),
    ("2001:db8:c::", 64, UPLINK, Some("2001:db8:1::2")),
    ("2001:db8:d::", 64, SECOND, Some("2001:db8:2::2")),
];

/// Neighbours whose Ethernet addresses are known.
const NEIGHBOURS: [(u32, &str, u8); 10] = [
    (UPLINK, "192.0.2.2", 1),
    (SECOND, "198.51.100.2", 2),
    (POD, "10.1.0.11", 11),
    (POD, "10.1.0.12", 12),
    (BARE, "10.6.0.5", 5),
    (UPLINK, "2001:db8:1::2", 1),
    (SECOND, "2001:db8:2::2", 2),
    (POD, "fd00:1::11", 11),
    (POD, "fd00:1::12", 12),
    (BARE, "fd00:6::5", 5),
];

/// Addresses at once, no chatter of our own, and forwarding, without which the kernel looks no route up.
const SETTINGS: [(&str, &str); 6] = [
    ("net/ipv4/conf/all/forwarding", "1"),
    ("net/ipv4/conf/default/forwarding", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

/// The network of this thread, as the reference model must know it.
pub struct Network {
    /// All routes.
    pub routes: Vec<Route>,
    /// Neighbours' Ethernet addresses.
    pub neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// Devices' Ethernet addresses.
    pub devices: BTreeMap<u32, [u8; 6]>,
    /// Devices' IP addresses.
    pub addresses: BTreeMap<u32, BTreeMap<Version, IpAddr>>,
}

/// Runs `body` on a thread of its own, with a network of its own.
///
/// # Errors
/// When not root, when the network can't be made, or those of `body`.
///
/// # Panics
/// When `body` does.
pub fn with_network<T: Send>(body: impl FnOnce(Network) -> Result<T> + Send) -> Result<T> {
    ensure!(geteuid().is_root(), "packet tests load eBPF programs and make network namespaces: run them as root");
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace")?;
        body(Network::make()?)
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Network {
    fn make() -> Result<Self> {
        for (key, value) in SETTINGS {
            fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("can't set {key}"))?;
        }
        ip(&commands())?;
        Ok(Self::plan())
    }

    /// What is there once it is made.
    #[must_use]
    pub fn plan() -> Self {
        let mut devices: BTreeMap<_, _> = DEVICES.map(|(index, ..)| (index, ethernet_of(index))).into();
        devices.insert(LOOPBACK, [0; 6]);
        let neighbours = NEIGHBOURS.map(|(device, address, last)| ((device, parse(address)), ethernet(0x80 | last)));
        let addresses = DEVICES.map(|(index, _, addresses)| {
            let addresses = addresses.iter().map(|text| split(text).0);
            (index, addresses.map(|address| (Version::of(address), address)).collect())
        });
        Self { routes: routes(), neighbours: neighbours.into(), devices, addresses: addresses.into() }
    }

    /// Ethernet addresses, destination first, of frames that leave by a device for a neighbour.
    #[must_use]
    pub fn ethernet(&self, device: u32, neighbour: IpAddr) -> [u8; 12] {
        [self.neighbours[&(device, neighbour)], self.devices[&device]].concat().try_into().expect("twice six bytes")
    }
}

/// What one would type after `ip`, line by line.
fn commands() -> String {
    let mut lines = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| writeln!(lines, "{text}").expect("a string grows");
    for (index, name, addresses) in DEVICES {
        let (own, peer) = (text(ethernet_of(index)), index + 1);
        line(format_args!(
            "link add {name} index {index} mtu {MTU} address {own} type veth peer name {name}-peer index {peer}"
        ));
        for end in [name.to_owned(), format!("{name}-peer")] {
            line(format_args!("link set {end} addrgenmode none"));
            line(format_args!("link set {end} up"));
        }
        for address in addresses {
            line(format_args!("address add {address} dev {name}"));
        }
    }
    for (device, address, last) in NEIGHBOURS {
        let ethernet = text(ethernet(0x80 | last));
        line(format_args!("neighbour add {address} lladdr {ethernet} dev {} nud permanent", name(device)));
    }
    for (network, len, device, gateway) in ROUTES {
        let via = gateway.map(|gateway| format!("via {gateway}")).unwrap_or_default();
        line(format_args!("route add {network}/{len} {via} dev {}", name(device)));
    }
    lines
}

/// Our routes, those that come with addresses, and those that the kernel never forwards by.
fn routes() -> Vec<Route> {
    let added = ROUTES.map(|(network, prefix_len, device, gateway)| Route {
        network: parse(network),
        prefix_len,
        device: Some(device),
        gateway: gateway.map(parse),
    });
    let mut routes = added.to_vec();
    for (index, _, addresses) in DEVICES {
        for (address, len) in addresses.iter().map(|text| split(text)) {
            routes.push(Route { network: address, prefix_len: len, device: Some(index), gateway: None });
            let (first, last, whole) = ends(address, len);
            // Our own address, and that which names all hosts (IPv4; the first one is a host's since Linux 5.14) or any router
            // (IPv6) of the link.
            let others = if address.is_ipv4() { last } else { first };
            let own = [address, others];
            routes.extend(own.map(|network| Route { network, prefix_len: whole, device: None, gateway: None }));
        }
    }
    // Multicast, and what is valid on one link only.
    let unforwarded = [("ff00::", 8), ("fe80::", 10)];
    routes.extend(unforwarded.map(|(network, prefix_len)| {
        let network = parse(network);
        Route { network, prefix_len, device: None, gateway: None }
    }));
    routes
}

/// First and last address of a network, and the number of bits in one.
fn ends(address: IpAddr, len: u8) -> (IpAddr, IpAddr, u8) {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX >> len;
            ((v4.to_bits() & !mask).to_be_bytes().into(), (v4.to_bits() | mask).to_be_bytes().into(), 32)
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX >> len;
            ((v6.to_bits() & !mask).to_be_bytes().into(), (v6.to_bits() | mask).to_be_bytes().into(), 128)
        }
    }
}

fn ip(lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("can't start ip")?;
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).context("can't write to ip")?;
    let output = child.wait_with_output().context("can't wait for ip")?;
    ensure!(output.status.success(), "ip -batch:\n{lines}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn name(device: u32) -> &'static str {
    DEVICES.iter().find(|(index, ..)| *index == device).expect("a device of ours").1
}

/// The Ethernet address of a device.
const fn ethernet_of(device: u32) -> [u8; 6] {
    if device == NET { NETS } else { OWN }
}

/// A locally administered Ethernet address.
const fn ethernet(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn text(ethernet: [u8; 6]) -> String {
    ethernet.map(|byte| format!("{byte:02x}")).join(":")
}

fn split(prefix: &str) -> (IpAddr, u8) {
    let (address, len) = prefix.split_once('/').expect("a prefix");
    (parse(address), len.parse().expect("a length"))
}

fn parse(address: &str) -> IpAddr {
    address.parse().expect("an address")
}
