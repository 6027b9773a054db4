// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory of manifests, from files to events: what changed since the last look.
//!
//! In: the directory, at each [`Tree::scan`]. Out: the events that bring the model up to date. A file that can't be read
//! or understood keeps the objects that it had; one that never could be makes the whole incomplete. When to look is not
//! decided here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::manifest::{self, Fault, Manifest};
use crate::{
    problem::Problem,
    source::{Event, Object, ObjectId},
};

/// File systems stamp changes no finer than their clock's tick; a file that changed this recently is read again even if
/// its stamp is the same.
const STAMP_GRAIN: Duration = Duration::from_secs(2);

const KEPT: &str = "until then the last good objects of this file stay in force";

/// The directory as it was at the last look.
pub(super) struct Tree {
    root: PathBuf,
    files: BTreeMap<String, File>,
    /// Which files define an object, by file name. The first one is in force.
    definitions: BTreeMap<ObjectId, BTreeMap<String, Object>>,
    /// Whether some file has not been understood as a whole even once.
    is_incomplete: bool,
}

/// A file as it was at the last look.
struct File {
    /// `None` where the file must be read again in any case.
    stamp: Option<Stamp>,
    /// Digest of the text, or why there is none.
    content: Result<u64, String>,
    objects: BTreeSet<ObjectId>,
    /// Whether it was free of faults at any look: before, it may define anything.
    was_whole: bool,
}

/// Changes whenever a file does, but for [`STAMP_GRAIN`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let age = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        i64::try_from(age).is_ok_and(|now| now - self.changed.0 > STAMP_GRAIN.as_secs() as i64)
    }
}

/// What one look brings to light.
#[derive(Default)]
struct Changes {
    problems: Vec<Problem>,
    /// The definitions of each object concerned, as they were before.
    before: BTreeMap<ObjectId, BTreeMap<String, Object>>,
}

