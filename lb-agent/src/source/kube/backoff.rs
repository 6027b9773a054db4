// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pauses between attempts, each twice as long as the one before. Pure, but for the dice: `now` comes in.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;

/// The first pause.
const FIRST: Duration = Duration::from_millis(800);

/// Without a failure for this long after a pause, the next one is the first of another outage.
const QUIET: Duration = Duration::from_secs(120);

/// How long an outage is a fresh one: an API server is restarted in less.
const FRESH: Duration = Duration::from_secs(60);

/// Pauses that grow until [`Backoff::reset`], or while nothing fails.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    /// The latest one.
    last: Duration,
    outage: Option<Outage>,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug)]
struct Outage {
    first: Instant,
    last: Instant,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST, last: Duration::ZERO, outage: None }
    }
}

impl Backoff {
    /// Notes a failure. Returns whether the outage has lasted for less than a minute.
    pub(super) fn note(&mut self, now: Instant) -> bool {
        if self.outage.is_some_and(|outage| now - outage.last > self.last + QUIET) {
            self.reset();
        }
        let outage = self.outage.get_or_insert(Outage { first: now, last: now });
        outage.last = now;
        now - outage.first < FRESH
    }

    /// The next pause, at most so long; by chance up to half of it less, so that the agents of a cluster do not ask all at once.
    pub(super) fn pause(&mut self, longest: Duration) -> Duration {
        let pause = self.next.min(longest);
        self.next = longest.min(pause * 2);
        self.last = pause.mul_f64(1.0 - chance() / 2.0);
        self.last
    }

    /// Begins with the first pause again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A number between 0 and 1. The keys of the standard library's hash tables are random.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(()) >> 11;
    random as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        for most in [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0] {
            let pause = backoff.pause(30 * SECOND).as_secs_f64();
            assert!((most / 2.0..=most).contains(&pause), "{most}: {pause}");
        }
        backoff.reset();
        assert!(backoff.pause(30 * SECOND) < SECOND);
    }

    #[test]
    fn two_minutes_without_a_failure_end_an_outage() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        assert!(backoff.note(start) && backoff.note(start + 59 * SECOND));
        assert!(!backoff.note(start + 61 * SECOND));
        for _ in 0..9 {
            backoff.pause(30 * SECOND);
        }
        assert!(!backoff.note(start + 180 * SECOND));
        assert!(backoff.pause(30 * SECOND) > SECOND);
        assert!(backoff.note(start + 331 * SECOND), "another outage");
        assert!(backoff.pause(30 * SECOND) < SECOND);
    }

    #[test]
    fn pauses_differ_from_agent_to_agent() {
        let pauses = [(); 8].map(|()| Backoff::default().pause(SECOND));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }
}
