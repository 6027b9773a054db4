// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps of another size than before, in place: no connection is cut, and nothing has to be removed first.
//!
//! 1. The pin of a map whose size has changed is set aside, and one of the new size is made and loaded with the programs.
//! 2. It gets what the one before holds, element by element: indices and generations stay.
//! 3. Programs that run are replaced in place, at once: nothing is written between the copy and that.
//! 4. What programs have written meanwhile follows, and the pins that were set aside go.
//!
//! An agent that dies before the last step leaves those pins: the next one takes the maps from before back, and starts over.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::Pod;
use lb_common::{
    address::Address,
    config::Interface,
    counters::{BackendCounters, ServiceCounters},
    fragment::{Fragment, FragmentKey},
    frontend::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRangeKey},
    maps::{self, Chunk, SLOTS_PER_CHUNK, ServiceName},
    socket::{SocketEntry, TalkEntry, TalkKey},
};

use super::{
    maps::{EveryCpu, Hash, MapError, Maps, Shared, Trie},
    pins::{PinError, Pins},
};

/// Takes the maps back that a resize which came to no end has set aside; programs run with them, some perhaps with others.
/// Returns whether there were any.
///
/// # Errors
/// When a pin can't be moved.
pub fn restore(pins: &Pins) -> Result<bool, PinError> {
    let aside = pins.set_aside();
    let mut has_any = false;
    for name in maps::PINNED.into_iter().filter(|name| aside.map(name).exists()) {
        let path = pins.map(name);
        // A rename onto a pin replaces it.
        fs::rename(aside.map(name), &path).map_err(|cause| PinError::Pin { path, cause })?;
        has_any = true;
    }
    remove_directory(&aside)?;
    Ok(has_any)
}

/// Makes room for a map of the same name and another size.
///
/// # Errors
/// When the pin can't be moved.
pub fn set_aside(pins: &Pins, name: &'static str) -> Result<(), PinError> {
    let aside = pins.set_aside();
    let directory = aside.maps();
    fs::create_dir_all(&directory).map_err(|cause| PinError::Directory { path: directory, cause })?;
    let path = aside.map(name);
    fs::rename(pins.map(name), &path).map_err(|cause| PinError::Pin { path, cause })
}

/// The smallest size of a pinned map that holds what is in it; `None` where its size can't be changed.
///
/// # Errors
/// When the map can't be read.
pub fn needed_size(pins: &Pins, name: &'static str) -> Result<Option<u64>, MapError> {
    let needed = match name {
        maps::FRONTENDS => frontends(pins)?.count()?,
        maps::BACKENDS => {
            let backends = Shared::<Backend>::open(pins, name)?;
            // A free one keeps its generation, which flows may still ask for.
            let is_used = |index: &u32| backends.get(*index).is_some_and(|backend| backend != Backend::default());
            (0..backends.capacity()).rev().find(is_used).map_or(1, |last| u64::from(last) + 1)
        }
        maps::TABLES => {
            let mut end = 0;
            frontends(pins)?.for_each(|_, frontend| {
                let ends = frontend.targets.iter().map(|target| target.offset + target.slots);
                end = ends.fold(end, u32::max);
            })?;
            u64::from(end.div_ceil(SLOTS_PER_CHUNK))
        }
        maps::SERVICE_NAMES => {
            let mut size = 1;
            Hash::<u32, ServiceName>::open(pins, name)?.for_each(|&index, _| size = size.max(u64::from(index) + 1))?;
            size
        }
        maps::SOURCE_RANGES => Trie::<SourceRangeKey>::open(pins, name)?.entries()?.len() as u64,
        maps::INTERFACES => Hash::<u32, Interface>::open(pins, name)?.count()?,
        maps::NODE_ADDRESSES => Hash::<Address, u32>::open(pins, name)?.count()?,
        // The oldest make way. Counters follow what they count.
        maps::AFFINITY | maps::FRAGMENTS | maps::SOCKETS | maps::TALKS => 0,
        maps::BACKEND_COUNTERS | maps::SERVICE_COUNTERS => 0,
        _ => return Ok(None),
    };
    Ok(Some(needed))
}

fn frontends(pins: &Pins) -> Result<Hash<FrontendKey, Frontend>, MapError> {
    Hash::open(pins, maps::FRONTENDS)
}

/// Maps that have been made anew in another size.
#[derive(Debug)]
pub struct Resized {
    aside: Pins,
    names: Vec<&'static str>,
    written: Written,
}

/// Maps that programs write, as they were set aside, with what has been copied of them.
#[derive(Debug, Default)]
struct Written {
    affinity: Option<(Hash<AffinityKey, Affinity>, BTreeSet<AffinityKey>)>,
    fragments: Option<(Hash<FragmentKey, Fragment>, BTreeSet<FragmentKey>)>,
    sockets: Option<(Hash<u64, SocketEntry>, BTreeSet<u64>)>,
    talks: Option<(Hash<TalkKey, TalkEntry>, BTreeSet<TalkKey>)>,
    backends: Option<EveryCpu<BackendCounters>>,
    services: Option<EveryCpu<ServiceCounters>>,
}

