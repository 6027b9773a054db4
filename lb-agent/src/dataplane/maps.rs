// SPDX-License-Identifier: MIT OR Apache-2.0
//! Typed access to pinned maps. The sizes of keys and values are compared with the map's when it is opened; after that
//! every access is safe. Works without an agent: the command line reads through this too.

use std::{
    collections::BTreeMap,
    io,
    marker::PhantomData,
    mem::size_of,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya_obj::generated::bpf_map_type;
use bytemuck::{Pod, pod_read_unaligned};
use lb_common::{
    address::{Address, V4, V6},
    config::{Config, Interface},
    counters::{BackendCounters, ServiceCounters, place},
    filter::Filter,
    fragment::{Fragment, FragmentKey},
    frontend::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRangeKey},
    maps::{self, Chunk, ServiceName},
    socket::{SocketEntry, TalkEntry, TalkKey},
    trace::TraceRecord,
};

use super::{
    clock::Ticker,
    flows::FlowTable,
    next_hops::NextHops,
    pins::Pins,
    sys::{self, MapInfo, Mapping},
};

/// A map can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It could not be opened.
    #[error("map {path}: {cause}; is this the --bpffs of an agent, and are you root?")]
    Open {
        /// Its pin.
        path: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It is not what this version of Shunt makes.
    #[error(
        "map {path} has another layout than this version of Shunt; run `lb-agent cleanup`, then start the agent again"
    )]
    Layout {
        /// Its pin.
        path: String,
    },
    /// It could not be read.
    #[error("reading map {map}: {cause}")]
    Read {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The programs' time can't be told.
    #[error(
        "asking the kernel and the program {} for the time: {cause}; are you root?",
        lb_common::maps::programs::CLOCK
    )]
    Clock {
        /// What the kernel said.
        cause: io::Error,
    },
    /// It could not be written.
    #[error("writing map {map}: {cause}")]
    Write {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// All pinned maps but those that only programs use.
#[derive(Debug)]
pub struct Maps {
    /// [`maps::CONFIG`]
    pub config: Shared<Config>,
    /// [`maps::FRONTENDS`]
    pub frontends: Hash<FrontendKey, Frontend>,
    /// [`maps::BACKENDS`]
    pub backends: Shared<Backend>,
    /// [`maps::TABLES`]
    pub tables: Shared<Chunk>,
    /// [`maps::FLOWS_V4`]
    pub flows_v4: FlowTable<V4>,
    /// [`maps::FLOWS_V6`]
    pub flows_v6: FlowTable<V6>,
    /// [`maps::NEXT_HOPS_V4`] and [`maps::NEXT_HOPS_V6`]
    pub next_hops: [NextHops; 2],
    /// [`maps::EVICTIONS`]
    pub evictions: PerCpu<u64>,
    /// [`maps::FILTER`]
    pub filter: Shared<Filter>,
    /// [`maps::NODE_ADDRESSES`]
    pub node_addresses: Hash<Address, u32>,
    /// [`maps::AFFINITY`]
    pub affinity: Hash<AffinityKey, Affinity>,
    /// [`maps::FRAGMENTS`]
    pub fragments: Hash<FragmentKey, Fragment>,
    /// [`maps::SOURCE_RANGES`]
    pub source_ranges: Trie<SourceRangeKey>,
    /// [`maps::INTERFACES`]
    pub interfaces: Hash<u32, Interface>,
    /// [`maps::SERVICE_NAMES`]
    pub names: Hash<u32, ServiceName>,
    /// [`maps::REASONS`]
    pub reasons: PerCpu<u64>,
    /// [`maps::BACKEND_COUNTERS`]
    pub backend_counters: EveryCpu<BackendCounters>,
    /// [`maps::SERVICE_COUNTERS`]
    pub service_counters: EveryCpu<ServiceCounters>,
    /// [`maps::TRACE`]
    pub trace: Array<TraceRecord>,
    /// [`maps::SOCKETS`]
    pub sockets: Hash<u64, SocketEntry>,
    /// [`maps::TALKS`]
    pub talks: Hash<TalkKey, TalkEntry>,
    /// The clock by which the maps hold times.
    pub ticker: Ticker,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When one is missing or has another layout.
    pub fn open(pins: &Pins) -> Result<Self, MapError> {
        Ok(Self {
            config: Shared::open(pins, maps::CONFIG)?,
            frontends: Hash::open(pins, maps::FRONTENDS)?,
            backends: Shared::open(pins, maps::BACKENDS)?,
            tables: Shared::open(pins, maps::TABLES)?,
            flows_v4: FlowTable::open(pins, maps::FLOWS_V4)?,
            flows_v6: FlowTable::open(pins, maps::FLOWS_V6)?,
            next_hops: [NextHops::open(pins, maps::NEXT_HOPS_V4)?, NextHops::open(pins, maps::NEXT_HOPS_V6)?],
            evictions: PerCpu::open(pins, maps::EVICTIONS)?,
            filter: Shared::open(pins, maps::FILTER)?,
            node_addresses: Hash::open(pins, maps::NODE_ADDRESSES)?,
            affinity: Hash::open(pins, maps::AFFINITY)?,
            fragments: Hash::open(pins, maps::FRAGMENTS)?,
            source_ranges: Trie::open(pins, maps::SOURCE_RANGES)?,
            interfaces: Hash::open(pins, maps::INTERFACES)?,
            names: Hash::open(pins, maps::SERVICE_NAMES)?,
            reasons: PerCpu::open(pins, maps::REASONS)?,
            backend_counters: EveryCpu::open(pins, maps::BACKEND_COUNTERS)?,
            service_counters: EveryCpu::open(pins, maps::SERVICE_COUNTERS)?,
            trace: Array::open(pins, maps::TRACE)?,
            sockets: Hash::open(pins, maps::SOCKETS)?,
            talks: Hash::open(pins, maps::TALKS)?,
            ticker: Ticker::open(pins)?,
        })
    }
}

/// A map's descriptor, name and capacity.
#[derive(Debug)]
struct Handle {
    name: &'static str,
    fd: OwnedFd,
    info: MapInfo,
}

impl Handle {
    fn open<K, V>(pins: &Pins, name: &'static str, types: &[bpf_map_type]) -> Result<Self, MapError> {
        let path = pins.map(name);
        let text = || path.display().to_string();
        let (fd, info) = open_map(&path).map_err(|cause| MapError::Open { path: text(), cause })?;
        let is_known = types.iter().any(|&known| known as u32 == info.map_type);
        if !is_known || info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(MapError::Layout { path: text() });
        }
        Ok(Self { name, fd, info })
    }

    fn reading(&self) -> impl Fn(io::Error) -> MapError + use<> {
        let map = self.name;
        move |cause| MapError::Read { map, cause }
    }

    fn writing(&self) -> impl Fn(io::Error) -> MapError + use<> {
        let map = self.name;
        move |cause| MapError::Write { map, cause }
    }
}

