// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Services of `manifests/sample`, as their clients know them.

use std::net::{IpAddr, SocketAddr};

use super::Family;

/// Port of the web Service on every node.
pub const WEB_NODE_PORT: u16 = 30080;
/// Port of the DNS Service on every node, UDP and TCP.
pub const DNS_NODE_PORT: u16 = 30053;
/// The web Service's backends.
pub const WEB_BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// The DNS Service's backend.
pub const DNS_BACKEND: &str = "dns-1";

const WEB_PORT: u16 = 80;
const DNS_PORT: u16 = 53;

/// The web Service inside the cluster.
#[must_use]
pub fn web(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick("10.96.0.80", "fd00:96::80"), WEB_PORT)
}

/// The DNS Service inside the cluster.
#[must_use]
pub fn dns(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick("10.96.0.10", "fd00:96::a"), DNS_PORT)
}

/// The web Service at a node.
#[must_use]
pub fn web_at(node: IpAddr) -> SocketAddr {
    SocketAddr::new(node, WEB_NODE_PORT)
}

/// The DNS Service at a node.
#[must_use]
pub fn dns_at(node: IpAddr) -> SocketAddr {
    SocketAddr::new(node, DNS_NODE_PORT)
}
