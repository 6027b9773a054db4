// SPDX-License-Identifier: MIT OR Apache-2.0
//! Collects what is wrong with one object while it is read, so that the rest of it can be read all the same.

use crate::problem::Problem;

/// The problems of an impossible edit, which must not stop what worked: the version before it stays.
pub(super) fn keep_last_good(mut problems: Vec<Problem>, kind: &str) -> Vec<Problem> {
    for problem in &mut problems {
        problem.remedy.push_str(&format!("; until then the last good version of the {kind} stays in force"));
    }
    problems
}

/// The problems of one object so far.
pub(super) struct Faults {
    subject: String,
    problems: Vec<Problem>,
    is_impossible: bool,
}

impl Faults {
    /// None so far. `subject` is the object: `Service default/web`.
    pub(super) fn new(subject: String) -> Self {
        Self { subject, problems: Vec::new(), is_impossible: false }
    }

    /// A value that can't be: its owner must mend the object.
    pub(super) fn impossible(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.is_impossible = true;
        self.problems.push(Problem::new(self.subject.clone(), cause, remedy));
    }

    /// A good value that this version doesn't honour.
    pub(super) fn unsupported(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem::new(self.subject.clone(), cause, remedy));
    }

    /// Whether any value was impossible.
    pub(super) fn is_impossible(&self) -> bool {
        self.is_impossible
    }

    /// All of them, in the order in which they were found.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
