// SPDX-License-Identifier: MIT OR Apache-2.0
//! Problems, told once: logged when they appear and when they are over, and counted.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{
    compile::ServiceKey,
    dataplane::{Repair, RepairsText},
    events::{self, Recorder},
    problem::Problem,
};

/// How often the API is told again of what stands: before its Event is forgotten, and after its repetition would be held back.
const REMINDER: Duration = Duration::from_secs(50 * 60);
const _: () = assert!(REMINDER.as_secs() > events::SILENCE.as_secs() && REMINDER.as_secs() < 3600);
/// How often to look for what is to be told again.
const REMINDER_PAUSE: Duration = Duration::from_secs(60);

/// How long a passing problem is not told again in the same words.
const SILENCE: Duration = Duration::from_secs(600);

/// What a set of standing problems belongs to. Services come last, because there are many of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// A device, by its index.
    Device(u32),
    /// The choice of devices.
    Uplinks,
    /// The addresses of this node.
    Addresses,
    /// The reserved source ports.
    SourcePorts,
    /// What was made in the kernel, and somebody else has taken out of it.
    Kernel,
    /// The net under the doors.
    Net,
    /// A Service.
    Service(ServiceKey),
    /// Frontends that a Service does not get.
    Frontends(ServiceKey),
}

/// All problems there are now.
#[derive(Debug, Default)]
pub struct Reporter {
    standing: BTreeMap<Scope, Vec<Problem>>,
    /// When the API was told of those, or the first look after that.
    told: BTreeMap<Scope, Instant>,
    reminder_due: Option<Instant>,
    passing: BTreeMap<Problem, Instant>,
    total: u64,
    has_changed: bool,
    recorder: Recorder,
}

impl Reporter {
    /// Tells problems of Services, and those of this node that its operator must see to, by Events, too.
    #[must_use]
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, ..Self::default() }
    }

    /// The problems of a scope are these now, and no others.
    pub fn set(&mut self, scope: Scope, problems: Vec<Problem>) {
        let former = self.standing.remove(&scope).unwrap_or_default();
        self.has_changed |= former != problems;
        // A remedy may name what there is to choose from, which changes while the problem stays.
        let is_among = |problem: &Problem, others: &[Problem]| {
            others.iter().any(|other| (&other.subject, &other.cause) == (&problem.subject, &problem.cause))
        };
        for problem in problems.iter().filter(|problem| !is_among(problem, &former)) {
            self.total += 1;
            warn!("{problem}");
            self.record(&scope, problem);
            self.told.remove(&scope);
        }
        for problem in former.iter().filter(|problem| !is_among(problem, &problems)) {
            info!("{}: no longer: {}", problem.subject, problem.cause);
        }
        if problems.is_empty() {
            self.told.remove(&scope);
        } else {
            self.standing.insert(scope, problems);
        }
    }

    fn record(&self, scope: &Scope, problem: &Problem) {
        match scope {
            Scope::Service(key) | Scope::Frontends(key) => self.recorder.warn(key, problem),
            Scope::SourcePorts | Scope::Kernel | Scope::Net => self.recorder.warn_node(problem),
            Scope::Device(_) | Scope::Uplinks | Scope::Addresses => {}
        }
    }

    /// Tells the API again of what has stood for so long that it forgets the Event. Returns when to come back.
    pub fn remind(&mut self, now: Instant) -> Option<Instant> {
        if self.reminder_due.is_none_or(|due| due <= now) {
            for (scope, problems) in &self.standing {
                let told = *self.told.entry(scope.clone()).or_insert(now);
                if now.duration_since(told) >= REMINDER {
                    problems.iter().for_each(|problem| self.record(scope, problem));
                    self.told.insert(scope.clone(), now);
                }
            }
            self.reminder_due = Some(now + REMINDER_PAUSE);
        }
        self.reminder_due.filter(|_| !self.standing.is_empty())
    }

    /// Something went wrong whose end nobody reports.
    pub fn note(&mut self, problem: Problem, now: Instant) {
        self.passing.retain(|_, told| now.duration_since(*told) < SILENCE);
        self.total += 1;
        if let Entry::Vacant(entry) = self.passing.entry(problem) {
            warn!("{}", entry.key());
            entry.insert(now);
        }
    }

    /// Something of ours was lost in the kernel, and has been put back: its operator should know who takes it.
    pub fn tell_repairs(&mut self, repairs: &[Repair], now: Instant) {
        if repairs.is_empty() {
            return;
        }
        let cause = format!("somebody had removed or changed: {}; it is put back", RepairsText(repairs));
        let remedy = "find out who does that (another network plug-in's installation or clean-up, bpftool, tc, umount)";
        let problem = Problem::new("this node's kernel", cause, remedy).with_reason("Repaired");
        self.recorder.warn_node(&problem);
        self.note(problem, now);
    }

    /// Problems that stand now.
    #[must_use]
    pub fn standing(&self) -> usize {
        self.standing.values().map(Vec::len).sum()
    }

    /// The problems that stand now, if they are others than at the last time.
    pub fn changed(&mut self) -> Option<impl Iterator<Item = &Problem>> {
        std::mem::take(&mut self.has_changed).then(|| self.standing.values().flatten())
    }

    /// The problems that stand now, as people read them.
    #[cfg(test)]
    pub fn texts(&self) -> Vec<String> {
        self.standing.values().flatten().map(ToString::to_string).collect()
    }

    /// Problems so far, passing ones as often as they came.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(cause: &str) -> Problem {
        Problem::new("Service default/web", cause, "mend it")
    }

    #[test]
    fn a_standing_problem_counts_once_and_ends() {
        let mut reporter = Reporter::default();
        let scope = || Scope::Service(ServiceKey::new("default", "web"));
        for _ in 0..3 {
            reporter.set(scope(), vec![problem("a"), problem("b")]);
        }
        assert_eq!((reporter.standing(), reporter.total()), (2, 2));
        reporter.set(scope(), vec![problem("b")]);
        assert_eq!((reporter.standing(), reporter.total()), (1, 2));
        reporter.set(scope(), vec![]);
        assert_eq!((reporter.standing(), reporter.total()), (0, 2));
    }

    #[test]
    fn a_standing_problem_is_told_again_before_its_event_is_forgotten() {
        let (recorder, mut notes) = Recorder::new();
        let mut reporter = Reporter::new(recorder);
        let start = Instant::now();
        let mut told = move |reporter: &mut Reporter, minutes: u64| {
            reporter.remind(start + Duration::from_secs(60 * minutes));
            std::iter::from_fn(|| notes.try_recv().ok()).count()
        };
        let scope = |name| Scope::Service(ServiceKey::new("default", name));
        reporter.set(scope("web"), vec![problem("a")]);
        assert_eq!(told(&mut reporter, 0), 1);
        let minutes: Vec<_> = (1..=120).filter(|&minute| told(&mut reporter, minute) > 0).collect();
        assert_eq!(minutes, [50, 100]);
        reporter.set(scope("web"), vec![]);
        assert_eq!(told(&mut reporter, 151), 0);
        assert_eq!(reporter.remind(start), None, "nothing stands");
    }

    #[test]
    fn a_passing_problem_is_told_again_after_a_while() {
        let mut reporter = Reporter::default();
        let start = Instant::now();
        reporter.note(problem("a"), start);
        reporter.note(problem("a"), start + SILENCE / 2);
        assert_eq!(reporter.passing[&problem("a")], start);
        reporter.note(problem("a"), start + SILENCE);
        assert_eq!(reporter.passing[&problem("a")], start + SILENCE);
        assert_eq!((reporter.standing(), reporter.total()), (0, 3));
    }
}