impl Resized {
    /// Fills maps that are new with what those before hold that were set aside.
    ///
    /// # Errors
    /// When a map can't be read or written. Nothing runs with the new ones then.
    pub fn fill(pins: &Pins, names: Vec<&'static str>, maps: &Maps) -> Result<Self, MapError> {
        let mut own = Self { aside: pins.set_aside(), names, written: Written::default() };
        let aside = &own.aside;
        let written = &mut own.written;
        for &name in &own.names {
            match name {
                maps::FRONTENDS => drop(copy(&Hash::open(aside, name)?, &maps.frontends)?),
                maps::SERVICE_NAMES => drop(copy(&Hash::open(aside, name)?, &maps.names)?),
                maps::INTERFACES => drop(copy(&Hash::open(aside, name)?, &maps.interfaces)?),
                maps::NODE_ADDRESSES => drop(copy(&Hash::open(aside, name)?, &maps.node_addresses)?),
                maps::BACKENDS => copy_array(&Shared::<Backend>::open(aside, name)?, &maps.backends),
                maps::TABLES => copy_array(&Shared::<Chunk>::open(aside, name)?, &maps.tables),
                maps::SOURCE_RANGES => copy_trie(&Trie::open(aside, name)?, &maps.source_ranges)?,
                maps::AFFINITY => written.affinity = Some(copy_first(Hash::open(aside, name)?, &maps.affinity)?),
                maps::FRAGMENTS => written.fragments = Some(copy_first(Hash::open(aside, name)?, &maps.fragments)?),
                maps::SOCKETS => written.sockets = Some(copy_first(Hash::open(aside, name)?, &maps.sockets)?),
                maps::TALKS => written.talks = Some(copy_first(Hash::open(aside, name)?, &maps.talks)?),
                maps::BACKEND_COUNTERS => written.backends = Some(EveryCpu::open(aside, name)?),
                maps::SERVICE_COUNTERS => written.services = Some(EveryCpu::open(aside, name)?),
                _ => {}
            }
        }
        own.catch_up_counters(maps);
        Ok(own)
    }

    /// Counters as the programs of before have left them, just before those go.
    pub fn catch_up_counters(&self, maps: &Maps) {
        if let Some(before) = &self.written.backends {
            raise(before, &maps.backend_counters);
        }
        if let Some(before) = &self.written.services {
            raise(before, &maps.service_counters);
        }
    }

    /// Copies what the programs of before have written since the first copy, and forgets the maps of before.
    ///
    /// # Errors
    /// When a map can't be read or written, or a pin not be removed.
    pub fn finish(self, maps: &Maps) -> Result<(), ResizeError> {
        let Written { affinity, fragments, sockets, talks, .. } = &self.written;
        copy_rest(affinity.as_ref(), &maps.affinity)?;
        copy_rest(fragments.as_ref(), &maps.fragments)?;
        copy_rest(sockets.as_ref(), &maps.sockets)?;
        copy_rest(talks.as_ref(), &maps.talks)?;
        for name in self.names {
            let path = self.aside.map(name);
            fs::remove_file(&path).map_err(|cause| PinError::Pin { path, cause })?;
        }
        Ok(remove_directory(&self.aside)?)
    }
}

/// A resize can't be ended.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
}

fn remove_directory(aside: &Pins) -> Result<(), PinError> {
    let path = aside.maps();
    match fs::remove_dir(&path) {
        Err(cause) if Path::exists(&path) => Err(PinError::Directory { path, cause }),
        _ => Ok(()),
    }
}

/// Copies all elements; what has no room in a map whose oldest elements make way is none of the youngest.
fn copy<K: Pod + Ord, V: Pod>(from: &Hash<K, V>, to: &Hash<K, V>) -> Result<BTreeSet<K>, MapError> {
    copy_but(from, to, &BTreeSet::new())
}

fn copy_first<K: Pod + Ord, V: Pod>(from: Hash<K, V>, to: &Hash<K, V>) -> Result<(Hash<K, V>, BTreeSet<K>), MapError> {
    let copied = copy(&from, to)?;
    Ok((from, copied))
}

/// Copies what was not there at the first time, unless it is here already.
fn copy_rest<K: Pod + Ord, V: Pod>(from: Option<&(Hash<K, V>, BTreeSet<K>)>, to: &Hash<K, V>) -> Result<(), MapError> {
    let Some((from, copied)) = from else { return Ok(()) };
    copy_but(from, to, copied).map(drop)
}

fn copy_but<K: Pod + Ord, V: Pod>(
    from: &Hash<K, V>,
    to: &Hash<K, V>,
    known: &BTreeSet<K>,
) -> Result<BTreeSet<K>, MapError> {
    let (mut copied, mut refused) = (BTreeSet::new(), None);
    from.for_each(|key, value| {
        if known.contains(key) || !known.is_empty() && matches!(to.get(key), Ok(Some(_))) {
            return;
        }
        match to.insert(key, value) {
            Ok(()) => drop(copied.insert(*key)),
            Err(cause) => refused = Some(cause),
        }
    })?;
    refused.map_or(Ok(copied), |cause: io::Error| Err(to.refused(cause)))
}

fn copy_trie<K: Pod + Ord>(from: &Trie<K>, to: &Trie<K>) -> Result<(), MapError> {
    from.entries()?.iter().try_for_each(|key| to.insert(key)).map_err(|cause| to.refused(cause))
}

/// Programs do not read what is written here yet, so the order of the words does not matter.
fn copy_array<V: Pod>(from: &Shared<V>, to: &Shared<V>) {
    to.words()
        .iter()
        .zip(from.words())
        .for_each(|(to, from)| to.store(from.load(Ordering::Relaxed), Ordering::Relaxed));
}

/// Counters only rise.
fn raise<V: Pod>(from: &EveryCpu<V>, to: &EveryCpu<V>) {
    let raise = |(to, from): (&AtomicU64, &AtomicU64)| to.fetch_max(from.load(Ordering::Relaxed), Ordering::Relaxed);
    for index in 0..from.capacity().min(to.capacity()) {
        for (to, from) in to.elements(index).zip(from.elements(index)) {
            to.iter().zip(from).map(raise).for_each(drop);
        }
    }
}
