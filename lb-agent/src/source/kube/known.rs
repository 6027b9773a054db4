// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which objects of one kind the server has, so that those deleted while nobody watched are missed.
//!
//! A watch that was interrupted for too long begins anew with a list, and what is not in it has gone: the watcher itself
//! says nothing about these. Pure.

use std::collections::BTreeSet;

use kube::runtime::watcher;

use crate::source::{Event, Object, ObjectId};

/// The objects of one kind, by identity.
#[derive(Debug, Default)]
pub(super) struct Known {
    ids: BTreeSet<ObjectId>,
    /// Whether a list was ever complete.
    is_whole: bool,
    listing: Option<Listing>,
}

/// A list that is under way.
#[derive(Debug, Default)]
struct Listing {
    /// What it has brought so far.
    ids: BTreeSet<ObjectId>,
    /// Objects that were not known before, but for those of the first list. They wait for its end, which tells what has gone:
    /// else they would meet ghosts, whose frontends they may have now.
    new: Vec<Object>,
}

impl Known {
    /// Whether a list is under way.
    pub(super) fn is_listing(&self) -> bool {
        self.listing.is_some()
    }

    /// The server has no objects of this kind any more.
    pub(super) fn forget(&mut self) -> Vec<Event> {
        self.listing = None;
        std::mem::take(&mut self.ids).into_iter().map(Event::Delete).collect()
    }

    /// What an event of the watcher means. A list that breaks off deletes nothing.
    pub(super) fn handle(&mut self, event: watcher::Event<impl Into<Object>>) -> Vec<Event> {
        match event {
            watcher::Event::Init => {
                self.listing = Some(Listing::default());
                Vec::new()
            }
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                let object: Object = object.into();
                let id = object.id();
                let is_known = self.ids.contains(&id);
                if let Some(listing) = &mut self.listing {
                    listing.ids.insert(id.clone());
                    if self.is_whole && !is_known {
                        listing.new.push(object);
                        return Vec::new();
                    }
                }
                self.ids.insert(id);
                vec![Event::Apply(object)]
            }
            watcher::Event::InitDone => {
                let Listing { ids, new } = self.listing.take().unwrap_or_default();
                let missing = self.ids.difference(&ids).cloned().map(Event::Delete);
                let news = missing.chain(new.into_iter().map(Event::Apply)).collect();
                (self.ids, self.is_whole) = (ids, true);
                news
            }
            watcher::Event::Delete(object) => {
                let id = object.into().id();
                self.ids.remove(&id);
                vec![Event::Delete(id)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event as Watched;

    use super::*;
    use crate::{
        model::builders::{deleted, service},
        source::Kind,
    };

    /// What a sequence of the watcher's events comes to.
    fn told(known: &mut Known, events: Vec<Watched<k8s_openapi::api::core::v1::Service>>) -> Vec<Event> {
        events.into_iter().flat_map(|event| known.handle(event)).collect()
    }

    #[test]
    fn what_was_deleted_in_a_gap_is_missed_after_the_next_list() {
        let mut known = Known::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| service(name).0);
        told(&mut known, vec![Watched::Init, Watched::InitApply(a.clone()), Watched::InitDone, Watched::Apply(b)]);
        let news = told(&mut known, vec![Watched::Init, Watched::InitApply(c), Watched::InitDone]);
        assert_eq!(news, [deleted(Kind::Service, "a"), deleted(Kind::Service, "b"), service("c").applied()]);
        assert_eq!(told(&mut known, vec![Watched::Init, Watched::InitApply(a), Watched::InitDone]).len(), 2);
    }

    #[test]
    fn a_kind_that_the_server_has_no_more_has_no_objects() {
        let mut known = Known::default();
        let a = service("a").0;
        told(&mut known, vec![Watched::Init, Watched::InitApply(a.clone()), Watched::InitDone, Watched::Init]);
        assert_eq!(known.forget(), [deleted(Kind::Service, "a")]);
        assert!(!known.is_listing() && known.forget().is_empty());
    }

    #[test]
    fn a_list_that_breaks_off_deletes_nothing() {
        let mut known = Known::default();
        let [a, b] = ["a", "b"].map(|name| service(name).0);
        told(&mut known, vec![Watched::Init, Watched::InitApply(a.clone()), Watched::InitDone]);
        let broken = vec![Watched::Init, Watched::InitApply(b), Watched::Init, Watched::InitApply(a)];
        assert!(told(&mut known, broken).iter().all(|event| matches!(event, Event::Apply(_))));
        assert!(known.is_listing());
        assert_eq!(told(&mut known, vec![Watched::InitDone]), [], "b was never told of");
    }

    #[test]
    fn a_delete_that_was_watched_is_not_missed_again() {
        let mut known = Known::default();
        let a = service("a").0;
        let news = told(&mut known, vec![Watched::Init, Watched::InitApply(a.clone()), Watched::InitDone]);
        assert_eq!(news, [service("a").applied()]);
        assert_eq!(told(&mut known, vec![Watched::Delete(a)]), [deleted(Kind::Service, "a")]);
        assert!(told(&mut known, vec![Watched::Init, Watched::InitDone]).is_empty());
    }
}
