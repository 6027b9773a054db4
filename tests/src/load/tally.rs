// SPDX-License-Identifier: MIT OR Apache-2.0
//! What became of many requests.

use std::{collections::BTreeMap, io, time::Duration};

use hdrhistogram::Histogram;

/// Counts of requests by outcome, and how long the good ones took.
#[derive(Clone, Debug)]
pub struct Tally {
    /// How often each backend answered, by its name.
    pub backends: BTreeMap<String, u64>,
    /// How often each error happened, by its text.
    pub errors: BTreeMap<String, u64>,
    micros: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        const SIGNIFICANT_DIGITS: u8 = 3;
        let micros = Histogram::new(SIGNIFICANT_DIGITS).expect("a precision that hdrhistogram knows");
        Self { backends: BTreeMap::new(), errors: BTreeMap::new(), micros }
    }
}

impl Tally {
    /// Counts one request.
    pub fn record(&mut self, outcome: io::Result<String>, took: Duration) {
        match outcome {
            Ok(backend) => {
                *self.backends.entry(backend).or_default() += 1;
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
                self.micros.saturating_record(micros);
            }
            Err(error) => *self.errors.entry(error.to_string()).or_default() += 1,
        }
    }

    /// Counts the requests of another tally too.
    pub fn merge(&mut self, other: &Self) {
        for (name, count) in &other.backends {
            *self.backends.entry(name.clone()).or_default() += count;
        }
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
        self.micros.add(&other.micros).expect("the same precision");
    }

    /// How many requests there were.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.backends.values().sum::<u64>() + self.failed()
    }

    /// How many of them failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// How many a backend answered.
    #[must_use]
    pub fn answered_by(&self, backend: &str) -> u64 {
        self.backends.get(backend).copied().unwrap_or_default()
    }

    /// The time within which this share (0 to 1) of the good requests was answered, in microseconds.
    #[must_use]
    pub fn latency_micros(&self, share: f64) -> u64 {
        self.micros.value_at_quantile(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let mut one = Tally::default();
        one.record(Ok("web-1".to_owned()), Duration::from_micros(100));
        one.record(Err(io::ErrorKind::TimedOut.into()), Duration::from_secs(5));
        let mut both = Tally::default();
        both.record(Ok("web-1".to_owned()), Duration::from_micros(300));
        both.merge(&one);
        assert_eq!((both.requests(), both.failed(), both.answered_by("web-1")), (3, 1, 2));
        assert_eq!((both.latency_micros(0.5), both.latency_micros(0.99)), (100, 300));
    }
}
