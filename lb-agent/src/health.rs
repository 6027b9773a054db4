// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether this node may be sent traffic: `/healthz` and `/livez` (rules 69 to 71).
//!
//! The one loop tells [`Health`] when something has to be written and when all of it has been; probes ask it. Unlike
//! kube-proxy, Shunt is not healthy before the first sync is in the maps.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::Serialize;

/// Twice kube-proxy's period of full syncs: a change that waits longer makes the node unhealthy (rule 71).
const PATIENCE: Duration = Duration::from_secs(60);

/// Health as the one loop knows it, shared with those who answer probes.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Facts>>);

#[derive(Debug, Default)]
struct Facts {
    /// When everything known was in the maps for the last time; never before the first sync.
    last_sync: Option<Timestamp>,
    /// Since when something has been waiting to be written.
    waiting_since: Option<Instant>,
    /// Whether the node is being removed from its cluster.
    is_leaving: bool,
}

/// The answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    last_updated: Timestamp,
    current_time: Timestamp,
    /// Absent in `/livez`.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
}

impl Health {
    /// Something has to be written.
    pub fn set_waiting(&self, now: Instant) {
        self.facts().waiting_since.get_or_insert(now);
    }

    /// Everything known is in the maps, but for what was reported as a problem. Returns since when it had been waiting.
    pub fn set_synced(&self, wall: Timestamp) -> Option<Instant> {
        let mut facts = self.facts();
        facts.last_sync = Some(wall);
        facts.waiting_since.take()
    }

    /// Whether everything known has been in the maps once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.facts().last_sync.is_some()
    }

    /// Whether the node is being removed from its cluster, and should get no new traffic.
    pub fn set_leaving(&self, is_leaving: bool) {
        self.facts().is_leaving = is_leaving;
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Every update is a single assignment: there is nothing half done behind a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, now: Instant, wall: Timestamp) -> Report {
        let facts = self.facts();
        let is_stuck = facts.waiting_since.is_some_and(|since| now.duration_since(since) > PATIENCE);
        let healthy = facts.last_sync.is_some() && !is_stuck;
        let last_updated = if healthy { wall } else { facts.last_sync.unwrap_or(Timestamp::UNIX_EPOCH) };
        Report { last_updated, current_time: wall, node_eligible: Some(!facts.is_leaving), healthy }
    }
}

/// The pages.
pub fn router(health: Health) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(health)
}

async fn healthz(State(health): State<Health>) -> Response {
    let report = health.report(Instant::now(), Timestamp::now());
    let is_good = report.healthy && report.node_eligible == Some(true);
    answer(is_good, &report)
}

async fn livez(State(health): State<Health>) -> Response {
    let report = Report { node_eligible: None, ..health.report(Instant::now(), Timestamp::now()) };
    answer(report.healthy, &report)
}

fn answer(is_good: bool, report: &Report) -> Response {
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    let body = serde_json::json!(report).to_string();
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::constant(1_800_000_000, 0);

    #[test]
    fn rule_71_a_node_is_healthy_once_synced_and_while_it_keeps_up() {
        let health = Health::default();
        let start = Instant::now();
        health.set_waiting(start);
        let first = health.report(start, WALL);
        assert!(!first.healthy);
        assert_eq!(first.last_updated, Timestamp::UNIX_EPOCH);

        assert_eq!(health.set_synced(WALL), Some(start));
        assert!(health.report(start + 10 * PATIENCE, WALL).healthy, "nothing waits");

        health.set_waiting(start);
        health.set_waiting(start + PATIENCE);
        assert!(health.report(start + PATIENCE, WALL).healthy);
        assert!(!health.report(start + PATIENCE + Duration::from_secs(1), WALL).healthy, "the first one counts");
    }

    #[test]
    fn rule_69_the_body_is_kube_proxys() {
        let health = Health::default();
        health.set_synced(WALL);
        health.set_leaving(true);
        let report = health.report(Instant::now(), WALL);
        let expected = serde_json::json!({
            "lastUpdated": "2027-01-15T08:00:00Z",
            "currentTime": "2027-01-15T08:00:00Z",
            "nodeEligible": false,
            "healthy": true,
        });
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
    }
}
