// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent counts of itself, under kube-proxy's names where they mean the same (rules 73 and 74).
//!
//! Shunt has one loop for both families: where kube-proxy tells them apart and Shunt can't, both get the same number.

use std::{sync::atomic::AtomicU64, time::Duration};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use super::problems::NamedProblems;
use crate::{
    dataplane::Part,
    problem::Problem,
    source::{ApiRequests, Event, Kind},
    sync::PolicyKind,
};

/// Boundaries of kube-proxy's histogram of the same name: 1 ms to 16 s, doubling.
const SYNC_BUCKETS_SECS: [f64; 15] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

type Labels<const N: usize> = [(&'static str, &'static str); N];
/// A number with a fraction, such as a time.
type Seconds = Gauge<f64, AtomicU64>;

/// Which page was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// What the agent counts of itself.
#[derive(Clone, Debug)]
pub struct Metrics {
    sync_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    programming_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    last_queued: Seconds,
    last_sync: Seconds,
    endpoint_changes: Changes,
    service_changes: Changes,
    no_local_endpoints: Family<Labels<2>, Gauge>,
    not_programmed: Gauge,
    healthz: Family<[(&'static str, u16); 1], Counter>,
    livez: Family<[(&'static str, u16); 1], Counter>,
    standing_problems: Gauge,
    named_problems: NamedProblems,
    problems: Counter,
    repairs: Family<Labels<1>, Counter>,
    requests: ApiRequests,
}

/// Changes of one kind of objects.
#[derive(Clone, Debug, Default)]
struct Changes {
    pending: Gauge,
    total: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            sync_duration: Family::new_with_constructor(|| Histogram::new(SYNC_BUCKETS_SECS)),
            programming_duration: Family::new_with_constructor(|| Histogram::new(programming_buckets_secs())),
            last_queued: Gauge::default(),
            last_sync: Gauge::default(),
            endpoint_changes: Changes::default(),
            service_changes: Changes::default(),
            no_local_endpoints: Family::default(),
            not_programmed: Gauge::default(),
            healthz: Family::default(),
            livez: Family::default(),
            standing_problems: Gauge::default(),
            named_problems: NamedProblems::default(),
            problems: Counter::default(),
            repairs: every_part(),
            requests: ApiRequests::default(),
        }
    }
}

/// Boundaries of kube-proxy's histogram of the same name: quarters of a second, seconds, and from a minute on wider steps.
fn programming_buckets_secs() -> impl Iterator<Item = f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

/// All of them at zero, so that the first repair is a rise.
fn every_part() -> Family<Labels<1>, Counter> {
    let repairs = Family::<Labels<1>, Counter>::default();
    Part::ALL.iter().for_each(|part| drop(repairs.get_or_create(&[("part", part.as_str())])));
    repairs
}

fn family(is_v4: bool) -> (&'static str, &'static str) {
    ("ip_family", if is_v4 { "IPv4" } else { "IPv6" })
}

impl Metrics {
    /// A source has told of a change.
    pub fn count_change(&self, event: &Event) {
        let kind = match event {
            Event::Apply(object) => object.id().kind,
            Event::Delete(id) => id.kind,
            Event::Synced
            | Event::Incomplete(_)
            | Event::ServiceCidrsUnknown(_)
            | Event::HashSeed(_)
            | Event::Relisting(_)
            | Event::Problem(_) => return,
        };
        let changes = match kind {
            Kind::Service => &self.service_changes,
            Kind::EndpointSlice => &self.endpoint_changes,
            Kind::Node | Kind::ServiceCidr => return,
        };
        changes.pending.inc();
        changes.total.inc();
    }

    /// Something has to be written.
    pub fn set_queued(&self, now: Timestamp) {
        self.last_queued.set(now.as_duration().as_secs_f64());
    }

    /// A burst of changes is in the maps, so long after its first one came.
    pub fn observe_sync(&self, duration: Duration, now: Timestamp) {
        for is_v4 in [true, false] {
            self.sync_duration.get_or_create(&[family(is_v4)]).observe(duration.as_secs_f64());
        }
        self.last_sync.set(now.as_duration().as_secs_f64());
    }

    /// No change waits to be written.
    pub fn clear_pending(&self) {
        self.service_changes.pending.set(0);
        self.endpoint_changes.pending.set(0);
    }

    /// Changes of Services, and of endpoints, that are not in the maps yet.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> [i64; 2] {
        [&self.service_changes, &self.endpoint_changes].map(|changes| changes.pending.get())
    }

    /// Services that are not in the maps as they should be.
    #[cfg(test)]
    pub(crate) fn not_programmed(&self) -> i64 {
        self.not_programmed.get()
    }

    /// Changes of IPv4 endpoints that have got into the maps.
    #[cfg(test)]
    pub(crate) fn programmed(&self) -> usize {
        let mut registry = Registry::default();
        self.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        const COUNT: &str = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} ";
        text.lines().find_map(|line| line.strip_prefix(COUNT)).map_or(0, |count| count.parse().unwrap())
    }

