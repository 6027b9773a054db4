// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long one thing took, many times over.

use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spread {
    pub count: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// A spread in the making.
pub struct Recorder(Histogram<u64>);

impl Spread {
    /// Nothing yet.
    pub fn recorder() -> Result<Recorder> {
        Ok(Recorder(Histogram::new(3).context("a histogram")?))
    }
}

impl Recorder {
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanos).expect("a histogram that grows by itself");
    }

    pub fn finish(self) -> Spread {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        Spread {
            count: self.0.len(),
            p50: micros(self.0.value_at_quantile(0.5)),
            p99: micros(self.0.value_at_quantile(0.99)),
            max: micros(self.0.max()),
        }
    }
}
