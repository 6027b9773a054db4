// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/metrics` in the OpenMetrics text format, and `/proxyMode` (rule 72).
//!
//! The counters of the packet path stand in the maps: a scrape reads them, and asks the one loop for the [`Directory`]
//! that says what their indices stand for. What the agent itself does is counted in [`Metrics`].

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use lb_common::{
    counters::{BackendCounters, ServiceCounters},
    flow::protocol,
    maps::{FLOWS_V4, FLOWS_V6},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text::encode},
    metrics::{MetricType, counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    compile::UnitId,
    dataplane::{Counters, MapError, Maps},
};

/// Boundaries of kube-proxy's histogram of the same name: 1 ms to 16 s, doubling.
const SYNC_BUCKETS_SECS: [f64; 15] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

/// How long a scrape waits for the one loop.
const PATIENCE: Duration = Duration::from_secs(5);

/// What indices in the maps stand for, at one moment, and how full the maps are.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Service ports by their index.
    pub services: Vec<(u32, UnitId)>,
    /// Backends by their index.
    pub backends: Vec<(u32, UnitId, SocketAddr)>,
    /// Name, entries and capacity of the maps that can get full.
    pub usage: Vec<(&'static str, u64, u64)>,
}

/// What a scrape shows of the maps.
#[derive(Clone, Debug, Default)]
struct Snapshot {
    directory: Directory,
    counters: Counters,
}

impl Snapshot {
    /// Reads the counters; the flow tables are counted entry by entry, which takes its time.
    fn read(mut directory: Directory, maps: &Maps) -> Result<Self, MapError> {
        let counters = maps.counters()?;
        let capacities = [maps.flows_v4.capacity(), maps.flows_v6.capacity()];
        for ((name, count), capacity) in [FLOWS_V4, FLOWS_V6].into_iter().zip(maps.flow_counts()?).zip(capacities) {
            directory.usage.push((name, count, capacity.into()));
        }
        Ok(Self { directory, counters })
    }

    /// Decisions, by Service port.
    fn services(&self) -> impl Iterator<Item = (&UnitId, ServiceCounters)> {
        let counters = &self.counters.services;
        let services = self.directory.services.iter();
        services.map(|(index, unit)| (unit, counters.get(index).copied().unwrap_or_default()))
    }

    /// Traffic, by Service port and endpoint.
    fn backends(&self) -> impl Iterator<Item = (&UnitId, &SocketAddr, BackendCounters)> {
        let counters = &self.counters.backends;
        let backends = self.directory.backends.iter();
        backends.map(|(index, unit, socket)| (unit, socket, counters.get(index).copied().unwrap_or_default()))
    }
}

/// What the agent counts of itself.
#[derive(Clone, Debug)]
pub struct Metrics {
    sync_duration: Histogram,
    last_sync: Gauge<f64, AtomicU64>,
    standing_problems: Gauge,
    problems: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            sync_duration: Histogram::new(SYNC_BUCKETS_SECS),
            last_sync: Gauge::default(),
            standing_problems: Gauge::default(),
            problems: Counter::default(),
        }
    }
}

impl Metrics {
    /// A burst of changes is in the maps, so long after its first one came.
    pub fn observe_sync(&self, duration: Duration) {
        self.sync_duration.observe(duration.as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_sync.set(now.as_secs_f64());
    }

    /// How many problems there are, and how many there have been.
    pub fn set_problems(&self, standing: usize, total: u64) {
        self.standing_problems.set(i64::try_from(standing).unwrap_or(i64::MAX));
        self.problems.inc_by(total.saturating_sub(self.problems.get()));
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time from the first change of a burst until all of it is in the maps",
            self.sync_duration.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When everything known was in the maps for the last time",
            self.last_sync.clone(),
        );
        registry.register("shunt_problems_current", "Problems that stand now", self.standing_problems.clone());
        registry.register("shunt_problems", "Problems that have been reported", self.problems.clone());
    }
}

/// Asks the one loop for the directory.
pub type Requests = mpsc::Sender<oneshot::Sender<Directory>>;

#[derive(Clone)]
struct Pages {
    requests: Requests,
    /// Opened once more, so that reading them holds up nobody.
    maps: Arc<Maps>,
    /// The collector within the registry shows the latest snapshot.
    latest: Arc<Mutex<Snapshot>>,
    registry: Arc<Registry>,
}

