// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be asked of a real cluster: `KUBECONFIG_E2E=FILE cargo test -p shunt-tests --test watch cluster`,
//! or the same with `cargo xtask test`. FILE is a kubeconfig, by its absolute path.
//!
//! Everything happens in a namespace that is made for it and removed; nothing is programmed into any kernel.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    api::{Api as Typed, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use shunt_tests::api_server::Resource;
use tokio::runtime::Runtime;

use super::{
    agent::{Agent, empty},
    scenarios::{self, Api},
};

/// A namespace of a cluster, and who writes to it.
struct Cluster {
    kubeconfig: PathBuf,
    namespace: String,
    client: Client,
    runtime: Runtime,
}

fn kind_of(resource: Resource) -> ApiResource {
    let (group, kind) = match resource {
        Resource::Services => ("", "Service"),
        Resource::EndpointSlices => ("discovery.k8s.io", "EndpointSlice"),
        Resource::Nodes => ("", "Node"),
        Resource::Secrets => ("", "Secret"),
        Resource::ServiceCidrs => ("networking.k8s.io", "ServiceCIDR"),
    };
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind))
}

impl Cluster {
    fn reach() -> Result<Self> {
        let kubeconfig = PathBuf::from(env::var_os("KUBECONFIG_E2E").context("KUBECONFIG_E2E names no file")?);
        let runtime = Runtime::new().context("a runtime")?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(&kubeconfig)?;
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        let namespace = format!("shunt-test-{}", std::process::id());
        let cluster = Self { kubeconfig, namespace, client, runtime };
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}});
        cluster.write(&cluster.namespaces(), &object)?;
        Ok(cluster)
    }

    fn namespaces(&self) -> Typed<DynamicObject> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Namespace"));
        Typed::all_with(self.client.clone(), &kind)
    }

    fn objects(&self, resource: Resource) -> Typed<DynamicObject> {
        Typed::namespaced_with(self.client.clone(), &self.namespace, &kind_of(resource))
    }

    /// By server-side apply, which takes away what is not said any more.
    fn write(&self, to: &Typed<DynamicObject>, object: &Value) -> Result<Value> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let how = PatchParams::apply("shunt-tests").force();
        let written = self.runtime.block_on(to.patch(name, &how, &Patch::Apply(object)))?;
        Ok(serde_json::to_value(written)?)
    }
}

impl Api for Cluster {
    fn put(&self, mut object: Value) -> Result<Value> {
        object["metadata"]["namespace"] = json!(self.namespace);
        // The cluster has ranges of its own, and allocates.
        if let Some(spec) = object["spec"].as_object_mut() {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
        let resource = if object["kind"] == "Service" { Resource::Services } else { Resource::EndpointSlices };
        self.write(&self.objects(resource), &object)
    }

    fn remove(&self, resource: Resource, name: &str) -> Result<()> {
        self.runtime.block_on(self.objects(resource).delete(name, &Default::default()))?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.namespaces().delete(&self.namespace, &Default::default())) {
            eprintln!("can't remove the namespace {}: {error}", self.namespace);
        }
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a cluster: KUBECONFIG_E2E=FILE")]
fn rules_1_2_8_a_real_cluster_is_followed() -> Result<()> {
    let cluster = Cluster::reach()?;
    let agent = Agent::run(&cluster.kubeconfig, empty())?;
    agent.wait_synced()?;
    scenarios::comings_and_goings(&cluster, || Ok(agent.served()))?;
    scenarios::another_proxys_service(&cluster, || Ok(agent.served()))?;
    scenarios::headless_slice(&cluster, || Ok(agent.served()))
}