    /// A change of endpoints got into the maps so long after it happened in the cluster.
    pub fn observe_programming(&self, is_v4: bool, duration: SignedDuration) {
        // Clocks of two machines: what seems to come from the future took no time.
        self.programming_duration.get_or_create(&[family(is_v4)]).observe(duration.as_secs_f64().max(0.0));
    }

    /// How many Services drop traffic here for want of an endpoint on this node, by policy and family (`true`: IPv4).
    pub fn set_no_local_endpoints(&self, (policy, is_v4): (PolicyKind, bool), count: usize) {
        let policy = match policy {
            PolicyKind::Internal => "internal",
            PolicyKind::External => "external",
        };
        let labels = [("traffic_policy", policy), family(is_v4)];
        self.no_local_endpoints.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many Services are not in the maps as they should be.
    pub fn set_not_programmed(&self, count: usize) {
        self.not_programmed.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A probe was answered.
    pub fn count_probe(&self, probe: Probe, status: u16) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.get_or_create(&[("code", status)]).inc();
    }

    /// Something was found lost in the kernel, and has been put back.
    pub fn count_repair(&self, part: Part) {
        self.repairs.get_or_create(&[("part", part.as_str())]).inc();
    }

    /// How often something of that kind has been put back.
    #[cfg(test)]
    pub(crate) fn repairs(&self, part: Part) -> u64 {
        self.repairs.get_or_create(&[("part", part.as_str())]).get()
    }

    /// How many problems there are, and how many there have been.
    pub fn set_problems(&self, standing: usize, total: u64) {
        self.standing_problems.set(i64::try_from(standing).unwrap_or(i64::MAX));
        self.problems.inc_by(total.saturating_sub(self.problems.get()));
    }

    /// Whose problems these are.
    pub fn name_problems<'a>(&self, problems: impl Iterator<Item = &'a Problem>) {
        self.named_problems.set(problems);
    }

    /// Where requests to the Kubernetes API are counted.
    #[must_use]
    pub const fn api_requests(&self) -> &ApiRequests {
        &self.requests
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        self.requests.register(registry);
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        proxy.register(
            "sync_proxy_rules_duration_seconds",
            "Time from the first change of a burst until all of it is in the maps",
            self.sync_duration.clone(),
        );
        proxy.register(
            "network_programming_duration_seconds",
            "Time from a change of endpoints in the cluster until it is in the maps",
            self.programming_duration.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When something had to be written for the last time",
            self.last_queued.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When everything known was in the maps for the last time",
            self.last_sync.clone(),
        );
        self.endpoint_changes.register(proxy, "endpoint", "EndpointSlices");
        self.service_changes.register(proxy, "service", "Services");
        proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy whose endpoints are all on other nodes",
            self.no_local_endpoints.clone(),
        );
        proxy.register("proxy_healthz", "Answers of /healthz", self.healthz.clone());
        proxy.register("proxy_livez", "Answers of /livez", self.livez.clone());
        registry.register(
            "shunt_services_not_programmed",
            "Services that are not in the maps as they should be: a write failed, or a map has no room",
            self.not_programmed.clone(),
        );
        registry.register("shunt_problems_current", "Problems that stand now", self.standing_problems.clone());
        registry.register_collector(Box::new(self.named_problems.clone()));
        registry.register("shunt_problems", "Problems that have been reported", self.problems.clone());
        let help = "Things of Shunt's that others had taken out of the kernel or changed there, and that were put back";
        registry.register("shunt_repairs", help, self.repairs.clone());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("shunt_build", "What was built into this agent", version);
    }
}

