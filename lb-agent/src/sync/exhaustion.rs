// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the source ports run out: told once, when new flows begin to be turned away for want of one, and again when
//! that is over. Pure.

use std::time::{Duration, Instant};

use crate::{node::ports::SourcePorts, problem::Problem};

/// How often to look.
const PERIOD: Duration = Duration::from_secs(5);
/// For how long none must be turned away before it is over.
const CALM: Duration = Duration::from_secs(60);

/// What was seen of the counter of flows turned away.
#[derive(Debug, Default)]
pub struct Exhaustion {
    due: Option<Instant>,
    counted: Option<u64>,
    last_rise: Option<Instant>,
}

impl Exhaustion {
    /// Whether it is time to look.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_none_or(|due| due <= now);
        if is_due {
            self.due = Some(now + PERIOD);
        }
        is_due
    }

    /// When it will be.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.due
    }

    /// What is wrong, by what was counted until now. What was counted before the first look is an earlier agent's.
    pub fn judge(&mut self, count: u64, ports: SourcePorts, now: Instant) -> Option<Problem> {
        if self.counted.replace(count).is_some_and(|former| count > former) {
            self.last_rise = Some(now);
        }
        self.last_rise.filter(|at| now.duration_since(*at) < CALM)?;
        let cause =
            "new connections from outside to backends on other nodes are dropped: no source port is free towards them";
        let remedy = format!(
            "widen --source-ports ({ports} now), or spread the load over more backends or nodes; \
             shunt_source_ports_in_use shows how many are taken"
        );
        Some(Problem::new("source ports", cause, remedy).with_reason("SourcePortsExhausted"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::Recorder,
        sync::report::{Reporter, Scope},
    };

    #[test]
    fn each_episode_is_told_once_and_to_the_node() {
        let (recorder, mut notes) = Recorder::new();
        let (mut reporter, mut ports) = (Reporter::new(recorder), Exhaustion::default());
        let mut now = Instant::now();
        let mut told = |count: u64, waiting: Duration| {
            now += waiting;
            let problem = ports.judge(count, "61000-65535".parse().unwrap(), now);
            reporter.set(Scope::SourcePorts, problem.into_iter().collect());
            let notes: Vec<_> = std::iter::from_fn(|| notes.try_recv().ok()).collect();
            (reporter.standing(), notes.len(), notes.iter().any(|note| format!("{note:?}").contains("--source-ports")))
        };
        assert_eq!(told(7, PERIOD), (0, 0, false), "those of an earlier agent");
        assert_eq!(told(7, PERIOD), (0, 0, false));
        assert_eq!(told(8, PERIOD), (1, 1, true));
        assert_eq!(told(20, PERIOD), (1, 0, false), "the same episode");
        assert_eq!(told(20, CALM - PERIOD), (1, 0, false), "not over yet");
        assert_eq!(told(20, PERIOD), (0, 0, false), "over");
        assert_eq!(told(21, PERIOD), (1, 1, true), "another");
    }

    #[test]
    fn it_is_looked_at_now_and_then() {
        let (mut ports, start) = (Exhaustion::default(), Instant::now());
        assert!(ports.is_due(start) && !ports.is_due(start));
        assert_eq!(ports.wake_at(), Some(start + PERIOD));
        assert!(ports.is_due(start + PERIOD));
    }
}
