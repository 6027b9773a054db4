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
    clock::Clock,
    config::{Interface, family_index},
    flow::{protocol, table::WAYS},
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey},
    maps::{ServiceName, capacity},
};

pub use self::{
    draft::unit_of_name,
    filter::{Filter, concern_of},
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
    /// `--max-flows`: flow entries per family, rounded up to a power of two from 8 on.
    pub flows: u32,
    /// Whether the node has addresses of each family, IPv4 and IPv6: for one that it has not there is room for one set of flow
    /// entries.
    pub families: [bool; 2],
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
            families: [true; 2],
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

impl Capacities {
    /// Sets in the flow table of a family that the node has not. No other table has so few.
    pub const SETS_OF_NO_FAMILY: u32 = 1;

    /// Sets in the flow table of a family: a power of two.
    #[must_use]
    pub fn flow_sets(&self, is_v4: bool) -> u32 {
        const LEAST: u32 = 2 * Capacities::SETS_OF_NO_FAMILY * WAYS;
        const MOST: u32 = 1 << 31;
        let entries = self.flows.clamp(LEAST, MOST).next_power_of_two();
        if self.families[family_index(is_v4)] { entries / WAYS } else { Self::SETS_OF_NO_FAMILY }
    }
}

/// What adopted maps hold, read once at the start.
#[derive(Clone, Debug, PartialEq)]
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
    /// The filter.
    pub filter: Filter,
    /// Local addresses that answer NodePorts.
    pub node_addresses: Vec<Address>,
    /// Devices by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The kernel's clock, by whose ticks the maps hold times.
    pub clock: Clock,
}

impl Default for Dump {
    /// Of empty maps, on a kernel with 1,000 jiffies a second.
    fn default() -> Self {
        Self {
            names: BTreeMap::new(),
            frontends: BTreeMap::new(),
            backends: Vec::new(),
            source_ranges: Vec::new(),
            tables: BTreeMap::new(),
            filter: Filter::default(),
            node_addresses: Vec::new(),
            interfaces: BTreeMap::new(),
            clock: Clock::new(1_000),
        }
    }
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
        if key.is_node_port() {
            write!(f, "node port {port}/{protocol} (IPv{})", if key.address.is_v4() { 4 } else { 6 })
        } else {
            write!(f, "{}/{protocol}", std::net::SocketAddr::new(key.address.into(), port))
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