impl Tree {
    /// A directory that has not been looked at.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, files: BTreeMap::new(), definitions: BTreeMap::new(), is_incomplete: false }
    }

    /// Looks at the directory.
    ///
    /// # Errors
    /// When the directory itself can't be listed; all that was known stays.
    pub(super) fn scan(&mut self) -> io::Result<Vec<Event>> {
        let names = list(&self.root)?;
        let mut changes = Changes::default();
        let gone: Vec<_> = self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.replace(&name, Manifest::default(), &mut changes);
            self.files.remove(&name);
        }
        for name in names {
            self.refresh(&name, &mut changes);
        }
        Ok(self.events(changes))
    }

    /// Reads a file again, unless it is surely the same.
    fn refresh(&mut self, name: &str, changes: &mut Changes) {
        let path = self.root.join(name);
        let stamp = fs::metadata(&path).ok().map(|metadata| Stamp::of(&metadata));
        let known = self.files.get(name);
        if stamp.is_some() && known.is_some_and(|file| file.stamp == stamp) {
            return;
        }
        let text = fs::read_to_string(&path).map_err(|error| error.to_string());
        let content = text.as_ref().map(digest).map_err(Clone::clone);
        let is_same = known.is_some_and(|file| file.content == content);
        let stamp = stamp.filter(|stamp| content.is_ok() && stamp.is_settled(SystemTime::now()));
        let file = self.files.entry(name.into()).or_insert_with(File::unread);
        file.stamp = stamp;
        if is_same {
            return;
        }
        file.content = content;
        match text {
            Ok(text) => self.replace(name, manifest::parse(&text), changes),
            Err(cause) => {
                let remedy = format!("make it a readable UTF-8 text, or remove it; {KEPT}");
                changes.problems.push(Problem::new(format!("file {name}"), cause, remedy));
            }
        }
    }

    /// Puts what a file holds now in the place of what it held. A file with faults keeps what it doesn't define anew:
    /// which objects the broken parts were meant to be can't be known.
    fn replace(&mut self, name: &str, manifest: Manifest, changes: &mut Changes) {
        let Some(file) = self.files.get_mut(name) else { return };
        let is_whole = manifest.faults.is_empty();
        file.was_whole |= is_whole;
        let new: BTreeSet<_> = manifest.objects.keys().cloned().collect();
        let old = std::mem::replace(&mut file.objects, new);
        for id in old.into_iter().filter(|id| !manifest.objects.contains_key(id)) {
            if is_whole {
                changes.note(&id, &self.definitions);
                self.definitions.entry(id).and_modify(|files| drop(files.remove(name)));
            } else {
                file.objects.insert(id);
            }
        }
        for (id, object) in manifest.objects {
            changes.note(&id, &self.definitions);
            self.definitions.entry(id).or_default().insert(name.into(), object);
        }
        let problem = |fault: Fault, outcome: &str| {
            let Fault { line, document, cause, remedy } = fault;
            Problem::new(format!("file {name}, line {line} (document {document})"), cause, format!("{remedy}{outcome}"))
        };
        let kept = format!("; {KEPT}");
        changes.problems.extend(manifest.faults.into_iter().map(|fault| problem(fault, &kept)));
        changes.problems.extend(manifest.warnings.into_iter().map(|fault| problem(fault, "")));
    }

    /// Compares what is in force now with what was before.
    fn events(&mut self, changes: Changes) -> Vec<Event> {
        let mut events: Vec<_> = changes.problems.into_iter().map(Event::Problem).collect();
        for (id, before) in changes.before {
            let after = self.definitions.get(&id);
            events.extend(after.and_then(|after| conflict(&id, &before, after)).map(Event::Problem));
            match (before.values().next(), after.and_then(|after| after.values().next())) {
                (Some(_), None) => events.push(Event::Delete(id.clone())),
                (old, Some(new)) if old != Some(new) => events.push(Event::Apply(new.clone())),
                _ => {}
            }
            if after.is_some_and(BTreeMap::is_empty) {
                self.definitions.remove(&id);
            }
        }
        let is_incomplete = self.files.values().any(|file| !file.was_whole);
        if std::mem::replace(&mut self.is_incomplete, is_incomplete) != is_incomplete {
            events.push(Event::Incomplete(is_incomplete));
        }
        events
    }
}

impl File {
    fn unread() -> Self {
        Self { stamp: None, content: Err(String::new()), objects: BTreeSet::new(), was_whole: false }
    }
}

impl Changes {
    fn note(&mut self, id: &ObjectId, definitions: &BTreeMap<ObjectId, BTreeMap<String, Object>>) {
        if !self.before.contains_key(id) {
            self.before.insert(id.clone(), definitions.get(id).cloned().unwrap_or_default());
        }
    }
}

/// Said once for each set of files that define the same object.
fn conflict(id: &ObjectId, before: &BTreeMap<String, Object>, after: &BTreeMap<String, Object>) -> Option<Problem> {
    if after.len() < 2 || before.keys().eq(after.keys()) {
        return None;
    }
    let names: Vec<_> = after.keys().map(String::as_str).collect();
    Some(Problem::new(
        format!("file {}", names[1..].join(", ")),
        format!("{id} is defined by {} already", names[0]),
        format!("remove it from all files but one; the one in {} is in force", names[0]),
    ))
}

/// Names of the manifests in a directory. Hidden files are not among them: editors' and Kubernetes' own business.
fn list(root: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_manifest = [".yaml", ".yml", ".json"].iter().any(|suffix| name.ends_with(suffix));
        // A link that leads nowhere is a file that can't be read, and not none: it may be half-way through being replaced.
        let is_file = fs::metadata(entry.path()).map_or(true, |metadata| metadata.is_file());
        if is_manifest && is_file && !name.starts_with('.') {
            names.insert(name);
        }
    }
    Ok(names)
}

fn digest(text: &String) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
