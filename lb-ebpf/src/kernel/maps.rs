// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The maps, and safe access to them: a room with `unsafe`. What they hold and mean is `lb_common`'s.
//!
//! Values are shared with other CPUs and with the agent. All fields that change after insertion are single words, whose
//! plain loads and stores the BPF instruction set does not tear; a reader may see one field before another, and every
//! user of such a pair says why that is harmless.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::generated::bpf_get_smp_processor_id,
    macros::map,
    maps::{
        Array, HashMap, LruHashMap, PerCpuArray, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    address::Address,
    config::{Config, Interface},
    conntrack::Question,
    counters::{BackendCounters, RejectBudget, ServiceCounters, place},
    filter::{Filter, KNOWN},
    flow::{Evicted, FlowState},
    fragment::{Fragment, FragmentKey},
    frontend::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange, frontend_flags},
    hash::{FILTER_BITS, FILTER_PORT_BITS},
    maps::{Chunk, SLOTS_PER_CHUNK, ServiceName, capacity, tail},
    socket::{SocketEntry, TalkEntry, TalkKey},
    trace::TraceRecord,
    verdict::{REASON_COUNT, Reason, Stage, Stop},
};

use super::{bounds::opaque, globals};

const BPF_ANY: u64 = 0;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(capacity::FRONTENDS, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(capacity::BACKENDS, BPF_F_MMAPABLE);
#[map]
static TABLES: Array<Chunk> = Array::with_max_entries(capacity::TABLE_SLOTS / SLOTS_PER_CHUNK, BPF_F_MMAPABLE);
#[map]
static FILTER: Array<Filter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static NODE_ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(capacity::NODE_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(capacity::AFFINITY, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map]
static SOURCE_RANGES: LpmTrie<SourceRange, u32> = LpmTrie::with_max_entries(capacity::SOURCE_RANGES, BPF_F_NO_PREALLOC);
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(capacity::INTERFACES, BPF_F_NO_PREALLOC);
#[map]
static SERVICE_NAMES: HashMap<u32, ServiceName> = HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASON_COUNT, 0);
#[map]
static EVICTIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Evicted::ALL.len() as u32, 0);
#[map]
static BACKEND_COUNTERS: Array<BackendCounters> = Array::with_max_entries(capacity::BACKENDS, BPF_F_MMAPABLE);
#[map]
static SERVICE_COUNTERS: Array<ServiceCounters> = Array::with_max_entries(capacity::SERVICES, BPF_F_MMAPABLE);
#[map]
static REJECT_BUDGET: PerCpuArray<RejectBudget> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TRACE: Array<TraceRecord> = Array::with_max_entries(1, 0);
#[map]
pub static XDP_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
#[map]
pub static TC_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);
#[map]
static CONNTRACK: PerCpuArray<Question> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SOCKETS: LruHashMap<u64, SocketEntry> = LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map]
static TALKS: LruHashMap<TalkKey, TalkEntry> = LruHashMap::with_max_entries(capacity::SOCKETS, 0);

/// The configuration.
#[inline(always)]
pub fn config() -> Stage<&'static Config> {
    CONFIG.get(0).ok_or(Stop::drop(Reason::MapMissing))
}

/// For how long a flow may be idle in a state, in ticks.
#[inline(always)]
pub fn timeout_of(state: FlowState) -> Stage<u32> {
    // verifier: 6.1 and older lose the bound of a 32-bit copy ("invalid access to map value").
    Ok(config()?.timeouts.get(opaque(state.index())).copied().unwrap_or_default())
}

/// A frontend, if there is one under this key.
///
/// Copied at once: since Linux 6.1 an element that the agent replaces may be used again while this program still reads it, for another
/// key. The tag in it tells, which the kernel writes before the tables; then the key has another element, or none by now.
#[inline(always)]
pub fn find_frontend(key: &FrontendKey) -> Option<Frontend> {
    let mut attempt = 0;
    while attempt < 2 {
        let element = FRONTENDS.get_ptr(key)?;
        // SAFETY: the kernel returned a pointer to a value of this type, which stays readable until the program ends.
        let frontend = unsafe { element.read_volatile() };
        // SAFETY: as above; a single word.
        let flags = unsafe { (&raw const (*element).flags).read_volatile() };
        if flags >> frontend_flags::TAG_SHIFT == u32::from(key.tag()) {
            return Some(frontend);
        }
        attempt += 1;
    }
    None
}

/// The backend that a client stays with: its value in the map, whose words other CPUs store one by one.
#[inline(always)]
pub fn find_affinity(key: &AffinityKey) -> Option<AffinityRef> {
    AFFINITY.get_ptr_mut(key).and_then(NonNull::new).map(AffinityRef)
}

/// A value of the map of affinities.
#[derive(Clone, Copy)]
pub struct AffinityRef(NonNull<Affinity>);

