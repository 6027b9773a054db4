// SPDX-License-Identifier: MIT OR Apache-2.0
//! Collects what is wrong with one object while it is read, so that the rest of it can be read all the same.
//!
//! A bad value holds only itself. Of a list, the entry is skipped; of a field, the last good value stays in force; where there
//! was none, a stopgap does, which says as little as it can.

use std::collections::BTreeSet;

use crate::problem::Problem;

/// What has a value of its own, and keeps its last good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `spec.clusterIPs`.
    ClusterIps,
    /// `spec.type`.
    Type,
    /// Ports, of a Service or a slice: each by its name.
    Ports,
    /// `spec.internalTrafficPolicy`.
    InternalPolicy,
    /// `spec.externalTrafficPolicy`.
    ExternalPolicy,
    /// Session affinity.
    Affinity,
    /// `spec.loadBalancerSourceRanges`.
    SourceRanges,
    /// The annotation `shunt.dev/on-backend-removal`.
    OnBackendRemoval,
    /// `spec.externalFailoverPolicy`, and the annotation `shunt.dev/external-failover`.
    ExternalFailover,
    /// The annotation `shunt.dev/split`.
    Split,
    /// `addressType` of a slice.
    AddressType,
}

/// The problems of one object so far.
pub(super) struct Faults {
    subject: String,
    problems: Vec<Problem>,
    /// Fields that could not be read, and have no last good value.
    stopgaps: BTreeSet<Field>,
}

impl Faults {
    /// None so far. `subject` is the object: `Service default/web`.
    pub(super) fn new(subject: String) -> Self {
        Self { subject, problems: Vec::new(), stopgaps: BTreeSet::new() }
    }

    /// What is said of a value that is held.
    pub(super) const UNTIL_THEN: &str = "; until then the last good value stays in force";

    /// A field that can't be read: its last good value stays, else it is given the stopgap.
    pub(super) fn hold<T>(&mut self, field: Field, bad: Bad<T>, last_good: Option<T>) -> T {
        let Bad { cause, stopgap, stopgap_text, remedy } = bad;
        if let Some(last_good) = last_good {
            self.tell(cause, format!("{remedy}{}", Self::UNTIL_THEN));
            return last_good;
        }
        self.stopgaps.insert(field);
        self.tell(format!("{cause}{stopgap_text}"), remedy);
        stopgap
    }

    /// An entry of a list that can't be: it is left out alone.
    pub(super) fn skip(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.tell(format!("{}, and is skipped", cause.into()), remedy);
    }

    /// What is wrong, whatever comes of it.
    pub(super) fn tell(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem::new(self.subject.clone(), cause, remedy));
    }

    /// The problems, in the order in which they were found, and the fields that have but a stopgap.
    pub(super) fn finish(self) -> (Vec<Problem>, BTreeSet<Field>) {
        (self.problems, self.stopgaps)
    }
}

/// A value that can't be: its owner must mend the object.
pub(super) struct Bad<T> {
    /// What is wrong.
    pub(super) cause: String,
    /// What is taken where there was no good one.
    pub(super) stopgap: T,
    /// What is to be said of that: ` and taken for Local`.
    pub(super) stopgap_text: String,
    /// What to write instead.
    pub(super) remedy: String,
}
