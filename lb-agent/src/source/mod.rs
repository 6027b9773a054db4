// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where objects come from: the Kubernetes API or a directory of manifests. Both feed the same events.

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

use crate::problem::Problem;

/// What a source tells the one loop.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An object is there, new or changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectId),
    /// All objects that existed at the start have been delivered: from now on, what is absent may be removed. Sent once.
    Synced,
    /// Something could not be read; what was known before stays.
    Problem(Problem),
}

/// An object of a kind that Shunt reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// Some of a Service's endpoints.
    EndpointSlice(Box<EndpointSlice>),
    /// A node; only the agent's own is of interest.
    Node(Box<Node>),
}

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1/Service`.
    Service,
    /// `discovery.k8s.io/v1/EndpointSlice`.
    EndpointSlice,
    /// `v1/Node`.
    Node,
}

/// Identity of an object. `namespace` is empty for Nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}
