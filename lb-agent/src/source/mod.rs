// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where objects come from: the Kubernetes API or a directory of manifests. Both feed the same events.

use std::{fmt, path::PathBuf};

use ::kube::config::{InferConfigError, KubeconfigError};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};

use crate::{hash_seed::HashSeed, problem::Problem};

mod dir;
mod failover;
mod kube;
mod requests;

pub use self::{
    dir::run_dir,
    kube::{KubeOptions, SecretName, connect, run_kube},
    requests::ApiRequests,
};

/// What a source tells the one loop.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An object is there, new or changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectId),
    /// All objects that existed at the start have been delivered: from now on, what is absent may be removed. Sent once.
    Synced,
    /// Whether something that existed at the start can't be read, and may be anything: until it can, what is absent is not
    /// known to be gone. Told only where it changes; a source that says nothing of it is complete.
    Incomplete(bool),
    /// Whether nobody knows which ServiceCIDRs there are, because they may not be read. Told only where it changes; a source
    /// that says nothing of it knows.
    ServiceCidrsUnknown(bool),
    /// Whether all Services are being listed anew: until that is over, who has gone is not told.
    Relisting(bool),
    /// The key of the flow hash that all nodes share.
    HashSeed(HashSeed),
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
    /// Ranges from which ClusterIPs are allocated.
    ServiceCidr(Box<ServiceCIDR>),
}

impl From<Service> for Object {
    fn from(object: Service) -> Self {
        Self::Service(Box::new(object))
    }
}

impl From<EndpointSlice> for Object {
    fn from(object: EndpointSlice) -> Self {
        Self::EndpointSlice(Box::new(object))
    }
}

impl From<Node> for Object {
    fn from(object: Node) -> Self {
        Self::Node(Box::new(object))
    }
}

impl From<ServiceCIDR> for Object {
    fn from(object: ServiceCIDR) -> Self {
        Self::ServiceCidr(Box::new(object))
    }
}

impl Object {
    /// Its identity; parts that are missing are empty.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        let (kind, metadata) = match self {
            Self::Service(object) => (Kind::Service, &object.metadata),
            Self::EndpointSlice(object) => (Kind::EndpointSlice, &object.metadata),
            Self::Node(object) => (Kind::Node, &object.metadata),
            Self::ServiceCidr(object) => (Kind::ServiceCidr, &object.metadata),
        };
        let namespace = metadata.namespace.clone().filter(|_| kind.is_namespaced());
        ObjectId { kind, namespace: namespace.unwrap_or_default(), name: metadata.name.clone().unwrap_or_default() }
    }
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
    /// `networking.k8s.io/v1/ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// Whether its objects are in namespaces.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }
}

/// Identity of an object. `namespace` is empty where its kind knows none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    /// `Service default/web`, `Node node-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Service => write!(f, "Service {}/{}", self.namespace, self.name),
            Kind::EndpointSlice => write!(f, "EndpointSlice {}/{}", self.namespace, self.name),
            Kind::Node => write!(f, "Node {}", self.name),
            Kind::ServiceCidr => write!(f, "ServiceCIDR {}", self.name),
        }
    }
}

/// Why a source could not even start. Whatever happens later is an [`Event::Problem`].
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no directory to follow.
    #[error("can't read the manifest directory {}: {source}; create it, or name another one with --source dir:PATH", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file that was named can't be used.
    #[error("can't use kubeconfig {}: {source}; name another one with --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// No file was named, and there is none in the usual places.
    #[error(
        "found no way to reach a Kubernetes API: {0}; name a kubeconfig with --kubeconfig, or use --source dir:PATH"
    )]
    NoKubeconfig(#[source] InferConfigError),
    /// The credentials are there, but no client can be made of them.
    #[error("can't make a Kubernetes client of the credentials: {0}; check the certificates in the kubeconfig")]
    Client(#[source] ::kube::Error),
}
