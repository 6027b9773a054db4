// SPDX-License-Identifier: MIT OR Apache-2.0
//! Services and EndpointSlices, of which there are many, read without what nobody here asks for.
//!
//! `metadata.managedFields`, which tell who wrote which field, are nearly half of what a server sends of small ones, and would be
//! a tree of small allocations for each: a sixth of the processor time of a start.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::{
        core::v1::{Service, ServiceStatus},
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use crate::source::{Object, failover::Spec};

/// An object of kind `K` with no more of its metadata than Shunt reads.
#[derive(Clone, Debug)]
pub(super) struct Lean<K>(pub(super) K);

/// What is read of `metadata`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    /// The watcher goes on from here.
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        let Metadata { name, namespace, uid, resource_version, creation_timestamp, labels, annotations } = metadata;
        Self { name, namespace, uid, resource_version, creation_timestamp, labels, annotations, ..Self::default() }
    }
}

impl<'de> Deserialize<'de> for Lean<Service> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            #[serde(default)]
            metadata: Metadata,
            spec: Option<Spec>,
            status: Option<ServiceStatus>,
        }
        let Written { mut metadata, spec, status } = Written::deserialize(deserializer)?;
        let spec = spec.map(|spec| spec.into_known(&mut metadata.annotations));
        Ok(Self(Service { metadata: metadata.into(), spec, status }))
    }
}

impl<'de> Deserialize<'de> for Lean<EndpointSlice> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Written {
            #[serde(default)]
            metadata: Metadata,
            address_type: Option<String>,
            endpoints: Option<Vec<Endpoint>>,
            ports: Option<Vec<EndpointPort>>,
        }
        let Written { metadata, address_type, endpoints, ports } = Written::deserialize(deserializer)?;
        Ok(Self(EndpointSlice {
            metadata: metadata.into(),
            address_type: address_type.unwrap_or_default(),
            endpoints,
            ports,
        }))
    }
}

impl<K: Into<Object>> From<Lean<K>> for Object {
    fn from(lean: Lean<K>) -> Self {
        lean.0.into()
    }
}

impl<K: Resource> Resource for Lean<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// Objects are read as by the types of the API, but for metadata that nobody reads.
    fn reads_the_same<K>(mut object: Value)
    where
        K: DeserializeOwned + PartialEq + std::fmt::Debug,
        Lean<K>: DeserializeOwned,
    {
        object["metadata"]["uid"] = json!("453eeb96");
        let whole: K = serde_json::from_value(object.clone()).unwrap();
        object["metadata"]["managedFields"] = json!([{ "manager": "kubectl", "fieldsV1": { "f:spec": {} } }]);
        object["metadata"]["generation"] = json!(4);
        let lean: Lean<K> = serde_json::from_value(object).unwrap();
        assert_eq!(lean.0, whole);
    }

    fn metadata() -> Value {
        json!({
            "name": "web",
            "namespace": "default",
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-26T02:14:10Z",
            "labels": { "kubernetes.io/service-name": "web" },
            "annotations": { "shunt.dev/on-backend-removal": "reset" },
        })
    }

    #[test]
    fn services_are_read_whole_but_for_their_metadata() {
        reads_the_same::<Service>(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(),
            "spec": { "clusterIP": "10.96.0.1", "type": "LoadBalancer", "ports": [{ "port": 80, "targetPort": "http" }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } },
        }));
        reads_the_same::<Service>(json!({ "metadata": { "name": "web", "labels": null }, "spec": null }));
        assert!(serde_json::from_value::<Lean<Service>>(json!({})).is_ok_and(|lean| lean.0 == Service::default()));
    }

    #[test]
    fn slices_are_read_whole_but_for_their_metadata() {
        let endpoint = json!({ "addresses": ["10.0.0.1"], "conditions": { "ready": true }, "nodeName": "node-a" });
        reads_the_same::<EndpointSlice>(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata(),
            "addressType": "IPv4",
            "endpoints": [endpoint],
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        }));
        reads_the_same::<EndpointSlice>(json!({ "metadata": metadata(), "endpoints": null, "ports": null }));
    }
}
