// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Service that these tests are about, and its clients.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use aya::util::KernelVersion;
use serde_json::{Value, json};
use shunt_tests::{
    load::{Protocol, talk::Outcome},
    world::{Family, Namespace, Options, World, for_each_kind, objects, wait_to_meet},
};
use socket2::Socket;

pub const NAME: &str = "sock";
pub const HOST: u8 = 77;
pub const NODE_PORT: u16 = 30_077;
pub const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];

/// The Service with a patch.
pub fn service(patch: &Value) -> Value {
    let mut spec = json!({ "spec": { "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) } });
    objects::merge(&mut spec, patch);
    objects::service(NAME, HOST, &spec)
}

/// A world in which it is served by all web pods, also for the processes of node-a.
pub fn world(options: Options, flags: &[&str]) -> Result<World> {
    let world = World::with_echoes(options, flags)?;
    serve(&world, &json!({}), &ALL)?;
    Ok(world)
}

/// Makes it the patched one with these pods, and waits until the processes of node-a find it so.
pub fn serve(world: &World, patch: &Value, pods: &[&str]) -> Result<()> {
    world.put([service(patch)].into_iter().chain(world.slices(NAME, pods)))?;
    for_each_kind(|protocol, family| wait_to_meet(node(world), protocol, inside(family), pods))
}

/// What an application hears whose UDP socket was closed under it: EDESTADDRREQ when it sends, for the socket is not
/// connected any more, and ECONNABORTED when it waits.
pub fn is_closed(error: &io::Error) -> bool {
    const EDESTADDRREQ: i32 = 89;
    error.kind() == io::ErrorKind::ConnectionAborted || error.raw_os_error() == Some(EDESTADDRREQ)
}

/// What becomes of a datagram that the door refuses. Before Linux 6.1 a program can't name its error: UDP hears EPERM then.
pub fn refused(protocol: Protocol) -> Outcome {
    let can_name_errors = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 1, 0));
    if protocol == Protocol::Tcp || can_name_errors { Outcome::Refused } else { Outcome::Denied }
}

/// The same where only others may be served. UDP that is connected hears as of any port where nobody listens.
pub fn denied(protocol: Protocol) -> Outcome {
    if protocol == Protocol::Tcp { Outcome::Denied } else { Outcome::Refused }
}

/// The processes of node-a.
pub fn node(world: &World) -> &Namespace {
    world.node("node-a").namespace()
}

/// Its ClusterIP.
pub fn inside(family: Family) -> SocketAddr {
    objects::cluster_ip(HOST, family)
}

/// Its NodePort on localhost.
pub fn localhost(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick("127.0.0.1", "::1"), NODE_PORT)
}

/// Its NodePort on a node.
pub fn at_node(world: &World, node: &str, family: Family) -> SocketAddr {
    SocketAddr::new(world.node(node).address(family), NODE_PORT)
}

/// An address in the form that an IPv6 socket wants.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// `connect` with AF_UNSPEC, which ends a connection.
pub fn disconnect(socket: &Socket) -> Result<()> {
    // SAFETY: all zero is an address of no family, and its length is that of the storage.
    let ((), unspecified) = unsafe { socket2::SockAddr::try_init(|_, _| Ok(())) }?;
    Ok(socket.connect(&unspecified)?)
}
