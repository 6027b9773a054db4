// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The maps, and safe access to them: a room with `unsafe`. What they hold and mean is `lb_common`'s.
//!
//! Values are shared with other CPUs and with the agent. All fields that change after insertion are single words, whose
//! plain loads and stores the BPF instruction set does not tear; a reader may see one field before another, and every
//! user of such a pair says why that is harmless.

use core::arch::asm;

use aya_ebpf::{
    Global,
    helpers::generated::bpf_get_smp_processor_id,
    macros::map,
    maps::{
        Array, HashMap, LruHashMap, PerCpuArray, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    address::{Address, Family, V4, V6},
    config::{Config, Interface},
    counters::{BackendCounters, RejectBudget, ServiceCounters, place},
    flow::{Flow, FlowKey},
    fragment::{Fragment, FragmentKey},
    frontend::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange},
    maps::{Chunk, FilterPlane, SLOTS_PER_CHUNK, ServiceName, capacity, tail},
    socket::{SocketEntry, TalkEntry, TalkKey, socket_mode},
    trace::TraceRecord,
    verdict::{REASON_COUNT, Reason, Stage, Stop},
};

use crate::{admit::Admitted, dissect::Dissected, forward::NextHop, parse::Parsed};

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(capacity::FRONTENDS, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(capacity::BACKENDS, BPF_F_MMAPABLE);
#[map]
static TABLES: Array<Chunk> = Array::with_max_entries(capacity::TABLE_SLOTS / SLOTS_PER_CHUNK, BPF_F_MMAPABLE);
#[map]
static FLOWS_V4: LruHashMap<FlowKey<V4>, Flow<V4>> = LruHashMap::with_max_entries(capacity::FLOWS, 0);
#[map]
static FLOWS_V6: LruHashMap<FlowKey<V6>, Flow<V6>> = LruHashMap::with_max_entries(capacity::FLOWS, 0);
#[map]
static YOUNG_V4: LruHashMap<FlowKey<V4>, Flow<V4>> = LruHashMap::with_max_entries(capacity::YOUNG_FLOWS, 0);
#[map]
static YOUNG_V6: LruHashMap<FlowKey<V6>, Flow<V6>> = LruHashMap::with_max_entries(capacity::YOUNG_FLOWS, 0);
#[map]
static FILTER: Array<FilterPlane> = Array::with_max_entries(2, BPF_F_MMAPABLE);
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
static SOCKETS: LruHashMap<u64, SocketEntry> = LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map]
static TALKS: LruHashMap<TalkKey, TalkEntry> = LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map]
static QUOTE: PerCpuArray<Quote> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_V4: PerCpuArray<Scratch<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_V6: PerCpuArray<Scratch<V6>> = PerCpuArray::with_max_entries(1, 0);

/// 1 where the kernel lacks `bpf_ktime_get_coarse_ns` (before 5.11): the exact clock then serves, for 20 ns more.
#[unsafe(no_mangle)]
static NO_COARSE_CLOCK: Global<u64> = Global::new(0);

/// Flags that `bpf_l4_csum_replace` wants for IPv6 addresses beside the pseudo-header's: `BPF_F_IPV6` where the kernel
/// has it (6.16), so that packets with a checksum complete in hardware keep it right.
#[unsafe(no_mangle)]
static L4_CSUM_V6_FLAGS: Global<u64> = Global::new(0);

/// How many elements of [`BACKEND_COUNTERS`] each CPU has: as many as there are backends.
#[unsafe(no_mangle)]
static BACKENDS_A_CPU: Global<u64> = Global::new(capacity::BACKENDS as u64);

/// How many elements of [`SERVICE_COUNTERS`] each CPU has: as many as there are Service ports.
#[unsafe(no_mangle)]
static SERVICES_A_CPU: Global<u64> = Global::new(capacity::SERVICES as u64);

/// [`socket_mode`]: which sockets the socket door serves.
#[unsafe(no_mangle)]
static SOCKET_MODE: Global<u64> = Global::new(socket_mode::HOST);

/// Cookie of the node's own network namespace; 0 where the kernel does not tell it (before 5.14): then it is the initial one.
#[unsafe(no_mangle)]
static NODE_NAMESPACE: Global<u64> = Global::new(0);

/// 1 where `bpf_set_retval` lets a socket program name its error (6.1). Without it there is EPERM alone.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u64> = Global::new(0);

/// Whether sockets of all network namespaces are served, not only the node's.
#[inline(always)]
pub fn serves_all_sockets() -> bool {
    SOCKET_MODE.load() == socket_mode::ALL
}

/// See [`NODE_NAMESPACE`].
#[inline(always)]
pub fn node_namespace() -> u64 {
    NODE_NAMESPACE.load()
}

/// Whether a socket program can name its error.
#[inline(always)]
pub fn has_set_retval() -> bool {
    HAS_SET_RETVAL.load() != 0
}

/// Whether the kernel lacks the coarse clock.
#[inline(always)]
pub fn lacks_coarse_clock() -> bool {
    NO_COARSE_CLOCK.load() != 0
}

