// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be written so that the maps hold what they should. Pure: no I/O, and `now` comes in.
//!
//! In: [`Unit`](crate::compile::Unit)s of one Service at a time, and at the start a [`Dump`] of the adopted maps. Out:
//! ordered [`Operation`]s. [`State`] is the mirror of the maps; it alone knows indices, offsets and generations. It must
//! not know of aya, file descriptors or Kubernetes.
//!
//! Two rules keep the packet path right while it reads what is being written:
//!
//! - **Order.** Backends, tables, filter bits and names first; then frontends, which are the commit point; then what
//!   nothing refers to any more. So a reader meets the old or the new state of a Service, and both are whole. (A lookup table
//!   that is changed in place, where its frontends stay as they are, comes in their turn: a reader reads one slot of it.)
//! - **Grace.** An index or a piece of the table array that was freed is not used again for [`GRACE`]: a program that
//!   read the old table must not meet the next owner in it.

mod adopt;
mod claims;
mod draft;
mod extent;
mod filter;
mod index;
mod mirror;
mod operation;
mod plan;
mod pools;
mod sample;
mod shortage;
mod state;
mod tables;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use lb_common::{
    address::Address,
    config::Interface,
    flow::protocol,
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey},
    maps::{ServiceName, capacity},
};

pub use self::{
    draft::unit_of_name,
    filter::Filter,
    filter::position as filter_position,
    operation::{Operation, WriteError, Writer},
    plan::{FRONTEND_TAKEN, Plan},
    sample::{Cursor, SampleSize},
    state::State,
};
pub use crate::compile::ServiceKey;

/// How long a freed index or table extent rests. A program runs for microseconds; the margin is for a preempted one.
pub const GRACE: Duration = Duration::from_secs(2);

/// How much the maps can hold. Each is a flag of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// `--max-frontends`: addresses times ports.
    pub frontends: u32,
    /// `--max-backends`: endpoints of all Service ports together. Index 0 is never used.
    pub backends: u32,
    /// `--max-table-slots`: slots of all Maglev tables together.
    pub table_slots: u32,
    /// `--max-flows`: flow entries per family.
    pub flows: u32,
    /// `--max-young-flows`: entries of flows that have only begun, per family.
    pub young_flows: u32,
    /// `--max-services`: Service ports, each family counted. Index 0 is never used.
    pub services: u32,
    /// `--max-source-ranges`: source ranges of all Service ports together.
    pub source_ranges: u32,
    /// `--max-affinity`: clients of Services with session affinity. The oldest make way for new ones.
    pub affinity: u32,
    /// `--max-fragments`: datagrams in fragments that are under way. The oldest make way for new ones.
    pub fragments: u32,
    /// `--max-interfaces`: devices with a role or an address.
    pub interfaces: u32,
    /// `--max-node-addresses`: local addresses that answer NodePorts.
    pub node_addresses: u32,
    /// `--max-sockets`: open sockets that the socket door has connected to backends, and entries of those that send without a
    /// connection. The oldest make way for new ones.
    pub sockets: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            frontends: capacity::FRONTENDS,
            backends: capacity::BACKENDS,
            table_slots: capacity::TABLE_SLOTS,
            flows: capacity::FLOWS,
            young_flows: capacity::YOUNG_FLOWS,
            services: capacity::SERVICES,
            source_ranges: capacity::SOURCE_RANGES,
            affinity: capacity::AFFINITY,
            fragments: capacity::FRAGMENTS,
            interfaces: capacity::INTERFACES,
            node_addresses: capacity::NODE_ADDRESSES,
            sockets: capacity::SOCKETS,
        }
    }
}

/// What adopted maps hold, read once at the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    /// Names of the Service ports, by index.
    pub names: BTreeMap<u32, ServiceName>,
    /// All frontends.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Backends by index, the free ones with their generations. May be shorter than the map: the rest is zero.
    pub backends: Vec<Backend>,
    /// Admitted sources.
    pub source_ranges: Vec<SourceRangeKey>,
    /// Content of every table that a frontend refers to, by offset.
    pub tables: BTreeMap<u32, Vec<u32>>,
    /// Both planes of the address filter.
    pub filter: Filter,
    /// Local addresses that answer NodePorts.
    pub node_addresses: Vec<Address>,
    /// Devices by index.
    pub interfaces: BTreeMap<u32, Interface>,
}

/// A frontend for people: `10.96.0.1:80/TCP`, `[fd00::1]:80/TCP`, `node port 30080/TCP (IPv4)`, `all of 10.96.0.1`.
pub struct FrontendText<'a>(pub &'a FrontendKey);

impl fmt::Display for FrontendText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.0;
        if *key == FrontendKey::any_port(key.address) {
            return write!(f, "all of {}", key.address);
        }
        let (port, protocol) = (u16::from_be(key.port_be), ProtocolText(key.protocol));
        match [true, false].into_iter().find(|&is_v4| FrontendKey::any_address(is_v4) == key.address) {
            Some(is_v4) => write!(f, "node port {port}/{protocol} (IPv{})", if is_v4 { 4 } else { 6 }),
            None => write!(f, "{}/{protocol}", std::net::SocketAddr::new(key.address.into(), port)),
        }
    }
}

/// An IP protocol for people, as Kubernetes writes it.
pub struct ProtocolText(pub u8);

impl fmt::Display for ProtocolText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.0 {
            protocol::TCP => "TCP",
            protocol::UDP => "UDP",
            protocol::SCTP => "SCTP",
            other => return write!(f, "protocol {other}"),
        })
    }
}