impl AffinityRef {
    /// A copy.
    #[inline(always)]
    pub fn get(self) -> Affinity {
        // SAFETY: the kernel returned a pointer to a value of this type, which stays readable until the program ends (an LRU's element
        // is used again, not freed). One that is another client's meanwhile names a backend that is checked like any.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Notes when it was used last, in place: an update of the key would take a free element first, and may evict another client's
    /// (kernels up to 6.18).
    #[inline(always)]
    pub fn set_last_used(self, tick: u32) {
        // SAFETY: as in `get`; a single word.
        unsafe { (&raw mut (*self.0.as_ptr()).last_used).write_volatile(tick) };
    }
}

/// Notes the backend that a client stays with. A full or contended table costs the client its affinity, not its packet.
#[inline(always)]
pub fn put_affinity(key: &AffinityKey, affinity: &Affinity) {
    let _ = AFFINITY.insert(key, affinity, BPF_ANY);
}

/// The ports of a datagram whose first fragment came by.
#[inline(always)]
pub fn find_fragment(key: &FragmentKey) -> Option<Fragment> {
    // SAFETY: the kernel returned a pointer to a value of this type, which stays readable until the program ends; copied at once.
    unsafe { FRAGMENTS.get(key).copied() }
}

/// Notes the ports of a datagram. A full or contended table costs it its later fragments.
#[inline(always)]
pub fn put_fragment(key: &FragmentKey, fragment: &Fragment) {
    let _ = FRAGMENTS.insert(key, fragment, BPF_ANY);
}

/// Whether a source lies in a range of its Service port.
#[inline(always)]
pub fn is_in_source_ranges(key: &Key<SourceRange>) -> bool {
    SOURCE_RANGES.get(key).is_some()
}

/// Whether a local address answers NodePorts.
#[inline(always)]
pub fn answers_node_ports(address: &Address) -> bool {
    NODE_ADDRESSES.get_ptr(address).is_some()
}

/// A backend by index; a free one has another generation than any flow that knew it.
#[inline(always)]
pub fn find_backend(index: u32) -> Option<&'static Backend> {
    BACKENDS.get(index)
}

/// The backend index in a slot of the array of all tables.
#[inline(always)]
pub fn table_slot(slot: u32) -> Option<u32> {
    TABLES.get(slot / SLOTS_PER_CHUNK).map(|chunk| chunk[(slot % SLOTS_PER_CHUNK) as usize])
}

/// The filter.
#[inline(always)]
pub fn filter() -> Option<&'static Filter> {
    FILTER.get(0)
}

/// Notes that a client, of which this is the bit with port and protocol, has a flow to a backend itself.
#[inline(always)]
pub fn note_direct(bit: u32) {
    let Some(filter) = FILTER.get_ptr_mut(0) else { return };
    let word = (bit >> 6) as usize & (FILTER_PORT_BITS as usize / 64 - 1);
    // SAFETY: the map's element.
    set_bits(unsafe { &raw mut (*filter).directs[word] }, 1 << (bit & 63));
}

/// Lets packets pass that are for the address of this cell, with the port and protocol of this bit: as
/// [`Concern::Frontend`](lb_common::filter::Concern::Frontend).
#[inline(always)]
pub fn let_pass(cell: u32, bit: u32) {
    let Some(filter) = FILTER.get_ptr_mut(0) else { return };
    let destination = (cell >> 5) as usize & (2 * FILTER_BITS as usize / 64 - 1);
    // SAFETY: the map's element.
    set_bits(unsafe { &raw mut (*filter).destinations[destination] }, KNOWN << (2 * (cell & 31)));
    let word = (bit >> 6) as usize & (FILTER_PORT_BITS as usize / 64 - 1);
    // SAFETY: as above.
    set_bits(unsafe { &raw mut (*filter).frontends[word] }, 1 << (bit & 63));
}

/// Sets bits of a word of the filter.
#[inline(always)]
fn set_bits(word: *mut u64, bits: u64) {
    // SAFETY: a live, aligned word of the map's element; other CPUs set bits by the same instruction, and so does the agent where it
    // does not sweep.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits, options(nostack, preserves_flags));
    }
}

/// What is known of a network device.
#[inline(always)]
pub fn find_interface(ifindex: u32) -> Option<&'static Interface> {
    // SAFETY: as in `find_frontend`. Entries change with the machine's devices; one that is read meanwhile mixes two.
    unsafe { INTERFACES.get(ifindex) }
}

/// Counts a [`Reason`] by its index.
#[inline(always)]
pub fn count_reason(reason: u32) {
    if let Some(count) = REASONS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element; see `work::Scratch` for why nothing interleaves.
        unsafe { *count += 1 };
    }
}

/// Counts a flow that lived and had to yield.
#[inline(always)]
pub fn count_eviction(kind: Evicted) {
    if let Some(count) = EVICTIONS.get_ptr_mut(kind as u32) {
        // SAFETY: as in `count_reason`.
        unsafe { *count += 1 };
    }
}

