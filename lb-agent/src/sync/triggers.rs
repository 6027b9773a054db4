// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long it took from a change in the cluster to the maps (rule 74). Pure.
//!
//! The controller that writes a slice notes in it when the change happened that made it do so. What happened before this
//! process started says nothing about it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::compile::ServiceKey;

const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A change in the cluster: whether it concerns IPv4, and when it happened.
pub type Trigger = (bool, Timestamp);

/// Changes that are not in the maps yet, by Service, and those that have got there.
#[derive(Debug)]
pub struct Triggers {
    start: Timestamp,
    waiting: BTreeMap<ServiceKey, Vec<Trigger>>,
    programmed: Vec<Trigger>,
}

impl Triggers {
    /// None so far.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self { start, waiting: BTreeMap::new(), programmed: Vec::new() }
    }

    /// What a slice says about its Service.
    pub fn read(&self, slice: &EndpointSlice) -> Option<(ServiceKey, Trigger)> {
        let metadata = &slice.metadata;
        let at: Timestamp = metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?.parse().ok()?;
        let service = metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
        let key = ServiceKey::new(metadata.namespace.clone().unwrap_or_default(), service.clone());
        (at > self.start).then_some((key, (slice.address_type == "IPv4", at)))
    }

    /// The Service is going to be written because of it.
    pub fn wait(&mut self, key: ServiceKey, trigger: Trigger) {
        self.waiting.entry(key).or_default().push(trigger);
    }

    /// The Service has been written.
    pub fn finish(&mut self, key: &ServiceKey) {
        self.programmed.extend(self.waiting.remove(key).into_iter().flatten());
    }

    /// What has changed of the Service does not get into the maps.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.waiting.remove(key);
    }

    /// Changes that have got into the maps since the last time.
    pub fn take_programmed(&mut self) -> Vec<Trigger> {
        std::mem::take(&mut self.programmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builders::slice;

    #[test]
    fn rule_74_triggers_of_this_process_lifetime_count_once_written() {
        let start: Timestamp = "2026-11-01T10:00:00Z".parse().unwrap();
        let mut triggers = Triggers::new(start);
        let at = |time: &str| {
            let mut object = slice("web-1", "web").0;
            object.metadata.annotations.get_or_insert_default().insert(TRIGGER_ANNOTATION.into(), time.into());
            object
        };
        assert_eq!(triggers.read(&slice("web-1", "web").0), None);
        assert_eq!(triggers.read(&at("2026-11-01T09:59:59Z")), None, "before the start");
        assert_eq!(triggers.read(&at("yesterday")), None);
        let (key, trigger) = triggers.read(&at("2026-11-01T10:00:02.5Z")).unwrap();
        assert_eq!(key, ServiceKey::new("default", "web"));
        triggers.wait(key.clone(), trigger);
        assert_eq!(triggers.take_programmed(), []);
        triggers.finish(&key);
        assert_eq!(triggers.take_programmed(), [(true, "2026-11-01T10:00:02.5Z".parse().unwrap())]);
        assert_eq!(triggers.take_programmed(), []);
        triggers.wait(key.clone(), trigger);
        triggers.forget(&key);
        triggers.finish(&key);
        assert_eq!(triggers.take_programmed(), [], "what is not written is not programmed");
    }
}
