// SPDX-License-Identifier: MIT OR Apache-2.0
//! What any API must do, the one in these tests and a real cluster's.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use shunt_tests::{
    api_server::{ApiServer, Resource},
    world::wait_until,
};

use super::{
    agent::Served,
    objects::{labelled, service, slice},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Where objects can be written.
pub trait Api {
    /// Creates or replaces an object, and returns it as the server keeps it.
    fn put(&self, object: Value) -> Result<Value>;
    /// Deletes it.
    fn remove(&self, resource: Resource, name: &str) -> Result<()>;
}

impl Api for ApiServer {
    fn put(&self, object: Value) -> Result<Value> {
        self.apply(object.clone());
        Ok(object)
    }

    fn remove(&self, resource: Resource, name: &str) -> Result<()> {
        self.delete(resource, name);
        Ok(())
    }
}

/// Waits until a Service's frontend has just these endpoints; `None`: until it is gone.
fn wait(served: &impl Fn() -> Result<Served>, service: &Value, wanted: Option<&[&str]>) -> Result<()> {
    let ip = service["spec"]["clusterIP"].as_str().context("a Service without a ClusterIP")?;
    let frontend = if ip.contains(':') { format!("[{ip}]:80/TCP") } else { format!("{ip}:80/TCP") };
    let wanted: Option<BTreeSet<String>> =
        wanted.map(|addresses| addresses.iter().map(|address| format!("{address}:8080")).collect());
    wait_until(&format!("{frontend} -> {wanted:?}"), PATIENCE, || Ok(served()?.remove(&frontend) == wanted))
}

/// Rule 1: a label hides a Service while it is there, with any value, and shows it again when it goes.
pub fn another_proxys_service(api: &impl Api, served: impl Fn() -> Result<Served>) -> Result<()> {
    let visible = api.put(service("web", 1))?;
    wait(&served, &visible, Some(&[]))?;
    for value in ["", "other-proxy"] {
        api.put(labelled(service("web", 1), "service.kubernetes.io/service-proxy-name", value))?;
        wait(&served, &visible, None)?;
        api.put(service("web", 1))?;
        wait(&served, &visible, Some(&[]))?;
    }
    api.remove(Resource::Services, "web")?;
    wait(&served, &visible, None)
}

/// Rule 2: the same for slices.
pub fn headless_slice(api: &impl Api, served: impl Fn() -> Result<Served>) -> Result<()> {
    let web = api.put(service("web", 1))?;
    let endpoints = slice("web", &["10.0.0.1", "10.0.0.2"]);
    api.put(endpoints.clone())?;
    wait(&served, &web, Some(&["10.0.0.1", "10.0.0.2"]))?;
    api.put(labelled(endpoints.clone(), "service.kubernetes.io/headless", ""))?;
    wait(&served, &web, Some(&[]))?;
    api.put(endpoints)?;
    wait(&served, &web, Some(&["10.0.0.1", "10.0.0.2"]))
}

/// Objects come in any order, change, and go.
pub fn comings_and_goings(api: &impl Api, served: impl Fn() -> Result<Served>) -> Result<()> {
    api.put(slice("web", &["10.0.0.1"]))?;
    let web = api.put(service("web", 1))?;
    wait(&served, &web, Some(&["10.0.0.1"]))?;
    api.put(slice("web", &["10.0.0.2", "10.0.0.3"]))?;
    wait(&served, &web, Some(&["10.0.0.2", "10.0.0.3"]))?;
    api.remove(Resource::EndpointSlices, "web-1")?;
    wait(&served, &web, Some(&[]))?;
    api.remove(Resource::Services, "web")?;
    wait(&served, &web, None)
}
