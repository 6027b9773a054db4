// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the server keeps: objects, and the history from which watches are told. Every change makes a new version.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    resource::{Id, Resource},
    selector::Selector,
};

/// Objects under one count of versions, as etcd keeps them.
#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Id, Value>,
    history: Vec<Change>,
    /// Changes up to this version have been forgotten.
    forgotten: u64,
}

#[derive(Debug)]
struct Change {
    version: u64,
    resource: Resource,
    before: Option<Value>,
    after: Option<Value>,
}

/// The version that somebody wants to go on from has been forgotten.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Creates or replaces an object. The same object again is no change.
    pub(super) fn put(&mut self, mut object: Value) {
        let id = Id::of(&object).expect("an object of a known kind with a name");
        let before = self.objects.get(&id).cloned();
        let uid = before
            .as_ref()
            .map_or_else(|| json!(format!("uid-{}", self.version + 1)), |old| old["metadata"]["uid"].clone());
        if !id.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(id.namespace);
        }
        object["metadata"]["uid"] = uid;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(id.clone(), object.clone());
        self.history.push(Change { version: self.version, resource: id.resource, before, after: Some(object) });
    }

    pub(super) fn get(&self, id: &Id) -> Option<Value> {
        self.objects.get(id).cloned()
    }

    /// Removes an object, if it is there.
    pub(super) fn remove(&mut self, id: &Id) {
        let Some(before) = self.objects.remove(id) else { return };
        self.version += 1;
        let change = Change { version: self.version, resource: id.resource, before: Some(before), after: None };
        self.history.push(change);
    }

    /// Forgets how things came to be as they are, as etcd does every few minutes.
    pub(super) fn forget_history(&mut self) {
        self.history.clear();
        self.forgotten = self.version;
    }

    pub(super) fn list(&self, resource: Resource, namespace: Option<&str>, selector: &Selector) -> Vec<Value> {
        let is_wanted = |(id, object): &(&Id, &Value)| {
            id.resource == resource
                && namespace.is_none_or(|namespace| id.namespace == namespace)
                && selector.matches(object)
        };
        self.objects.iter().filter(is_wanted).map(|(_, object)| object.clone()).collect()
    }

    /// What a watch is told of the time after a version: an object that is not selected any more is gone.
    pub(super) fn changes_since(
        &self,
        version: u64,
        resource: Resource,
        selector: &Selector,
    ) -> Result<Vec<(&'static str, Value)>, Gone> {
        if version < self.forgotten {
            return Err(Gone);
        }
        let new = self.history.iter().filter(|change| change.version > version && change.resource == resource);
        Ok(new.filter_map(|change| change.seen_through(selector)).collect())
    }
}

impl Change {
    fn seen_through(&self, selector: &Selector) -> Option<(&'static str, Value)> {
        let before = self.before.as_ref().filter(|object| selector.matches(object));
        let after = self.after.as_ref().filter(|object| selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(new)) => Some(("ADDED", new.clone())),
            (Some(_), Some(new)) => Some(("MODIFIED", new.clone())),
            (Some(old), None) => {
                let mut last = old.clone();
                last["metadata"]["resourceVersion"] = json!(self.version.to_string());
                Some(("DELETED", last))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, label: Option<&str>) -> Value {
        let labels = label.map(|label| json!({ label: "" })).unwrap_or_default();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}})
    }

    fn told(store: &Store, version: u64) -> Result<Vec<&'static str>, Gone> {
        let selector = Selector::default().and("!hidden", true);
        let changes = store.changes_since(version, Resource::Services, &selector)?;
        Ok(changes.into_iter().map(|(what, _)| what).collect())
    }

    #[test]
    fn a_label_that_hides_looks_like_a_delete() {
        let mut store = Store::default();
        store.put(service("web", None));
        store.put(service("web", Some("hidden")));
        store.put(service("web", Some("hidden")));
        store.put(service("web", None));
        store.put(service("web", None));
        store.remove(&Id::new(Resource::Services, "default", "web"));
        assert_eq!(told(&store, 0), Ok(vec!["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]));
        assert_eq!(told(&store, 4), Ok(vec!["MODIFIED", "DELETED"]));
    }

    #[test]
    fn what_is_forgotten_can_not_be_told() {
        let mut store = Store::default();
        store.put(service("web", None));
        store.forget_history();
        assert_eq!(told(&store, 0), Err(Gone));
        assert_eq!(told(&store, 1), Ok(vec![]));
        assert_eq!(store.list(Resource::Services, Some("default"), &Selector::default()).len(), 1);
    }
}