/// This CPU's counters of a backend.
#[inline(always)]
pub fn backend_counters(index: u32) -> Option<&'static mut BackendCounters> {
    // SAFETY: as in `count_reason`: no other CPU's.
    BACKEND_COUNTERS
        .get_ptr_mut(of_this_cpu(globals::backends_a_cpu(), index))
        .map(|counters| unsafe { &mut *counters })
}

/// This CPU's counters of a Service port.
#[inline(always)]
pub fn service_counters(index: u32) -> Option<&'static mut ServiceCounters> {
    // SAFETY: as in `count_reason`: no other CPU's.
    SERVICE_COUNTERS
        .get_ptr_mut(of_this_cpu(globals::services_a_cpu(), index))
        .map(|counters| unsafe { &mut *counters })
}

/// Where the element of an index stands for this CPU.
#[inline(always)]
fn of_this_cpu(a_cpu: u32, index: u32) -> u32 {
    // SAFETY: takes nothing, and only says on which CPU this program runs: it isn't moved meanwhile.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    place(cpu, a_cpu, index)
}

/// Adds one in a single instruction: for programs of sockets, which a packet's program may interrupt between a load and
/// a store of the same counter.
#[inline(always)]
pub fn add_one(counter: &mut u64) {
    // SAFETY: the counter is a live, aligned word.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) counter,
            one = in(reg) 1_u64,
            options(nostack, preserves_flags)
        );
    }
}

/// Counts a [`Reason`] by its index, like [`add_one`].
#[inline(always)]
pub fn count_reason_of_socket(reason: u32) {
    if let Some(count) = REASONS.get_ptr_mut(reason) {
        // SAFETY: the kernel returned a pointer to a counter of this CPU, which other programs on it only read or add to.
        add_one(unsafe { &mut *count });
    }
}

/// What is remembered of a connected socket.
#[inline(always)]
pub fn find_socket(cookie: u64) -> Option<SocketEntry> {
    // SAFETY: as in `find_fragment`; the entry is copied at once.
    unsafe { SOCKETS.get(cookie).copied() }
}

/// Remembers a connected socket. A table that refuses costs the application the Service's address, not its connection.
#[inline(always)]
pub fn put_socket(cookie: u64, entry: &SocketEntry) {
    let _ = SOCKETS.insert(cookie, entry, BPF_ANY);
}

/// Forgets a socket. Most were never remembered, and looking takes no lock.
#[inline(always)]
pub fn remove_socket(cookie: u64) {
    // SAFETY: as in `find_fragment`; nothing is read.
    if unsafe { SOCKETS.get(cookie) }.is_some() {
        let _ = SOCKETS.remove(cookie);
    }
}

/// The other end of what a socket says without a connection.
#[inline(always)]
pub fn find_talk(key: &TalkKey) -> Option<TalkEntry> {
    // SAFETY: as in `find_fragment`; the entry is copied at once.
    unsafe { TALKS.get(key).copied() }
}

/// Remembers it. A refusal costs what that of [`put_socket`] does.
#[inline(always)]
pub fn put_talk(key: &TalkKey, entry: &TalkEntry) {
    let _ = TALKS.insert(key, entry, BPF_ANY);
}

/// Forgets it; most were never there.
#[inline(always)]
pub fn remove_talk(key: &TalkKey) {
    // SAFETY: as in `find_fragment`; nothing is read.
    if unsafe { TALKS.get(key) }.is_some() {
        let _ = TALKS.remove(key);
    }
}

/// This CPU's budget of ICMP errors.
#[inline(always)]
pub fn reject_budget() -> Option<&'static mut RejectBudget> {
    // SAFETY: as in `count_reason`.
    REJECT_BUDGET.get_ptr_mut(0).map(|budget| unsafe { &mut *budget })
}

/// This CPU's question to conntrack.
#[inline(always)]
pub fn conntrack_question() -> Option<&'static mut Question> {
    // SAFETY: as in `count_reason`. The agent's program, which answers it, runs by a tail call from the one that asks.
    CONNTRACK.get_ptr_mut(0).map(|question| unsafe { &mut *question })
}

/// The record of a trace.
#[inline(always)]
pub fn trace_record() -> Option<&'static mut TraceRecord> {
    // SAFETY: one element, written by one packet at a time: only a packet with the agent's cookie gets here, and the
    // agent runs one at a time.
    TRACE.get_ptr_mut(0).map(|record| unsafe { &mut *record })
}

/// Whether these words are the secret of the trace that runs now.
#[inline(always)]
pub fn is_trace_cookie(words: [u32; 4]) -> bool {
    trace_record().is_some_and(|record| {
        let cookie = record.cookie;
        cookie[0] != 0
            && cookie[0] == words[0]
            && cookie[1] == words[1]
            && cookie[2] == words[2]
            && cookie[3] == words[3]
    })
}
