// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether this node may be sent traffic: `/healthz` and `/livez` (rules 69 to 71).
//!
//! The one loop tells [`Health`] when something has to be written and when all of it has been; probes ask it. Before the
//! first sync is in the maps the agent is alive, but its node is not eligible, unless an earlier agent has left Services in the
//! maps: they are served, and a node that is restarted while the API is away must not leave the load balancers.

use std::{
    collections::BTreeMap,
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

mod ports;

pub use self::ports::HealthPorts;
use crate::metrics::{Metrics, Probe};

/// Twice kube-proxy's period of full syncs: a change that waits longer makes the node unhealthy (rule 71), and so does a turn of
/// the loop that takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Health as the one loop knows it, shared with those who answer probes.
#[derive(Clone, Debug, Default)]
pub struct Health {
    facts: Arc<Mutex<Facts>>,
    requires_node: bool,
}

#[derive(Debug, Default)]
struct Facts {
    /// Whether the first sync is over.
    is_synced: bool,
    /// When everything known was in the maps for the last time.
    last_sync: Option<Timestamp>,
    /// Whether something has no room in the maps since then.
    is_partial: bool,
    /// Whether the maps hold what an earlier agent left.
    is_adopted: bool,
    /// Since when something has been waiting to be written.
    waiting_since: Option<Instant>,
    /// When the loop began its latest turn.
    last_turn: Option<Instant>,
    /// Whether the node may be sent traffic, as far as the cluster says.
    node: NodeStatus,
}

/// What the cluster says of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeStatus {
    /// Nothing: there is no Node object. Without a cluster that is as it should be, see [`Health::requiring_node`].
    #[default]
    Unknown,
    /// It takes part.
    Present,
    /// It is being removed: deleted, or chosen by the cluster autoscaler.
    Leaving,
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
    /// By family. One loop writes both, so that they are always alike.
    status: BTreeMap<&'static str, FamilyReport>,
}

/// One family's part of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: Timestamp,
    healthy: bool,
}

impl Health {
    /// For a node of a cluster, which is not eligible before its Node object is known.
    #[must_use]
    pub fn requiring_node() -> Self {
        Self { requires_node: true, ..Self::default() }
    }

    /// The maps hold Services that an earlier agent left: they are served already.
    pub fn set_adopted(&self) {
        self.facts().is_adopted = true;
    }

    /// Something has to be written.
    pub fn set_waiting(&self, now: Instant) {
        self.facts().waiting_since.get_or_insert(now);
    }

    /// The loop begins a turn: it is not stuck in the one before. (It does so now and then although nothing happens.)
    pub fn set_turn(&self, now: Instant) {
        self.facts().last_turn = Some(now);
    }

    /// Everything known is in the maps, or, if not `is_whole`, all that there is room for. Returns since when it had
    /// been waiting.
    pub fn set_synced(&self, wall: Timestamp, is_whole: bool) -> Option<Instant> {
        let mut facts = self.facts();
        facts.is_synced = true;
        facts.is_partial = !is_whole;
        if is_whole {
            facts.last_sync = Some(wall);
        }
        facts.waiting_since.take()
    }

    /// Whether everything known has been in the maps once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.facts().is_synced
    }

    /// What the cluster says of this node.
    pub fn set_node(&self, node: NodeStatus) {
        self.facts().node = node;
    }

    /// Whether the agent keeps up with what it is told (rule 71).
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.facts().is_healthy(Instant::now())
    }

    /// The same at that time.
    #[cfg(test)]
    pub(crate) fn is_healthy_at(&self, now: Instant) -> bool {
        self.facts().is_healthy(now)
    }

    /// Whether the loop has begun a turn.
    #[cfg(test)]
    pub(crate) fn has_turned(&self) -> bool {
        self.facts().last_turn.is_some()
    }

    /// Whether something waits to be written.
    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        self.facts().waiting_since.is_some()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Every update is a single assignment: there is nothing half done behind a panic.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, now: Instant, wall: Timestamp) -> Report {
        let facts = self.facts();
        let healthy = facts.is_healthy(now);
        let is_up_to_date = healthy && !facts.is_partial;
        let last_updated = if is_up_to_date { wall } else { facts.last_sync.unwrap_or(Timestamp::UNIX_EPOCH) };
        let is_served_from_before = facts.is_adopted && !facts.is_synced;
        let is_wanted = match facts.node {
            // The earlier agent knew it.
            NodeStatus::Unknown => !self.requires_node || is_served_from_before,
            NodeStatus::Present => true,
            NodeStatus::Leaving => false,
        };
        let node_eligible = Some(is_wanted && (facts.is_synced || is_served_from_before));
        let status = ["IPv4", "IPv6"].map(|family| (family, FamilyReport { last_updated, healthy })).into();
        Report { last_updated, current_time: wall, node_eligible, healthy, status }
    }
}

impl Facts {
    /// Having written nothing yet is no fault as long as nothing waits.
    /// A loop that is stuck can't say that something waits; it is known by having no turns.
    fn is_healthy(&self, now: Instant) -> bool {
        let is_recent = |since: Option<Instant>| since.is_none_or(|since| now.duration_since(since) <= PATIENCE);
        is_recent(self.waiting_since) && is_recent(self.last_turn)
    }
}

/// The pages. Their answers are counted.
pub fn router(health: Health, metrics: Metrics) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(Pages { health, metrics })
}

