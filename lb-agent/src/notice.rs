// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's notices (inotify) that something in a directory has changed.

use std::path::Path;

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

/// Sends a notice for each change in the directory itself, until what is returned is dropped.
///
/// # Errors
/// When the kernel gives none.
pub fn watch(directory: &Path, notifier: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |notice: notify::Result<notify::Event>| {
        if notice.is_ok_and(|notice| is_change(&notice.kind)) {
            // Full: a notice is waiting already, and one is as good as many.
            let _ = notifier.try_send(());
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Our own reading is no change.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}
