// SPDX-License-Identifier: MIT OR Apache-2.0
//! Desired state to map contents: which frontends a Service port has, and which backends serve each of them. Pure.
//!
//! In: one Service of the model, its endpoints, and what there is to know of the node. Out: [`Unit`]s, without indices
//! or offsets: those are `diff`'s, which knows what the maps hold already.

use std::{collections::BTreeMap, fmt};

use lb_common::{address::Address, frontend::FrontendKey};

/// The unit that is load-balanced (rule 10): a Service port of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; may be empty when it is the only one.
    pub port_name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Family of its frontends and backends.
    pub is_v4: bool,
}

impl fmt::Display for UnitId {
    /// `namespace/name:port`, without the colon where the port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if self.port_name.is_empty() { Ok(()) } else { write!(f, ":{}", self.port_name) }
    }
}

/// What the maps should hold for one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Every endpoint that serves: those that get new flows, and those that only keep theirs.
    pub backends: BTreeMap<BackendKey, BackendSpec>,
    /// The cluster list (rule 20) with weights.
    pub cluster: BTreeMap<BackendKey, u32>,
    /// The local list (rule 21) with weights.
    pub local: BTreeMap<BackendKey, u32>,
    /// Where the unit is reached, and which list serves there.
    pub frontends: BTreeMap<FrontendKey, FrontendPlan>,
}

/// Identity of a backend within its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// Address of the endpoint.
    pub address: Address,
    /// Its port, host byte order.
    pub port: u16,
}

/// What is to know of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Whether it stands in a list; else it only keeps the flows that it has.
    pub active: bool,
    /// Whether it runs on this node (rule 17).
    pub local: bool,
}

/// Which list serves a frontend's clients, by where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendPlan {
    /// Pods and processes of this node.
    pub internal: List,
    /// Everybody else.
    pub external: List,
    /// [`lb_common::frontend::frontend_flags`].
    pub flags: u32,
}

/// One of the two lists of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// All usable endpoints.
    Cluster,
    /// Those on this node.
    Local,
}
