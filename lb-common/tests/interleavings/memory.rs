// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The flow table's memory, of atomics whose every order `loom` tries: loads acquire and stores release, as on x86.

use std::{panic, sync::Arc};

use lb_common::{
    address::V4,
    flow::{
        Entry, FlowKey, FlowState, flow_flags, protocol,
        table::{Now, Sets, Slot, Table, WAYS, Wanted},
        word,
    },
};
use loom::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Release, SeqCst},
    fence,
};

/// Words of a slot.
const WORDS: usize = word::count::<V4>();
/// Both sets of all tuples.
pub const SETS: Sets = Sets([0, 1]);
/// The tick that it is.
pub const TICK: u32 = 1_000;
/// The time.
pub const NOW: Now = Now { tick: TICK, jiffy: 100_000, second: 100 };
/// Ticks, by state.
pub const TIMEOUTS: [u32; FlowState::COUNT] = [60, 86_400, 3_600, 3_600, 10, 30, 30, 10, 180];

/// A slot that is contended for, or one that somebody has who never yields: those cost no interleavings.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// Contended for.
    Open(&'a [AtomicU64; WORDS], Rules),
    /// Of a flow that lives, and of no tuple of ours.
    Busy,
}

/// What is kept of the protocol: the tests break it, to see that they would notice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// All of it.
    Kept,
    /// There is no barrier between writing a key and looking for another entry that has it.
    NoBarrier,
    /// A next hop is stored with what stands beside it.
    WideNextHop,
}

impl Slot for Way<'_> {
    fn load(self, word: usize) -> u64 {
        match self {
            Self::Open(words, _) => words[word].load(Acquire),
            Self::Busy if word == word::CONTROL => live(FlowState::ESTABLISHED),
            Self::Busy => 0,
        }
    }

    fn store(self, word: usize, value: u64) {
        // An exchange, as loom may put a plain store in between the two halves of another CPU's exchange.
        self.words()[word].swap(value, Release);
    }

    fn store_half(self, half: usize, value: u32) {
        self.store_bits(half / 2, 32 * (half % 2), u64::from(u32::MAX), u64::from(value));
    }

    fn store_quarter(self, quarter: usize, value: u16) {
        match self {
            Self::Open(_, Rules::WideNextHop) => {
                // Protocol and class as whoever stores has read them.
                let beside = OLD_PROTOCOL_AND_CLASS;
                self.store_half(quarter / 2, u32::from(value) << 16 | u32::from(beside));
            }
            _ => self.store_bits(quarter / 4, 16 * (quarter % 4), u64::from(u16::MAX), u64::from(value)),
        }
    }

    fn compare_exchange(self, word: usize, old: u64, new: u64) -> bool {
        fence(SeqCst);
        let is_done = self.words()[word].compare_exchange(old, new, AcqRel, Acquire).is_ok();
        fence(SeqCst);
        is_done
    }

    fn barrier(self) {
        if !matches!(self, Self::Open(_, Rules::NoBarrier)) {
            fence(SeqCst);
        }
    }
}

/// What stood beside the next hop of the entry that had the slot before.
const OLD_PROTOCOL_AND_CLASS: u16 = protocol::TCP as u16;

impl Way<'_> {
    fn words(&self) -> &[AtomicU64; WORDS] {
        match self {
            Self::Open(words, _) => words,
            Self::Busy => unreachable!("nobody writes to a flow that lives"),
        }
    }

    fn store_bits(self, word: usize, shift: usize, mask: u64, value: u64) {
        let replace = |word: u64| Some(word & !(mask << shift) | value << shift);
        self.words()[word].fetch_update(AcqRel, Acquire, replace).expect("always some");
    }
}

const fn live(state: FlowState) -> u64 {
    (flow_flags::LIVE as u64) << 40 | (state.to_bits() as u64) << 32 | TICK as u64
}

/// Two sets, of which each has so many slots to contend for; the others are busy.
pub struct Memory {
    sets: [Vec<[AtomicU64; WORDS]>; 2],
    rules: Rules,
}