/// The pages.
pub fn router(metrics: &Metrics, requests: Requests, maps: Maps) -> Router {
    let latest = Arc::new(Mutex::new(Snapshot::default()));
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    registry.register_collector(Box::new(MapCounters(Arc::clone(&latest))));
    let pages = Pages { requests, maps: Arc::new(maps), latest, registry: Arc::new(registry) };
    Router::new().route("/metrics", get(show_metrics)).route("/proxyMode", get(|| async { "shunt" })).with_state(pages)
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    let snapshot = match snapshot(&pages).await {
        Ok(snapshot) => snapshot,
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    };
    *pages.latest.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    let mut body = String::new();
    match encode(&mut body, &pages.registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
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

/// Shows the latest snapshot.
#[derive(Debug)]
struct MapCounters(Arc<Mutex<Snapshot>>);

impl Collector for MapCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let snapshot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        encode_services(&mut encoder, &snapshot)?;
        encode_backends(&mut encoder, &snapshot)?;
        let reasons = snapshot.counters.reasons.iter().map(|(reason, count)| ([("reason", reason.as_str())], *count));
        counters(&mut encoder, "shunt_reasons", "Packets that left the pipeline early, by reason", reasons)?;
        let sizes = |pick: fn(&(&'static str, u64, u64)) -> u64| {
            snapshot.directory.usage.iter().map(move |map| ([("map", map.0)], pick(map))).collect::<Vec<_>>()
        };
        gauges(&mut encoder, "shunt_map_entries", "Entries in a map", sizes(|map| map.1))?;
        gauges(&mut encoder, "shunt_map_capacity", "Entries that a map can hold", sizes(|map| map.2))
    }
}

/// A metric: its name, its help, and how to get it from what is counted.
type Series<T, V> = (&'static str, &'static str, fn(&T) -> V);

/// Labels of a Service port.
type UnitLabels = [(&'static str, String); 5];

fn unit_labels(unit: &UnitId) -> UnitLabels {
    let protocol = match unit.protocol {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        other => other.to_string(),
    };
    [
        ("namespace", unit.namespace.clone()),
        ("service", unit.name.clone()),
        ("port", unit.port_name.clone()),
        ("protocol", protocol),
        ("ip_family", if unit.is_v4 { "IPv4".to_owned() } else { "IPv6".to_owned() }),
    ]
}

fn encode_services(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> Result<(), std::fmt::Error> {
    let series: [Series<ServiceCounters, u64>; 3] = [
        ("shunt_service_flows", "New flows that got a backend", |counters| counters.flows),
        ("shunt_service_rejected_packets", "Packets rejected with an ICMP error", |counters| counters.rejected),
        ("shunt_service_dropped_packets", "Packets dropped", |counters| counters.dropped),
    ];
    for (name, help, pick) in series {
        let samples = snapshot.services().map(|(unit, own)| (unit_labels(unit), pick(&own)));
        counters(encoder, name, help, samples)?;
    }
    Ok(())
}

fn encode_backends(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> Result<(), std::fmt::Error> {
    let labels = |unit: &UnitId, backend: &SocketAddr| {
        let mut labels = unit_labels(unit).to_vec();
        labels.push(("backend", backend.to_string()));
        labels
    };
    let by_direction: [Series<BackendCounters, [u64; 2]>; 2] = [
        ("shunt_backend_packets", "Packets translated, by backend", |counters| counters.packets),
        ("shunt_backend_bytes", "Bytes of the packets translated, by backend", |counters| counters.bytes),
    ];
    for (name, help, pick) in by_direction {
        let samples = snapshot.backends().flat_map(|(unit, backend, own)| {
            ["original", "reply"].into_iter().zip(pick(&own)).map(move |(direction, count)| {
                let mut labels = labels(unit, backend);
                labels.push(("direction", direction.to_owned()));
                (labels, count)
            })
        });
        counters(encoder, name, help, samples)?;
    }
    let flows = snapshot.backends().map(|(unit, backend, own)| (labels(unit, backend), own.flows));
    counters(encoder, "shunt_backend_flows", "New flows, by backend", flows)
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::verdict::Reason;

    use super::*;

    fn text(metrics: &Metrics, snapshot: Snapshot) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        registry.register_collector(Box::new(MapCounters(Arc::new(Mutex::new(snapshot)))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn counters_carry_their_service_and_backend() {
        let unit = UnitId {
            namespace: "default".into(),
            name: "web".into(),
            port_name: "http".into(),
            protocol: protocol::TCP,
            is_v4: true,
        };
        let backend = "10.0.0.1:8080".parse().unwrap();
        let directory = Directory {
            services: vec![(1, unit.clone())],
            backends: vec![(7, unit, backend)],
            usage: vec![("FRONTENDS", 1, 10)],
        };
        let counters = Counters {
            reasons: vec![(Reason::NoRoute, 2)],
            services: BTreeMap::from([(1, ServiceCounters { flows: 3, rejected: 0, dropped: 0 })]),
            backends: BTreeMap::from([(7, BackendCounters { packets: [5, 4], bytes: [500, 400], flows: 3 })]),
        };
        let snapshot = Snapshot { directory, counters };
        let text = text(&Metrics::default(), snapshot);
        let unit = "namespace=\"default\",service=\"web\",port=\"http\",protocol=\"TCP\",ip_family=\"IPv4\"";
        for line in [
            format!("shunt_service_flows_total{{{unit}}} 3\n"),
            format!("shunt_backend_packets_total{{{unit},backend=\"10.0.0.1:8080\",direction=\"reply\"}} 4\n"),
            format!("shunt_backend_bytes_total{{{unit},backend=\"10.0.0.1:8080\",direction=\"original\"}} 500\n"),
            "shunt_reasons_total{reason=\"no-route\"} 2\n".into(),
            "shunt_map_capacity{map=\"FRONTENDS\"} 10\n".into(),
        ] {
            assert!(text.contains(&line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_agent_counts_its_syncs_and_problems() {
        let metrics = Metrics::default();
        metrics.observe_sync(Duration::from_millis(3));
        metrics.set_problems(1, 2);
        metrics.set_problems(0, 2);
        let text = text(&metrics, Snapshot::default());
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1\n",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1\n",
            "shunt_problems_current 0\n",
            "shunt_problems_total 2\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