/// See [`L4_CSUM_V6_FLAGS`].
#[inline(always)]
pub fn l4_csum_v6_flags() -> u64 {
    L4_CSUM_V6_FLAGS.load()
}

/// Parameters of `bpf_fib_lookup`: `struct bpf_fib_lookup` of the kernel's UAPI, with its unions resolved to the
/// members that are used here.
#[repr(C)]
pub struct FibParameters {
    pub family: u8,
    pub protocol: u8,
    pub sport_be: u16,
    pub dport_be: u16,
    /// In: length of the packet, to be checked against the route's MTU. Out: that MTU.
    pub total_len: u16,
    /// In: the device of arrival. Out: the device to leave by.
    pub ifindex: u32,
    pub flow_info: u32,
    /// An IPv4 address stands in the first word.
    pub src: [u32; 4],
    pub dst: [u32; 4],
    pub vlan: u32,
    pub source_mac: [u16; 3],
    pub destination_mac: [u16; 3],
}

impl FibParameters {
    /// Both Ethernet addresses as they stand at the start of a frame.
    #[inline(always)]
    pub fn macs(&self) -> [u32; 3] {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let (to, from) = (&self.destination_mac, &self.source_mac);
        [pair(to[0], to[1]), pair(to[2], from[0]), pair(from[1], from[2])]
    }
}

/// Working memory of the slow path: its keys and values would not fit into 512 bytes of stack.
///
/// One per CPU and family. Programs of one CPU don't interleave: XDP and both TC hooks run with softirqs off.
#[repr(C)]
pub struct Scratch<F: Family> {
    /// The packet in question.
    pub parsed: Parsed<F>,
    /// What it is, if it is not a plain one.
    pub dissected: Dissected,
    pub fragment_key: FragmentKey,
    pub fragment: Fragment,
    /// The original direction's entry.
    pub original: Flow<F>,
    /// The key of the reply's entry.
    pub peer_key: FlowKey<F>,
    /// The reply's entry.
    pub peer: Flow<F>,
    pub frontend_key: FrontendKey,
    /// The answer of `admit`.
    pub admitted: Admitted,
    pub affinity_key: AffinityKey,
    pub affinity: Affinity,
    /// A [`SourceRange`] of full length, as the trie wants it.
    pub source: Key<SourceRange>,
    pub fib: FibParameters,
    /// The answer of `forward`.
    pub next_hop: NextHop<F>,
}

/// Longest quote in an ICMP error, in bytes: errors stay below 576 (RFC 1812 section 4.3.2.3), and a checksum helper takes no
/// more than 512 at once.
pub const QUOTE_LEN: usize = 508;

/// Where a quote is kept while its packet is reshaped. Twice as long as it need be, so that an offset and a length that are
/// bounded each by itself fit.
#[repr(C, align(8))]
pub struct Quote(pub [u8; 2 * (QUOTE_LEN + 4)]);

/// The per-family maps: statics can't be generic.
pub trait Tables: Family {
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    fn young_flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    fn scratch_map() -> &'static PerCpuArray<Scratch<Self>>;
}

impl Tables for V4 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS_V4
    }

    #[inline(always)]
    fn young_flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &YOUNG_V4
    }

    #[inline(always)]
    fn scratch_map() -> &'static PerCpuArray<Scratch<Self>> {
        &SCRATCH_V4
    }
}

impl Tables for V6 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS_V6
    }

    #[inline(always)]
    fn young_flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &YOUNG_V6
    }

    #[inline(always)]
    fn scratch_map() -> &'static PerCpuArray<Scratch<Self>> {
        &SCRATCH_V6
    }
}

/// One of the two flow tables of a family.
pub trait FlowTable {
    fn map<F: Tables>() -> &'static LruHashMap<FlowKey<F>, Flow<F>>;
}

/// Flows that were answered and went on.
pub struct Grown;
/// Flows that have only begun.
pub struct Young;

impl FlowTable for Grown {
    #[inline(always)]
    fn map<F: Tables>() -> &'static LruHashMap<FlowKey<F>, Flow<F>> {
        F::flows()
    }
}

impl FlowTable for Young {
    #[inline(always)]
    fn map<F: Tables>() -> &'static LruHashMap<FlowKey<F>, Flow<F>> {
        F::young_flows()
    }
}

/// Why a flow table took no entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum InsertError {
    /// Another CPU was faster.
    Exists,
    /// No memory or too much contention.
    Refused,
}

/// The flow of a packet, in either direction.
#[inline(always)]
pub fn find_flow<F: Tables, T: FlowTable>(key: &FlowKey<F>) -> Option<&'static mut Flow<F>> {
    // SAFETY: the kernel returned a pointer to a value of this type, which stays readable until the program ends (an
    // LRU element is reused, not freed). If it is reused meanwhile, this packet gets another flow's rewrite: the price
    // that LRU maps have; the window is one program run.
    T::map().get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Inserts an entry that must be new.
#[inline(always)]
pub fn insert_new_flow<F: Tables, T: FlowTable>(key: &FlowKey<F>, flow: &Flow<F>) -> Result<(), InsertError> {
    const EEXIST: i32 = -17;
    match T::map().insert(key, flow, BPF_NOEXIST) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(InsertError::Exists),
        Err(_) => Err(InsertError::Refused),
    }
}