/// Opens a pinned map and asks about it.
pub fn open_map(path: &Path) -> io::Result<(OwnedFd, MapInfo)> {
    let fd = sys::open_pin(path)?;
    let info = sys::map_info(fd.as_fd())?;
    Ok((fd, info))
}

/// Number of elements of a pinned hash map, whatever they are.
pub fn count_elements(path: &Path) -> io::Result<u64> {
    let (map, info) = open_map(path)?;
    if HASHES.iter().all(|&hash| hash as u32 != info.map_type) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut elements = 0;
    for_each_batch(&map, &info, |keys, _| elements += (keys.len() / info.key_size as usize) as u64)?;
    Ok(elements)
}

const HASHES: [bpf_map_type; 2] = [bpf_map_type::BPF_MAP_TYPE_HASH, bpf_map_type::BPF_MAP_TYPE_LRU_HASH];

/// Calls `visit` with the keys and values of a hash map, as bytes, many at a time.
fn for_each_batch(map: &OwnedFd, info: &MapInfo, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let [key, value] = [info.key_size, info.value_size].map(|size| size as usize);
    let buffers = |size: usize| (vec![0; size * key], vec![0; size * value]);
    let (mut cursor, mut size) = (None, 4_096);
    let (mut keys, mut values) = buffers(size);
    loop {
        // SAFETY: both buffers have room for so many elements of the sizes that the kernel has named.
        match unsafe { sys::lookup_batch(map.as_fd(), cursor, (&mut keys, &mut values), size) } {
            Ok((count, next)) => {
                visit(&keys[..count * key], &values[..count * value]);
                if next.is_none() {
                    return Ok(());
                }
                cursor = next;
            }
            // A bucket with more elements than the buffers take.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                size *= 2;
                (keys, values) = buffers(size);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A hash map, plain or LRU.
#[derive(Debug)]
pub struct Hash<K, V> {
    handle: Handle,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    /// Opens the pinned one.
    ///
    /// # Errors
    /// When it is missing or has another layout.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        Ok(Self { handle: Handle::open::<K, V>(pins, name, &HASHES)?, types: PhantomData })
    }

    /// Most elements that it can hold.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.handle.info.max_entries
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        // SAFETY: `Handle::open` has compared both sizes.
        unsafe { sys::lookup(self.handle.fd.as_fd(), key) }.map_err(self.handle.reading())
    }

    /// Inserts or replaces.
    ///
    /// # Errors
    /// When the map is full, or the kernel refuses.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: `Handle::open` has compared both sizes.
        unsafe { sys::update(self.handle.fd.as_fd(), key, value) }
    }

    /// Removes; it need not be there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: `Handle::open` has compared the size.
        unsafe { sys::delete(self.handle.fd.as_fd(), key) }.map(drop)
    }

    /// What [`Hash::insert`] has said, with the map's name.
    pub(super) fn refused(&self, cause: io::Error) -> MapError {
        self.handle.writing()(cause)
    }

    /// Calls `visit` with every element. What comes or goes meanwhile may be met or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), MapError> {
        let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
        let read = for_each_batch(&self.handle.fd, &self.handle.info, |keys, values| {
            let elements = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
            elements.for_each(|(key, value)| visit(&pod_read_unaligned(key), &pod_read_unaligned(value)));
        });
        read.map_err(self.handle.reading())
    }

    /// All elements.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn entries(&self) -> Result<BTreeMap<K, V>, MapError>
    where
        K: Ord,
    {
        let mut entries = BTreeMap::new();
        self.for_each(|key, value| {
            entries.insert(*key, *value);
        })?;
        Ok(entries)
    }

    /// How many elements it holds, by counting them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn count(&self) -> Result<u64, MapError> {
        let mut count = 0;
        self.for_each(|_, _| count += 1)?;
        Ok(count)
    }
}

