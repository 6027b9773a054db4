// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `healthCheckNodePort`s of Services: load balancers ask there whether this node has endpoints (rules 65 to 68).
//!
//! The one loop opens and closes them as Services change, and hears at once of a port that can't be had.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::task::AbortHandle;

use super::Health;
use crate::{
    compile::ServiceKey,
    http::{self, Connections},
    model::health_check::HealthCheck,
    problem::Problem,
};

/// The reason of the Event, as kube-proxy words it (rule 68).
const REASON: &str = "FailedToStartServiceHealthcheck";
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Connections to all of these ports together: a load balancer has a few for each of its own machines.
const MOST_CONNECTIONS: usize = 512;

/// All open ports.
pub struct HealthPorts {
    health: Health,
    connections: Connections,
    /// Where to listen; none before the node's addresses are known.
    addresses: Vec<IpAddr>,
    services: BTreeMap<ServiceKey, Checked>,
}

/// The ports of one Service.
struct Checked {
    check: HealthCheck,
    /// Ready endpoints on this node, IPv4 and IPv6.
    counts: [Arc<AtomicUsize>; 2],
    servers: BTreeMap<IpAddr, Server>,
}

/// A server that ends when it is dropped.
struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Checked {
    /// Connections outlive their port: from now on they hear that there is nothing here.
    fn drop(&mut self) {
        self.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }
}

impl Default for HealthPorts {
    fn default() -> Self {
        let (health, addresses, services) = Default::default();
        Self { health, connections: Connections::at_most(MOST_CONNECTIONS), addresses, services }
    }
}

impl HealthPorts {
    /// The node's health, which is part of every answer.
    #[must_use]
    pub fn new(health: Health) -> Self {
        Self { health, ..Self::default() }
    }

    /// Both unspecified addresses: every address of the node.
    pub const EVERYWHERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

    /// Where to listen from now on. Returns the Services whose ports must be [set](Self::set) again.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Vec<ServiceKey> {
        if self.addresses == addresses {
            return Vec::new();
        }
        self.addresses = addresses.to_vec();
        self.services.keys().cloned().collect()
    }

    /// Tells at once of endpoints that have gone. Of new ones, and of all else, [`HealthPorts::set`] tells.
    pub fn lower(&self, key: &ServiceKey, check: Option<HealthCheck>) {
        let local_endpoints = check.map_or([None; 2], |check| check.local_endpoints);
        let counts = self.services.get(key).into_iter().flat_map(|checked| &checked.counts);
        for (count, now) in counts.zip(local_endpoints) {
            count.fetch_min(now.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Opens, corrects or closes the ports of a Service, as `check` wants them. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// What could not be opened; the next call tries it again.
    pub fn set(&mut self, key: &ServiceKey, check: Option<HealthCheck>) -> Result<(), Problem> {
        let Some(check) = check else {
            self.services.remove(key);
            return Ok(());
        };
        if self.services.get(key).is_some_and(|former| former.check.port != check.port) {
            self.services.remove(key);
        }
        let checked = self.services.entry(key.clone()).or_insert_with(|| Checked::new(check));
        checked.check = check;
        for (count, now) in checked.counts.iter().zip(check.local_endpoints) {
            count.store(now.unwrap_or(0), Ordering::Relaxed);
        }
        checked.listen(key, &self.addresses, &self.health, &self.connections)
    }
}

impl Checked {
    fn new(check: HealthCheck) -> Self {
        Self { check, counts: Default::default(), servers: BTreeMap::new() }
    }

    fn listen(
        &mut self,
        key: &ServiceKey,
        addresses: &[IpAddr],
        health: &Health,
        connections: &Connections,
    ) -> Result<(), Problem> {
        let has_family = |address: &IpAddr| self.check.local_endpoints[family_index(address)].is_some();
        let wanted: Vec<IpAddr> = addresses.iter().copied().filter(has_family).collect();
        self.servers.retain(|address, _| wanted.contains(address));
        let mut refusals = Vec::new();
        for address in wanted {
            if self.servers.contains_key(&address) {
                continue;
            }
            let socket = SocketAddr::new(address, self.check.port);
            // Else `::` would take the port of IPv4, too.
            match http::listen(socket, true) {
                Ok(listener) => {
                    let count = Arc::clone(&self.counts[family_index(&address)]);
                    let answer = Answer { key: key.clone(), count, health: health.clone() };
                    let router = Router::new().fallback(show).with_state(answer);
                    let task = tokio::spawn(http::serve(listener, router, connections.clone()));
                    self.servers.insert(address, Server(task.abort_handle()));
                }
                Err(error) => refusals.push(format!("{socket}: {error}")),
            }
        }
        if refusals.is_empty() {
            return Ok(());
        }
        let cause = format!("its healthCheckNodePort can't be opened: {}", refusals.join(", "));
        let remedy = "see what listens there (`ss -ltnp`), or choose another healthCheckNodePort; it is tried again";
        Err(Problem::new(format!("Service {key}"), cause, remedy).with_reason(REASON))
    }
}

/// 0 for IPv4, 1 for IPv6.
fn family_index(address: &IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// What one port answers.
#[derive(Clone)]
struct Answer {
    key: ServiceKey,
    count: Arc<AtomicUsize>,
    health: Health,
}

/// On every path (rule 65). The body is kube-proxy's, white space and all: people compare it with what they know.
async fn show(State(answer): State<Answer>) -> Response {
    let count = answer.count.load(Ordering::Relaxed);
    let is_healthy = answer.health.is_healthy();
    let status = if count > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ServiceKey { namespace, name } = &answer.key;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
    );
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, count.to_string()),
    ];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests;
