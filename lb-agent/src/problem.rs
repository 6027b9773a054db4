// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is wrong with one object or one part of the machine, said so that its owner can mend it.

use std::fmt;

/// A fault that stops nothing else: it is logged, counted, and retried when its subject changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// What it concerns: `Service default/web`, `file web.yaml`, `uplink eth7`.
    pub subject: String,
    /// What is wrong with it.
    pub cause: String,
    /// What its owner can do.
    pub remedy: String,
    /// In one word, for machines: the reason of a Kubernetes Event.
    pub reason: &'static str,
}

/// The reason of most problems.
const REASON: &str = "NotServedAsSpecified";

impl Problem {
    /// A problem of `subject`.
    pub fn new(subject: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject: subject.into(), cause: cause.into(), remedy: remedy.into(), reason: REASON }
    }

    /// The same, for a reason that has a name of its own.
    #[must_use]
    pub fn with_reason(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.subject, self.cause, self.remedy)
    }
}

impl std::error::Error for Problem {}