impl Changes {
    fn register(&self, registry: &mut Registry, name: &str, objects: &str) {
        let name = |what| format!("sync_proxy_rules_{name}_changes{what}");
        let pending = format!("Changes of {objects} that are not in the maps yet");
        registry.register(name("_pending"), pending, self.pending.clone());
        // The encoder appends `_total`.
        registry.register(name(""), format!("Changes of {objects}"), self.total.clone());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::model::builders::{deleted, service, slice};

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
    }

    /// What `promtool check metrics` says of a page: counters alone end in `_total`, and everything has a text.
    #[test]
    fn the_older_format_is_as_promtool_wants_it() {
        let metrics = Metrics::default();
        metrics.set_no_local_endpoints((PolicyKind::External, false), 3);
        let page = super::super::format::Format::Text.of_open_metrics(text(&metrics));
        let types: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        assert!(types.len() > 10, "{page}");
        for (name, kind) in types {
            assert!(kind == "untyped" || name.ends_with("_total") == (kind == "counter"), "{name} is a {kind}");
            assert!(page.contains(&format!("# HELP {name} ")), "{name} has no text");
        }
    }

    #[test]
    fn rule_73_the_names_are_kube_proxys() {
        let metrics = Metrics::default();
        let now = Timestamp::constant(1_800_000_000, 500_000_000);
        [
            service("web").applied(),
            slice("web-1", "web").applied(),
            deleted(Kind::EndpointSlice, "web-1"),
            Event::Synced,
        ]
        .iter()
        .for_each(|event| metrics.count_change(event));
        metrics.set_queued(now);
        metrics.set_no_local_endpoints((PolicyKind::External, false), 3);
        metrics.count_probe(Probe::Healthz, 503);
        metrics.count_probe(Probe::Livez, 200);
        metrics.api_requests().observe("GET", "10.96.0.1:443", Some(200), Duration::from_millis(20));
        metrics.api_requests().observe("POST", "10.96.0.1:443", None, Duration::from_secs(3));
        assert_lines(
            &text(&metrics),
            &[
                "kubeproxy_sync_proxy_rules_service_changes_pending 1",
                "kubeproxy_sync_proxy_rules_service_changes_total 1",
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2",
                "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 1800000000.5",
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 3",
                "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
                "kubeproxy_proxy_livez_total{code=\"200\"} 1",
                "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"10.96.0.1:443\"} 1",
                "rest_client_requests_total{code=\"<error>\",method=\"POST\",host=\"10.96.0.1:443\"} 1",
                "rest_client_request_duration_seconds_bucket{le=\"0.025\",verb=\"GET\",host=\"10.96.0.1:443\"} 1",
            ],
        );
        metrics.observe_sync(Duration::from_millis(3), now);
        metrics.clear_pending();
        assert_lines(
            &text(&metrics),
            &[
                "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 1",
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1800000000.5",
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
                "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
            ],
        );
    }

    #[test]
    fn rule_74_programming_takes_no_less_than_nothing() {
        let metrics = Metrics::default();
        metrics.observe_programming(true, SignedDuration::from_millis(1500));
        metrics.observe_programming(true, SignedDuration::from_secs(-5));
        assert_lines(
            &text(&metrics),
            &[
                "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"} 1.5",
                "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 1",
                "kubeproxy_network_programming_duration_seconds_bucket{le=\"2.0\",ip_family=\"IPv4\"} 2",
            ],
        );
        assert_eq!(programming_buckets_secs().count(), 80);
    }

    #[test]
    fn repairs_are_counted_by_what_was_lost() {
        let metrics = Metrics::default();
        metrics.count_repair(Part::SocketLink);
        assert_lines(
            &text(&metrics),
            &["shunt_repairs_total{part=\"socket-link\"} 1", "shunt_repairs_total{part=\"pin\"} 0"],
        );
    }

    #[test]
    fn problems_are_counted() {
        let metrics = Metrics::default();
        metrics.set_problems(1, 2);
        metrics.set_problems(0, 2);
        assert_lines(
            &text(&metrics),
            &[
                "shunt_problems_current 0",
                "shunt_problems_total 2",
                concat!("shunt_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            ],
        );
    }
}
