// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is to be done now, and what is to be tried again later. Pure: `now` comes in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Pause after a first failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Which keys come before others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// First of all.
    First,
    /// Those that wait for what the first ones give up.
    Next,
    /// All others.
    Usual,
}

/// Keys to work on, each once, by their rank, and the failed ones after a growing pause.
#[derive(Debug)]
pub struct Queue<K> {
    ready: BTreeSet<(Rank, K)>,
    ranks: BTreeMap<K, Rank>,
    failed: BTreeMap<K, Failure>,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    /// When to try again; `None` while that is under way.
    retry_at: Option<Instant>,
    pause: Duration,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { ready: BTreeSet::new(), ranks: BTreeMap::new(), failed: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// Something is to be done for the key, at once.
    pub fn push(&mut self, key: K) {
        self.push_as(Rank::Usual, key);
    }

    /// The same, before those of a lesser rank.
    pub fn push_as(&mut self, rank: Rank, key: K) {
        let rank = match self.ranks.get(&key) {
            Some(&former) => {
                self.ready.remove(&(former, key.clone()));
                rank.min(former)
            }
            None => rank,
        };
        self.ranks.insert(key.clone(), rank);
        self.ready.insert((rank, key));
    }

    /// The next key to work on.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let is_due = |failure: &Failure| failure.retry_at.is_some_and(|at| at <= now);
        let due = || self.failed.iter().find(|(_, failure)| is_due(failure)).map(|(key, _)| key.clone());
        let key = self.ready.pop_first().map(|(_, key)| key).or_else(due)?;
        self.ranks.remove(&key);
        if let Some(failure) = self.failed.get_mut(&key) {
            failure.retry_at = None;
        }
        Some(key)
    }

    /// The work on a key succeeded, or is no longer wanted.
    pub fn succeed(&mut self, key: &K) {
        self.failed.remove(key);
    }

    /// The work on a key failed.
    pub fn fail(&mut self, key: K, now: Instant) {
        let pause = self.failed.get(&key).map_or(FIRST_PAUSE, |failure| (failure.pause * 2).min(LAST_PAUSE));
        self.failed.insert(key, Failure { retry_at: Some(now + pause), pause });
    }

    /// The keys that failed.
    pub fn failed(&self) -> impl Iterator<Item = &K> {
        self.failed.keys()
    }

    /// Whether something new waits; what failed does not count.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When a key that failed is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.failed.values().filter_map(|failure| failure.retry_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_end_with_success() {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            queue.fail("web", now);
            let due = queue.wake_at().unwrap();
            assert_eq!(due - now, Duration::from_secs(seconds));
            assert_eq!(queue.pop(now), None);
            now = due;
            assert_eq!(queue.pop(now), Some("web"));
            assert_eq!(queue.wake_at(), None);
        }
        queue.succeed(&"web");
        queue.fail("web", now);
        assert_eq!(queue.wake_at(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn keys_come_by_their_rank_and_once() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for key in ["a", "b", "c", "d"] {
            queue.push(key);
        }
        queue.push_as(Rank::First, "d");
        queue.push_as(Rank::Next, "c");
        queue.push("d");
        assert_eq!([(); 5].map(|()| queue.pop(now)), [Some("d"), Some("c"), Some("a"), Some("b"), None]);
        queue.push_as(Rank::Next, "a");
        assert!(queue.has_ready());
    }

    #[test]
    fn a_change_is_tried_at_once_in_spite_of_a_pause() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.fail("web", now);
        queue.push("web");
        assert_eq!(queue.pop(now), Some("web"));
        assert_eq!(queue.pop(now + LAST_PAUSE), None, "it is not due a second time");
    }
}
