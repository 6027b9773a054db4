// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's notices (inotify) that pins are removed, so that nobody has to wait for the next audit.

use std::sync::Arc;

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{ModifyKind, RenameMode},
};
use tracing::debug;

use super::pins::{self, Pins};

/// Hears of a removal.
pub type Tell = Arc<dyn Fn() + Send + Sync>;

/// Watches the directories of pins until it is dropped.
pub struct Watch {
    tell: Tell,
    /// Held, not used.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// `None` where the kernel gives no notices, as where a user has too many watches already.
    pub fn start(pins: &Pins, tell: Tell) -> Option<Self> {
        let own = Arc::clone(&tell);
        let started = notify::recommended_watcher(move |notice: notify::Result<notify::Event>| {
            if notice.is_ok_and(|notice| is_removal(&notice)) {
                own();
            }
        });
        let watched = started.and_then(|mut watcher| {
            for path in pins.directories().chain([pins.layout(), pins.root().to_path_buf()]) {
                watcher.watch(&path, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match watched {
            Ok(watcher) => Some(Self { tell, _watcher: watcher }),
            Err(error) => {
                debug!("no notices of removed pins: {error}");
                None
            }
        }
    }

    /// The same, on directories that have been made anew.
    pub fn again(self, pins: &Pins) -> Option<Self> {
        let Self { tell, _watcher: former } = self;
        drop(former);
        Self::start(pins, tell)
    }
}

/// That pins come is no news: we make them all the time, under names that we then change.
fn is_removal(notice: &Event) -> bool {
    match notice.kind {
        EventKind::Remove(_) => true,
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => !notice.paths.iter().all(|path| pins::is_draft(path)),
        _ => false,
    }
}
