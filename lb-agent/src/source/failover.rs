// SPDX-License-Identifier: MIT OR Apache-2.0
//! `spec.externalFailoverPolicy` of Services (KEP-6272), which the API's types do not know yet: read beside what they know, and
//! passed on as the annotation that says the same. An annotation that is there already stays.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServiceSpec, ServiceStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer},
};

const FIELD: &str = "externalFailoverPolicy";
const ANNOTATION: &str = "shunt.dev/external-failover";

/// A Service's `spec` with that field.
pub(super) struct Spec {
    known: ServiceSpec,
    failover: Option<String>,
}

impl Spec {
    /// The spec of the API's type. The rest goes into the annotations.
    pub(super) fn into_known(self, annotations: &mut Option<BTreeMap<String, String>>) -> ServiceSpec {
        if let Some(policy) = self.failover {
            annotations.get_or_insert_default().entry(ANNOTATION.to_owned()).or_insert(policy);
        }
        self.known
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Spec;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the spec of a Service")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Spec, A::Error> {
                let mut failover = None;
                let known = Beside { map, failover: &mut failover };
                let known = ServiceSpec::deserialize(MapAccessDeserializer::new(known))?;
                Ok(Spec { known, failover })
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// The members of a map but for one, which is put aside.
struct Beside<'a, A> {
    map: A,
    failover: &'a mut Option<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Beside<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            if key == FIELD {
                *self.failover = self.map.next_value()?;
            } else {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// A whole Service with that field.
#[derive(Deserialize)]
pub(super) struct Written {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<ServiceStatus>,
}

impl From<Written> for Service {
    fn from(written: Written) -> Self {
        let Written { mut metadata, spec, status } = written;
        let spec = spec.map(|spec| spec.into_known(&mut metadata.annotations));
        Self { metadata, spec, status }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value) -> Service {
        serde_json::from_value::<Written>(object).unwrap().into()
    }

    fn annotation(object: Value) -> Option<String> {
        read(object).metadata.annotations.and_then(|mut annotations| annotations.remove(ANNOTATION))
    }

    #[test]
    fn rule_86_the_field_of_the_spec_is_passed_on() {
        let with =
            |policy: Value| json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1", FIELD: policy}});
        assert_eq!(annotation(with(json!("Passthrough"))).as_deref(), Some("Passthrough"));
        assert_eq!(annotation(with(json!("None"))).as_deref(), Some("None"));
        assert_eq!(annotation(with(json!(null))), None);
        let mut both = with(json!("None"));
        both["metadata"]["annotations"] = json!({ANNOTATION: "passthrough"});
        assert_eq!(annotation(both).as_deref(), Some("passthrough"));
    }

    #[test]
    fn all_else_is_read_as_by_the_types_of_the_api() {
        for object in [
            json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "targetPort": "http"}],
                "unheardOf": {"a": [1]}}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}),
            json!({"metadata": {}, "spec": null}),
            json!({"spec": {}}),
        ] {
            assert_eq!(read(object.clone()), serde_json::from_value::<Service>(object).unwrap());
        }
        assert!(serde_json::from_value::<Written>(json!({"spec": {"ports": 7}})).is_err());
    }
}