impl Memory {
    /// All slots are empty.
    pub fn new(open: [usize; 2], rules: Rules) -> Arc<Self> {
        Self::with(open, rules, &[])
    }

    /// The first slots hold these entries.
    pub fn with(open: [usize; 2], rules: Rules, entries: &[Entry<V4>]) -> Arc<Self> {
        let mut entries = entries.iter();
        let sets = open.map(|count| (0..count).map(|_| slot(entries.next())).collect());
        Arc::new(Self { sets, rules })
    }

    /// The table that the functions under test see.
    pub fn table(&self) -> Ways<'_> {
        Ways(self)
    }

    /// All that is live in the end, and by which number.
    pub fn entries(&self) -> Vec<(u32, Entry<V4>)> {
        let mut entries = Vec::new();
        for (set, slots) in (0..).zip(&self.sets) {
            for (way, words) in (0..).zip(slots) {
                let entry: Entry<V4> = bytemuck::cast([0; WORDS].map({
                    let mut words = words.iter();
                    move |_: u64| words.next().expect("as many").load(Acquire)
                }));
                assert!(!entry.control.is_claimed(), "claimed for ever");
                if entry.control.is_live() {
                    entries.push((set * WAYS + way, entry));
                }
            }
        }
        entries
    }
}

fn slot(entry: Option<&Entry<V4>>) -> [AtomicU64; WORDS] {
    let words: [u64; WORDS] = entry.map_or([0; WORDS], |&entry| bytemuck::cast(entry));
    words.map(AtomicU64::new)
}

/// See [`Memory::table`].
#[derive(Clone, Copy)]
pub struct Ways<'a>(&'a Memory);

impl<'a> Table<V4> for Ways<'a> {
    type Slot = Way<'a>;
    type Set = u32;

    fn mask(self) -> u32 {
        1
    }

    fn set(self, index: u32) -> Option<u32> {
        (index <= 1).then_some(index)
    }

    fn slot(self, set: u32, way: u32) -> Way<'a> {
        let slots = &self.0.sets[set as usize];
        slots.get(way as usize).map_or(Way::Busy, |words| Way::Open(words, self.0.rules))
    }
}

/// Who wants a slot.
pub fn wanted() -> Wanted<'static> {
    Wanted { now: NOW, class: 1, timeouts: &TIMEOUTS, spared: u32::MAX }
}

/// A flow's original entry, live in a state: all of its words tell which client it is.
pub fn flow(client: u16, protocol: u8, state: FlowState) -> Entry<V4> {
    let number = u32::from(client);
    let mut entry: Entry<V4> = bytemuck::Zeroable::zeroed();
    (entry.src, entry.dst, entry.sport_be, entry.dport_be) = (number, 10, client, 80);
    (entry.new_src, entry.new_dst, entry.new_sport_be, entry.new_dport_be) = (number + 100, 20, client + 100, 8080);
    (entry.protocol, entry.backend, entry.generation, entry.born) = (protocol, number, number, NOW.jiffy);
    entry.set_deltas();
    entry.control = entry.control.published(state, 0, TICK);
    entry
}

/// The tuple of a flow.
pub fn key(client: u16) -> FlowKey<V4> {
    flow(client, protocol::TCP, FlowState::HALF_OPEN).key()
}

/// Runs a program on all interleavings; `preemptions` bounds those in which a CPU is stopped in between more often.
pub fn explore(preemptions: Option<usize>, program: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 100_000;
    builder.check(program);
}

/// Whether an interleaving is found that an assertion of the program refuses, by the text that only this assertion has: not one of
/// loom's own, nor another of the program's.
pub fn finds_a_fault(preemptions: Option<usize>, text: &str, program: impl Fn() + Sync + Send + 'static) -> bool {
    let Err(panic) = panic::catch_unwind(panic::AssertUnwindSafe(|| explore(preemptions, program))) else {
        return false;
    };
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    let said = formatted.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    said.contains(text)
}
