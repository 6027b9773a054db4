// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of objects that the server knows, and where they are in the API.

use serde_json::Value;

/// A kind of object, by its plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// `v1/Service`.
    Services,
    /// `discovery.k8s.io/v1/EndpointSlice`.
    EndpointSlices,
    /// `v1/Node`.
    Nodes,
    /// `networking.k8s.io/v1/ServiceCIDR`.
    ServiceCidrs,
    /// `v1/Secret`.
    Secrets,
}

impl Resource {
    /// Those that agents list and watch.
    pub const WATCHED: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs];
    /// All of them.
    const ALL: [Self; 5] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs, Self::Secrets];

    /// The last part of its path.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
            Self::Secrets => "secrets",
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::Secrets => "Secret",
        }
    }

    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes | Self::Secrets => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    fn is_namespaced(self) -> bool {
        matches!(self, Self::Services | Self::EndpointSlices | Self::Secrets)
    }

    /// The kind of a manifest.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let is_of =
            |resource: &Self| object["kind"] == resource.kind() && object["apiVersion"] == resource.api_version();
        Self::ALL.into_iter().find(is_of)
    }

    /// What a path asks for, and in which namespace.
    pub(super) fn at(path: &str) -> Option<(Self, Option<&str>)> {
        let below = |resource: &Self| {
            let version = resource.api_version();
            let root = if version.contains('/') { "/apis/" } else { "/api/" };
            path.strip_prefix(root)?.strip_prefix(version)?.strip_prefix('/')
        };
        Self::ALL.into_iter().find_map(|resource| {
            let rest = below(&resource)?;
            if rest == resource.plural() {
                return Some((resource, None));
            }
            let (namespace, plural) = rest.strip_prefix("namespaces/")?.split_once('/')?;
            (resource.is_namespaced() && plural == resource.plural()).then_some((resource, Some(namespace)))
        })
    }
}

/// Identity of an object; no namespace is the empty one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Id {
    pub(super) fn of(object: &Value) -> Option<Self> {
        let resource = Resource::of(object)?;
        let namespace = object["metadata"]["namespace"].as_str();
        let name = object["metadata"]["name"].as_str()?;
        Some(Self::new(resource, namespace.unwrap_or("default"), name))
    }

    /// The one object that a path names.
    pub(super) fn at(path: &str) -> Option<Self> {
        let (collection, name) = path.rsplit_once('/')?;
        let (resource, namespace) = Resource::at(collection)?;
        (resource.is_namespaced() == namespace.is_some()).then(|| Self::new(resource, namespace.unwrap_or(""), name))
    }

    pub(super) fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        let namespace = if resource.is_namespaced() { namespace } else { "" };
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_apis() {
        assert_eq!(Resource::at("/api/v1/services"), Some((Resource::Services, None)));
        assert_eq!(Resource::at("/api/v1/namespaces/a/services"), Some((Resource::Services, Some("a"))));
        assert_eq!(Resource::at("/apis/discovery.k8s.io/v1/endpointslices"), Some((Resource::EndpointSlices, None)));
        assert_eq!(Resource::at("/apis/networking.k8s.io/v1/servicecidrs"), Some((Resource::ServiceCidrs, None)));
        let secret = Id::new(Resource::Secrets, "a", "b");
        assert_eq!(Id::at("/api/v1/namespaces/a/secrets/b"), Some(secret));
        assert_eq!(Id::at("/api/v1/namespaces/a/services"), None);
        for other in ["/api/v1/pods", "/apis/v1/services", "/api/v1/namespaces/a/nodes", "/version"] {
            assert_eq!(Resource::at(other), None, "{other}");
        }
    }
}