/// A set of prefixes: a longest-prefix trie whose values mean nothing.
#[derive(Debug)]
pub struct Trie<K> {
    handle: Handle,
    types: PhantomData<fn() -> K>,
}

impl<K: Pod + Ord> Trie<K> {
    /// Opens the pinned one.
    ///
    /// # Errors
    /// When it is missing or has another layout.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        let handle = Handle::open::<K, u32>(pins, name, &[bpf_map_type::BPF_MAP_TYPE_LPM_TRIE])?;
        Ok(Self { handle, types: PhantomData })
    }

    /// Most prefixes that it can hold.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.handle.info.max_entries
    }

    /// Inserts; it may be there already.
    ///
    /// # Errors
    /// When the map is full, or the kernel refuses.
    pub fn insert(&self, key: &K) -> io::Result<()> {
        // SAFETY: `Handle::open` has compared both sizes.
        unsafe { sys::update(self.handle.fd.as_fd(), key, &0_u32) }
    }

    /// Removes; it need not be there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: `Handle::open` has compared the size.
        unsafe { sys::delete(self.handle.fd.as_fd(), key) }.map(drop)
    }

    /// What [`Trie::insert`] has said, with the map's name.
    pub(super) fn refused(&self, cause: io::Error) -> MapError {
        self.handle.writing()(cause)
    }

    /// Whether it holds a prefix, or one that contains it: a look-up finds the longest.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn covers(&self, key: &K) -> Result<bool, MapError> {
        // SAFETY: `Handle::open` has compared both sizes.
        let found = unsafe { sys::lookup::<K, u32>(self.handle.fd.as_fd(), key) };
        Ok(found.map_err(self.handle.reading())?.is_some())
    }

    /// All prefixes, one system call for each: they are few.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn entries(&self) -> Result<Vec<K>, MapError> {
        let mut entries: Vec<K> = Vec::new();
        // After a key that has gone meanwhile the kernel begins anew.
        for _ in 0..self.capacity() {
            // SAFETY: `Handle::open` has compared the size.
            let next = unsafe { sys::next_key(self.handle.fd.as_fd(), entries.last()) };
            match next.map_err(self.handle.reading())? {
                Some(key) => entries.push(key),
                None => break,
            }
        }
        entries.sort_unstable();
        entries.dedup();
        Ok(entries)
    }
}

/// An array with a value for each CPU.
#[derive(Debug)]
pub struct PerCpu<V> {
    handle: Handle,
    cpus: usize,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> PerCpu<V> {
    /// The kernel pads each CPU's value to 8 bytes: ours need none.
    const IS_PADDED: () = assert!(size_of::<V>().is_multiple_of(8));

    fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        const { Self::IS_PADDED };
        let handle = Handle::open::<u32, V>(pins, name, &[bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY])?;
        let cpus = aya::util::nr_cpus().map_err(|(_, cause)| MapError::Read { map: name, cause })?;
        Ok(Self { handle, cpus, types: PhantomData })
    }

    /// The values of all CPUs; none outside the array, which another version may have made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, index: u32) -> Result<Vec<V>, MapError> {
        let mut values = vec![V::zeroed(); self.cpus];
        // SAFETY: `open` has compared the sizes, and there is room for all possible CPUs.
        let found = unsafe { sys::lookup_into(self.handle.fd.as_fd(), &index, &mut values) };
        match found {
            Ok(true) => Ok(values),
            Ok(false) => Ok(Vec::new()),
            Err(error) => Err(self.handle.reading()(error)),
        }
    }
}