/// Inserts or replaces an entry.
#[inline(always)]
pub fn put_flow<F: Tables, T: FlowTable>(key: &FlowKey<F>, flow: &Flow<F>) -> Result<(), InsertError> {
    T::map().insert(key, flow, BPF_ANY).map_err(|_| InsertError::Refused)
}

/// Removes an entry, if it is there.
#[inline(always)]
pub fn remove_flow<F: Tables, T: FlowTable>(key: &FlowKey<F>) {
    let _ = T::map().remove(key);
}

/// The slow path's working memory on this CPU.
#[inline(always)]
pub fn scratch<F: Tables>() -> Stage<&'static mut Scratch<F>> {
    // SAFETY: element 0 exists, is zeroed by the kernel, and is this CPU's own (see `Scratch`). References that overlap
    // in time are those of a function and of one that it calls apart; the compiler can't see through such a call.
    F::scratch_map().get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch }).ok_or(Stop::drop(Reason::MapMissing))
}

/// The configuration.
#[inline(always)]
pub fn config() -> Stage<&'static Config> {
    CONFIG.get(0).ok_or(Stop::drop(Reason::MapMissing))
}

/// A frontend, if there is one under this key.
///
/// Copied at once: since Linux 6.1 an element that the agent replaces may be used again while this program still reads it.
#[inline(always)]
pub fn find_frontend(key: &FrontendKey) -> Option<Frontend> {
    // SAFETY: the kernel returned a pointer to a value of this type, which stays readable until the program ends.
    unsafe { FRONTENDS.get(key).copied() }
}

/// The backend that a client stays with.
#[inline(always)]
pub fn find_affinity(key: &AffinityKey) -> Option<Affinity> {
    // SAFETY: as in `find_flow`; the three words are copied at once.
    unsafe { AFFINITY.get(key).copied() }
}

/// Notes the backend that a client stays with. A full or contended table costs the client its affinity, not its packet.
#[inline(always)]
pub fn put_affinity(key: &AffinityKey, affinity: &Affinity) {
    let _ = AFFINITY.insert(key, affinity, BPF_ANY);
}

/// The ports of a datagram whose first fragment came by.
#[inline(always)]
pub fn find_fragment(key: &FragmentKey) -> Option<Fragment> {
    // SAFETY: as in `find_flow`; the two words are copied at once.
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

/// Whether a filter bit of a plane is set.
#[inline(always)]
pub fn filter_contains(plane: u32, bit: u32) -> bool {
    const WORDS: usize = size_of::<FilterPlane>() / 8;
    FILTER.get(plane).is_some_and(|plane| plane[(bit >> 6) as usize & (WORDS - 1)] & (1 << (bit & 63)) != 0)
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
        // SAFETY: this CPU's own element; see `Scratch` for why nothing interleaves.
        unsafe { *count += 1 };
    }
}

/// This CPU's counters of a backend.
#[inline(always)]
pub fn backend_counters(index: u32) -> Option<&'static mut BackendCounters> {
    // SAFETY: as in `count_reason`: no other CPU's.
    BACKEND_COUNTERS.get_ptr_mut(of_this_cpu(&BACKENDS_A_CPU, index)).map(|counters| unsafe { &mut *counters })
}

/// This CPU's counters of a Service port.
#[inline(always)]
pub fn service_counters(index: u32) -> Option<&'static mut ServiceCounters> {
    // SAFETY: as in `count_reason`: no other CPU's.
    SERVICE_COUNTERS.get_ptr_mut(of_this_cpu(&SERVICES_A_CPU, index)).map(|counters| unsafe { &mut *counters })
}

/// Where the element of an index stands for this CPU.
#[inline(always)]
fn of_this_cpu(a_cpu: &Global<u64>, index: u32) -> u32 {
    // SAFETY: takes nothing, and only says on which CPU this program runs: it isn't moved meanwhile.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    place(cpu, a_cpu.load() as u32, index)
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
    // SAFETY: as in `find_flow`; the entry is copied at once.
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
    // SAFETY: as in `find_flow`; nothing is read.
    if unsafe { SOCKETS.get(cookie) }.is_some() {
        let _ = SOCKETS.remove(cookie);
    }
}

/// The other end of what a socket says without a connection.
#[inline(always)]
pub fn find_talk(key: &TalkKey) -> Option<TalkEntry> {
    // SAFETY: as in `find_flow`; the entry is copied at once.
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
    // SAFETY: as in `find_flow`; nothing is read.
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

/// This CPU's room for a quote.
#[inline(always)]
pub fn quote() -> Option<&'static mut Quote> {
    // SAFETY: as in `count_reason`.
    QUOTE.get_ptr_mut(0).map(|quote| unsafe { &mut *quote })
}

/// The record of a trace.
#[inline(always)]
pub fn trace_record() -> Option<&'static mut TraceRecord> {
    // SAFETY: one element, written by one packet at a time: only a packet with the agent's cookie gets here, and the
    // agent runs one at a time.
    TRACE.get_ptr_mut(0).map(|record| unsafe { &mut *record })
}
