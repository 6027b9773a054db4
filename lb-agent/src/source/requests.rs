// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests to the Kubernetes API, under the names of Kubernetes' own client (`client-go`, `tools/metrics`), which kube-proxy
//! shows among its metrics (rule 73).

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// Boundaries of Kubernetes' histogram of the same name.
const BUCKETS_SECS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    code: String,
    method: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: String,
    host: String,
}

/// What was asked, what was answered, and how long that took.
#[derive(Clone, Debug)]
pub struct ApiRequests {
    answers: Family<Answer, Counter>,
    durations: Family<Request, Histogram, fn() -> Histogram>,
}

impl Default for ApiRequests {
    fn default() -> Self {
        let durations = Family::new_with_constructor((|| Histogram::new(BUCKETS_SECS)) as fn() -> Histogram);
        Self { answers: Family::default(), durations }
    }
}

impl ApiRequests {
    /// A server has begun to answer with a status, or could not be asked at all. Of a watch that is its beginning.
    pub fn observe(&self, method: &str, host: &str, status: Option<u16>, duration: Duration) {
        let code = status.map_or_else(|| "<error>".to_owned(), |status| status.to_string());
        let (method, host) = (method.to_owned(), host.to_owned());
        self.durations
            .get_or_create(&Request { verb: method.clone(), host: host.clone() })
            .observe(duration.as_secs_f64());
        self.answers.get_or_create(&Answer { code, method, host }).inc();
    }

    /// How often a method was answered so.
    #[cfg(test)]
    pub(crate) fn count(&self, code: &str, method: &str, host: &str) -> u64 {
        let [code, method, host] = [code, method, host].map(str::to_owned);
        self.answers.get_or_create(&Answer { code, method, host }).get()
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        let client = registry.sub_registry_with_prefix("rest_client");
        client.register("requests", "Requests to the Kubernetes API, by answer", self.answers.clone());
        client.register(
            "request_duration_seconds",
            "Time from a request to the Kubernetes API to the beginning of its answer",
            self.durations.clone(),
        );
    }
}
