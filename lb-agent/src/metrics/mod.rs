// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/metrics` in the text format of Prometheus or of OpenMetrics, and `/proxyMode` (rule 72).
//!
//! The counters of the packet path stand in the maps: a scrape reads them, and asks the one loop for the [`Directory`]
//! that says what their indices stand for. What the agent itself does is counted in [`Metrics`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::{mpsc, oneshot};

mod agent;
mod format;
mod maps;
mod problems;
mod process;

pub use self::{
    agent::{Metrics, Probe},
    maps::Directory,
};
use self::{
    format::Format,
    maps::{MapCounters, Snapshot},
    process::ProcessMetrics,
};
use crate::dataplane::{MapError, Maps};

/// How long a scrape waits for the one loop.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the one loop for the directory.
pub type Requests = mpsc::Sender<oneshot::Sender<Directory>>;

#[derive(Clone)]
struct Pages {
    requests: Requests,
    maps: Arc<Maps>,
    /// The collector within the registry shows the latest snapshot.
    latest: Arc<Mutex<Snapshot>>,
    registry: Arc<Registry>,
}

/// The pages.
pub fn router(metrics: &Metrics, requests: Requests, maps: Arc<Maps>) -> Router {
    let latest = Arc::new(Mutex::new(Snapshot::default()));
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    registry.register_collector(Box::new(MapCounters(Arc::clone(&latest))));
    registry.register_collector(Box::new(ProcessMetrics));
    let pages = Pages { requests, maps, latest, registry: Arc::new(registry) };
    let router = Router::new().route("/metrics", get(show_metrics)).with_state(pages);
    router.route("/proxyMode", get(|| async { "shunt" })).route("/healthz", get(|| async { "ok" }))
}

async fn show_metrics(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let snapshot = match snapshot(&pages).await {
        Ok(snapshot) => snapshot,
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    };
    *pages.latest.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    let mut body = String::new();
    match encode(&mut body, &pages.registry) {
        Ok(()) => {
            let format = Format::wanted(&headers);
            let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "Accept")];
            (headers, format.of_open_metrics(body)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// A scrape that can't be answered.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("the agent's loop does not answer")]
    NoAnswer,
    #[error("the counters can't be read: {0}")]
    Maps(#[from] MapError),
}

async fn snapshot(pages: &Pages) -> Result<Snapshot, ScrapeError> {
    let (sender, receiver) = oneshot::channel();
    let directory = async {
        pages.requests.send(sender).await.ok()?;
        receiver.await.ok()
    };
    let directory = tokio::time::timeout(PATIENCE, directory).await.ok().flatten().ok_or(ScrapeError::NoAnswer)?;
    let maps = Arc::clone(&pages.maps);
    let snapshot = tokio::task::spawn_blocking(move || Snapshot::read(directory, &maps)).await;
    Ok(snapshot.map_err(|_| ScrapeError::NoAnswer)??)
}