#[derive(Clone)]
struct Pages {
    health: Health,
    metrics: Metrics,
}

async fn healthz(State(pages): State<Pages>) -> Response {
    let report = pages.health.report(Instant::now(), Timestamp::now());
    let is_good = report.healthy && report.node_eligible == Some(true);
    pages.answer(Probe::Healthz, is_good, &report)
}

async fn livez(State(pages): State<Pages>) -> Response {
    let report = Report { node_eligible: None, ..pages.health.report(Instant::now(), Timestamp::now()) };
    pages.answer(Probe::Livez, report.healthy, &report)
}

impl Pages {
    fn answer(&self, probe: Probe, is_good: bool, report: &Report) -> Response {
        let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        self.metrics.count_probe(probe, status.as_u16());
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        (status, headers, serde_json::json!(report).to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::constant(1_800_000_000, 0);

    #[test]
    fn rule_71_a_node_is_healthy_while_it_keeps_up() {
        let health = Health::default();
        let start = Instant::now();
        assert!(health.report(start, WALL).healthy, "nothing was asked of it yet");
        health.set_waiting(start);
        let late = start + PATIENCE + Duration::from_secs(1);
        let first = health.report(late, WALL);
        assert!(!first.healthy);
        assert_eq!(first.last_updated, Timestamp::UNIX_EPOCH);

        assert_eq!(health.set_synced(WALL, true), Some(start));
        assert!(health.report(start + 10 * PATIENCE, WALL).healthy, "nothing waits");

        health.set_waiting(start);
        health.set_waiting(start + PATIENCE);
        assert!(health.report(start + PATIENCE, WALL).healthy);
        assert!(!health.report(late, WALL).healthy, "the first one counts");
    }

    #[test]
    fn a_full_map_leaves_a_node_healthy_and_is_not_told_as_an_update() {
        let (health, start) = (Health::default(), Instant::now());
        let later = Timestamp::constant(1_800_000_060, 0);
        for (is_whole, last_updated) in [(false, Timestamp::UNIX_EPOCH), (true, later), (false, WALL), (true, later)] {
            health.set_synced(WALL, is_whole);
            let report = health.report(start, later);
            assert_eq!((report.healthy, report.node_eligible, report.last_updated), (true, Some(true), last_updated));
        }
    }

    #[test]
    fn a_loop_that_hangs_is_not_healthy() {
        let health = Health::default();
        let start = Instant::now();
        health.set_synced(WALL, true);
        health.set_turn(start);
        assert!(health.report(start + PATIENCE, WALL).healthy);
        let late = start + PATIENCE + Duration::from_secs(1);
        assert!(!health.report(late, WALL).healthy, "it did not even hear of what waits");
        health.set_turn(late);
        assert!(health.report(late + PATIENCE, WALL).healthy);
    }

    #[test]
    fn rule_69_a_node_is_eligible_once_synced_and_while_it_takes_part() {
        let is_eligible = |health: &Health| health.report(Instant::now(), WALL).node_eligible;
        let health = Health::requiring_node();
        health.set_node(NodeStatus::Present);
        assert_eq!(is_eligible(&health), Some(false), "its maps may be empty");
        health.set_synced(WALL, true);
        for (node, expected) in
            [(NodeStatus::Present, true), (NodeStatus::Unknown, false), (NodeStatus::Leaving, false)]
        {
            health.set_node(node);
            assert_eq!(is_eligible(&health), Some(expected), "{node:?}");
        }
        let machine = Health::default();
        machine.set_synced(WALL, true);
        assert_eq!(is_eligible(&machine), Some(true), "a machine without a cluster has no Node");
    }

    #[test]
    fn rule_69_a_node_that_serves_what_an_earlier_agent_left_is_eligible_before_the_first_sync() {
        let is_eligible = |health: &Health| health.report(Instant::now(), WALL).node_eligible;
        let health = Health::requiring_node();
        assert_eq!(is_eligible(&health), Some(false));
        health.set_adopted();
        assert_eq!(is_eligible(&health), Some(true), "the API may be away");
        health.set_node(NodeStatus::Leaving);
        assert_eq!(is_eligible(&health), Some(false));
        health.set_node(NodeStatus::Unknown);
        health.set_synced(WALL, true);
        assert_eq!(is_eligible(&health), Some(false), "there is no Node");
    }

    #[test]
    fn rule_69_the_body_is_kube_proxys() {
        let health = Health::default();
        health.set_synced(WALL, true);
        health.set_node(NodeStatus::Leaving);
        let family = serde_json::json!({"lastUpdated": "2027-01-15T08:00:00Z", "healthy": true});
        let expected = serde_json::json!({
            "lastUpdated": "2027-01-15T08:00:00Z",
            "currentTime": "2027-01-15T08:00:00Z",
            "nodeEligible": false,
            "healthy": true,
            "status": {"IPv4": family, "IPv6": family},
        });
        assert_eq!(serde_json::to_value(health.report(Instant::now(), WALL)).unwrap(), expected);
    }

    #[tokio::test]
    async fn rule_70_livez_does_not_ask_for_the_node() {
        let pages = Pages { health: Health::requiring_node(), metrics: Metrics::default() };
        assert_eq!(healthz(State(pages.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer = livez(State(pages)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
        let report: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(report.get("nodeEligible"), None);
        assert_eq!(report["healthy"], true);
    }
}