/// A memory-mapped array with the same number of elements for each CPU, those of a CPU side by side. They consist of 64-bit
/// words.
#[derive(Debug)]
pub struct EveryCpu<V> {
    shared: Shared<V>,
    cpus: u32,
}

impl<V: Pod> EveryCpu<V> {
    /// Opens the pinned one.
    ///
    /// # Errors
    /// When it is missing or has another layout.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        let shared = Shared::open(pins, name)?;
        let cpus = sys::cpu_numbers().map_err(|cause| MapError::Read { map: name, cause })?;
        Ok(Self { shared, cpus })
    }

    /// Number of elements of each CPU.
    pub(super) const fn capacity(&self) -> u32 {
        self.shared.capacity() / self.cpus
    }

    /// The words of an index on each CPU; none outside the array.
    pub(super) fn elements(&self, index: u32) -> impl Iterator<Item = &[AtomicU64]> {
        let words = size_of::<V>() / size_of::<u64>();
        let capacity = self.capacity();
        let cpus = if capacity > index { self.cpus } else { 0 };
        (0..cpus).map(move |cpu| {
            let start = place(cpu, capacity, index) as usize * words;
            &self.shared.long_words()[start..start + words]
        })
    }

    /// The values of all CPUs; none outside the array.
    pub fn get(&self, index: u32) -> impl Iterator<Item = V> {
        self.elements(index).map(|words| {
            let words: Vec<u64> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
            bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words))
        })
    }

    /// Sets the values of all CPUs to zero.
    pub fn reset(&self, index: u32) {
        self.elements(index).flatten().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// A plain array.
#[derive(Debug)]
pub struct Array<V> {
    handle: Handle,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> Array<V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        let handle = Handle::open::<u32, V>(pins, name, &[bpf_map_type::BPF_MAP_TYPE_ARRAY])?;
        Ok(Self { handle, types: PhantomData })
    }

    /// The element at an index.
    ///
    /// # Errors
    /// When the index is out of range.
    pub fn get(&self, index: u32) -> Result<V, MapError> {
        // SAFETY: `open` has compared the sizes.
        let value = unsafe { sys::lookup(self.handle.fd.as_fd(), &index) }.map_err(self.handle.reading())?;
        value.ok_or_else(|| self.handle.reading()(io::ErrorKind::NotFound.into()))
    }

    /// Sets the element at an index.
    ///
    /// # Errors
    /// When the index is out of range.
    pub fn set(&self, index: u32, value: &V) -> Result<(), MapError> {
        // SAFETY: `open` has compared the sizes.
        let written = unsafe { sys::update(self.handle.fd.as_fd(), &index, value) };
        written.map_err(self.handle.writing())
    }
}

/// A memory-mapped array: no system call for reading or writing, and no atomicity beyond a word.
#[derive(Debug)]
pub struct Shared<V> {
    handle: Handle,
    mapping: Mapping,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> Shared<V> {
    /// The kernel rounds elements up to 8 bytes: ours need none.
    const IS_PADDED: () = assert!(size_of::<V>().is_multiple_of(8));
    /// 32-bit words in an element.
    const WORDS: usize = size_of::<V>() / size_of::<u32>();

    /// Opens the pinned one.
    ///
    /// # Errors
    /// When it is missing or has another layout.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        const { Self::IS_PADDED };
        let handle = Handle::open::<u32, V>(pins, name, &[bpf_map_type::BPF_MAP_TYPE_ARRAY])?;
        let len = handle.info.max_entries as usize * size_of::<V>();
        let mapping = Mapping::new(handle.fd.as_fd(), len).map_err(handle.reading())?;
        Ok(Self { handle, mapping, types: PhantomData })
    }

    /// Number of elements.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.handle.info.max_entries
    }

    /// All elements as 32-bit words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU32] {
        self.mapping.words()
    }

    /// All elements as 64-bit words.
    #[must_use]
    pub fn long_words(&self) -> &[AtomicU64] {
        self.mapping.long_words()
    }

    /// The words of an element; `None` outside the array.
    #[must_use]
    pub fn element(&self, index: u32) -> Option<&[AtomicU32]> {
        let start = index as usize * Self::WORDS;
        self.words().get(start..start + Self::WORDS)
    }

    /// Reads an element. Where it is written meanwhile, some words may be old and some new.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<V> {
        let mut value = V::zeroed();
        let words = bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(size_of::<u32>());
        let read =
            |(to, from): (&mut [u8], &AtomicU32)| to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
        words.zip(self.element(index)?).for_each(read);
        Some(value)
    }
}
