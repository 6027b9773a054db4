// SPDX-License-Identifier: MIT OR Apache-2.0
//! The audit: now and then, and when there is a hint, everything that the agent has put into the kernel is looked at, and of
//! the maps' elements a part. What is not as it was written is put back, counted, and told.

use std::time::{Duration, Instant};

use super::{Loop, doors::Doors, report::Scope};
use crate::{
    dataplane::{Audit, Failure, Part, Repair},
    diff::{Cursor, Operation, SampleSize},
    problem::Problem,
};

/// How often to look. So what is lost is back within half a minute.
const PERIOD: Duration = Duration::from_secs(25);
/// Hints come in bursts, and those of what we remove ourselves are among them.
const PAUSE: Duration = Duration::from_secs(1);
/// Milliseconds of the loop at most. 30,000 Services take some hundred looks.
const SAMPLE: SampleSize = SampleSize { elements: 4096, slots: 1 << 17 };

/// When to look, and what comes next.
#[derive(Debug, Default)]
pub struct Schedule {
    due: Option<Instant>,
    cursor: Cursor,
}

impl Schedule {
    /// Something may have been removed.
    pub fn hint(&mut self, now: Instant) {
        let soon = now + PAUSE;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// Whether it is time to look.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due || self.due.is_none() {
            self.due = Some(now + PERIOD);
        }
        is_due
    }

    /// When it will be.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.due
    }
}

impl<D: Doors> Loop<D> {
    /// Looks if it is time to.
    pub(super) fn audit(&mut self, now: Instant) {
        if !self.audits.is_due(now) {
            return;
        }
        let mut audit = self.maps.doors.audit();
        // Before the first sync the maps are an earlier agent's.
        if self.health.is_synced() {
            for operation in self.maps.state.sample(&mut self.audits.cursor, SAMPLE) {
                self.audit_element(&operation, &mut audit);
            }
        }
        self.reporter.set(Scope::Kernel, audit.failures.iter().map(problem).collect());
        self.tell_repairs(&audit.repairs, now);
    }

    fn audit_element(&mut self, operation: &Operation, audit: &mut Audit) {
        match self.maps.doors.holds(operation) {
            Ok(true) => {}
            Ok(false) => audit.note(Part::Map, operation.to_string(), self.maps.doors.write(operation)),
            Err(error) => audit.note(Part::Map, operation.to_string(), Err(error)),
        }
    }

    /// Counts repairs, and tells of them.
    pub(super) fn tell_repairs(&mut self, repairs: &[Repair], now: Instant) {
        repairs.iter().for_each(|repair| self.metrics.count_repair(repair.part));
        self.reporter.tell_repairs(repairs, now);
    }
}

fn problem(Failure { part, name, cause }: &Failure) -> Problem {
    let cause = format!("{} {name} was lost, and can't be put back: {cause}", part.as_str());
    let remedy = "see `bpftool net` and `bpftool link` for what has taken its place; it is tried again";
    Problem::new("this node's kernel", cause, remedy).with_reason("Lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_at_every_half_minute_and_soon_after_a_hint() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        assert!(!schedule.is_due(start), "all has just been made");
        assert_eq!(schedule.wake_at(), Some(start + PERIOD));
        assert!(schedule.is_due(start + PERIOD) && !schedule.is_due(start + PERIOD));
        let hinted = start + PERIOD + PAUSE;
        (0..3).for_each(|_| schedule.hint(hinted));
        assert_eq!(schedule.wake_at(), Some(hinted + PAUSE));
        assert!(schedule.is_due(hinted + PAUSE));
        assert_eq!(schedule.wake_at(), Some(hinted + PAUSE + PERIOD));
        schedule.hint(hinted + PERIOD);
        assert_eq!(schedule.wake_at(), Some(hinted + PAUSE + PERIOD), "a hint puts nothing off");
    }
}
