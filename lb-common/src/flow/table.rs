// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The flow table: an array of sets of four entries, in which every tuple has two sets to stand in (two-choice hashing: Azar et al.,
//! 1994). Readers take no lock; writers claim a slot by one compare-and-exchange; who yields to whom is decided here, not by an LRU.
//!
//! **Insertion.** Claim a slot, write the entry, look whether the tuple stands elsewhere, publish. Of two CPUs that insert one
//! tuple, at least one sees the other (Dekker, 1965: each writes, then looks, with a full barrier between), and whoever sees the
//! other gives its slot back. So no tuple is published twice.
//!
//! **Reading.** Look at the control word, match the key, copy, look again ([`Control::is_same_entry`]). In between stands nothing
//! but loads, which x86 keeps in order, as it does the writer's stores. (BPF has no acquiring loads before Linux 6.15; arm64 needs
//! them.)
//!
//! **Stores without a claim** ([`Control::last_seen`], [`Entry::sequence`], [`Entry::next_hop`], [`Entry::peer`]) may hit a slot that
//! has just become another flow's. Each of these is harmless there: a fresher time, a place in the stream that is not believed, a next
//! hop that says it is somebody else's, a hint that does not match.
//!
//! A flow that is decided anew writes [`Entry::backend`], [`Entry::generation`] and [`Entry::born`] of its own surviving reply
//! entry without a claim, right after it has seen that the entry still is that one.

use super::{Control, Entry, FlowKey, FlowState, flow_flags, word};
use crate::{address::Family, clock::elapsed, hash::join};

/// Entries in a set.
pub const WAYS: u32 = 4;

/// A slot: memory that other CPUs write. All accesses are of single words, and are neither torn nor left out nor reordered by
/// the compiler.
pub trait Slot: Copy {
    /// Loads a word.
    fn load(self, word: usize) -> u64;
    /// Stores a word.
    fn store(self, word: usize, value: u64);
    /// Stores one half of a word; even numbers are the low halves.
    fn store_half(self, half: usize, value: u32);
    /// Stores one quarter of a word; multiples of four are the lowest.
    fn store_quarter(self, quarter: usize, value: u16);
    /// Puts `new` in the place of `old` in a word; false where there was something else. A full barrier.
    fn compare_exchange(self, word: usize, old: u64, new: u64) -> bool;
    /// A full barrier: stores before it are seen by whoever does not see what is loaded after it.
    fn barrier(self);
}

/// Slots by set and way.
pub trait Table<F: Family>: Copy {
    /// One of its slots.
    type Slot: Slot;
    /// One of its sets.
    type Set: Copy;
    /// The number of sets is this and one; a power of two.
    fn mask(self) -> u32;
    /// A set; `None` beyond the number of sets.
    fn set(self, index: u32) -> Option<Self::Set>;
    /// A slot of a set; the way is below [`WAYS`].
    fn slot(self, set: Self::Set, way: u32) -> Self::Slot;
    /// The way at which something was found under this control word: the same number, of which the kernel's verifier knows no more
    /// than its bounds. Else it would follow all that comes after for each way.
    #[inline(always)]
    fn found_at(self, way: u32, _control: Control) -> u32 {
        way
    }
    /// The slot of an index.
    #[inline(always)]
    fn at(self, index: u32) -> Option<Self::Slot> {
        let set = self.set((index / WAYS) & self.mask())?;
        Some(self.slot(set, index % WAYS))
    }
}

/// The two sets of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets(pub [u32; 2]);

impl Sets {
    /// By multiplication under a key that outsiders don't know: not cryptographic, but two sets of four ways bear the collisions
    /// that somebody could aim at without seeing the outcome.
    #[inline(always)]
    #[must_use]
    pub fn of<F: Family>(key: &FlowKey<F>, seed: [u64; 2], mask: u32) -> Self {
        let (mut hash, mut index) = (seed[0], 0);
        while index < F::PAIR_WORDS {
            hash = (hash ^ F::pair_word(&key.src, &key.dst, index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 32;
            index += 1;
        }
        hash = (hash ^ seed[1] ^ key.ports_and_protocol()).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let first = (hash >> 32) as u32 & mask;
        let second = ((hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32 & mask;
        // Never the same one twice, where there are two.
        Self([first, if second == first { (first ^ 1) & mask } else { second }])
    }
}

/// Whether the entry in a slot has this key. Says nothing about whether it is one.
#[inline(always)]
pub fn has_key<F: Family, S: Slot>(slot: S, key: &FlowKey<F>) -> bool {
    /// Ports and protocol, without what stands beside them.
    const MASK: u64 = (1 << 40) - 1;
    let mut differences = (slot.load(word::ports::<F>()) ^ key.ports_and_protocol()) & MASK;
    let mut index = 0;
    while index < F::PAIR_WORDS {
        differences |= slot.load(word::ADDRESSES + index) ^ F::pair_word(&key.src, &key.dst, index);
        index += 1;
    }
    differences == 0
}

/// A slot that was found or claimed.
#[derive(Clone, Copy, Debug)]
pub struct Place<S> {
    /// Its number: set times [`WAYS`] plus way.
    pub index: u32,
    /// The slot.
    pub slot: S,
    /// Its control word then.
    pub control: Control,
}

impl<S> Place<S> {
    /// With the control word that a claim has left.
    #[inline(always)]
    #[must_use]
    pub fn claimed(self) -> Self {
        Self { control: self.control.claimed(), ..self }
    }
}

/// The live entry of a tuple.
#[inline(always)]
pub fn find<F: Family, T: Table<F>>(table: T, key: &FlowKey<F>, sets: Sets) -> Option<Place<T::Slot>> {
    find_if(table, key, sets, |_, control| control.is_live())
}

/// The first slot with this key that pleases, by its index and its control word.
#[inline(always)]
fn find_if<F: Family, T: Table<F>>(
    table: T,
    key: &FlowKey<F>,
    sets: Sets,
    pleases: impl Fn(u32, Control) -> bool,
) -> Option<Place<T::Slot>> {
    let mut choice = 0;
    while choice < sets.0.len() {
        let set = table.set(sets.0[choice])?;
        let mut way = 0;
        while way < WAYS {
            let slot = table.slot(set, way);
            let control = Control::from_bits(slot.load(word::CONTROL));
            if pleases(sets.0[choice] * WAYS + way, control) && has_key(slot, key) {
                let way = table.found_at(way, control);
                return Some(Place { index: sets.0[choice] * WAYS + way, slot: table.slot(set, way), control });
            }
            way += 1;
        }
        choice += 1;
    }
    None
}

/// Copies the entry of a place; false where it was not the same one throughout.
#[inline(always)]
pub fn read<F: Family, S: Slot>(place: &Place<S>, entry: &mut Entry<F>) -> bool {
    let slot = place.slot;
    let (ports, new_ports) = (slot.load(word::ports::<F>()), slot.load(word::new_ports::<F>()));
    (entry.src, entry.dst) = addresses::<F, S>(slot, word::ADDRESSES);
    (entry.new_src, entry.new_dst) = addresses::<F, S>(slot, word::new_addresses::<F>());
    (entry.sport_be, entry.dport_be) = (ports as u16, (ports >> 16) as u16);
    (entry.protocol, entry.class, entry.next_hop) = ((ports >> 32) as u8, (ports >> 40) as u8, (ports >> 48) as u16);
    (entry.new_sport_be, entry.new_dport_be) = (new_ports as u16, (new_ports >> 16) as u16);
    (entry.address_delta, entry.port_delta) = ((new_ports >> 32) as u16, (new_ports >> 48) as u16);
    (entry.backend, entry.generation) = halves(slot.load(word::backend::<F>()));
    (entry.sequence, entry.peer) = halves(slot.load(word::sequence::<F>()));
    (entry.born, entry.peer_seen) = halves(slot.load(word::times::<F>()));
    entry.control = Control::from_bits(slot.load(word::CONTROL));
    entry.control.is_same_entry(place.control)
}

/// Notes the next hop of an entry: without a claim, so that nothing but these 16 bits may be touched.
#[inline(always)]
pub fn set_next_hop<F: Family, S: Slot>(slot: S, next_hop: u16) {
    slot.store_quarter(4 * word::ports::<F>() + 3, next_hop);
}

/// Both addresses of the key, or the new ones.
#[inline(always)]
pub fn addresses<F: Family, S: Slot>(slot: S, first: usize) -> (F::Addr, F::Addr) {
    let mut words = [0; 4];
    let mut index = 0;
    while index < F::PAIR_WORDS {
        words[index] = slot.load(first + index);
        index += 1;
    }
    F::pair(&words)
}

/// The halves of a word.
#[inline(always)]
#[must_use]
pub const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Whether what the entry in a slot sends out is answered by packets with this key: so it is the other direction of the entry
/// under that key, if it stands under the reverse of what that one sends out.
#[inline(always)]
pub fn is_answered_by<F: Family, S: Slot>(slot: S, key: &FlowKey<F>) -> bool {
    let ports = u64::from(key.dport_be) | u64::from(key.sport_be) << 16;
    let mut differences = (slot.load(word::new_ports::<F>()) ^ ports) & 0xffff_ffff;
    let mut index = 0;
    while index < F::PAIR_WORDS {
        differences |= slot.load(word::new_addresses::<F>() + index) ^ F::pair_word(&key.dst, &key.src, index);
        index += 1;
    }
    differences == 0
}

/// The other direction's entry of a flow, where it was written: `None` where it stands elsewhere or nowhere.
#[inline(always)]
pub fn peer_at<F: Family, T: Table<F>>(
    table: T,
    key: &FlowKey<F>,
    peer_key: &FlowKey<F>,
    index: u32,
) -> Option<Place<T::Slot>> {
    let slot = table.at(index)?;
    let control = Control::from_bits(slot.load(word::CONTROL));
    (control.is_live() && has_key(slot, peer_key) && is_answered_by(slot, key)).then_some(Place {
        index,
        slot,
        control,
    })
}

/// The time, in the units that the table uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// See [`crate::clock`].
    pub tick: u32,
    /// The kernel's clock tick.
    pub jiffy: u32,
    /// Jiffies in a second.
    pub second: u32,
}

/// What is known of a flow when somebody else wants its place or its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its control word.
    pub control: Control,
    /// [`Entry::born`].
    pub born: u32,
    /// Whether it is of the class of whoever wants the place: see [`Entry::class`].
    pub is_own_class: bool,
    /// Time-out of its state in ticks.
    pub timeout: u32,
}

/// Who yields first, from the last to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Rank(u32);

impl Rank {
    /// Does not yield: an established flow that was seen lately, or one that is being written.
    pub const NEVER: Self = Self(0);
    /// Established, not seen for an eighth of its time-out and as long as the other direction may have kept that to itself.
    pub const IDLE: Self = Self(1);
    /// UDP: an exchange of this very tick, or one way for a while.
    pub const EXCHANGE: Self = Self(2);
    /// Pending for less than a second: a handshake may be under way.
    pub const PENDING: Self = Self(3);
    /// The same, of the class of whoever wants the place: a flood displaces its like first.
    pub const PENDING_OWN: Self = Self(4);
    /// UDP: an exchange that is over, as far as can be told.
    pub const EXCHANGED: Self = Self(5);
    /// Pending for a second or longer.
    pub const STALE: Self = Self(6);
    /// The same, of the class of whoever wants the place.
    pub const STALE_OWN: Self = Self(7);
    /// A connection that is over.
    pub const OVER: Self = Self(8);
    /// Idle for longer than its state allows.
    pub const EXPIRED: Self = Self(9);
    /// Nobody's.
    pub const EMPTY: Self = Self(10);

    /// As a plain number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }
}

/// What sort of flow had to yield its place to a new one; index into the map of evictions. Empty places and expired flows are not
/// counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Evicted {
    /// A connection that was over.
    Over = 0,
    /// A pending flow: a SYN or a question without an answer.
    Pending = 1,
    /// UDP: a question that was answered.
    Exchange = 2,
    /// An established flow that was idle for an eighth of its time-out.
    Idle = 3,
}

impl Evicted {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 4] = [Self::Over, Self::Pending, Self::Exchange, Self::Idle];

    /// The label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Over => "over",
            Self::Pending => "pending",
            Self::Exchange => "exchange",
            Self::Idle => "idle",
        }
    }

    /// By the rank of the flow; `None` where that was nobody's.
    #[inline(always)]
    #[must_use]
    pub const fn of(rank: Rank) -> Option<Self> {
        match rank {
            Rank::OVER => Some(Self::Over),
            Rank::PENDING | Rank::PENDING_OWN | Rank::STALE | Rank::STALE_OWN => Some(Self::Pending),
            Rank::EXCHANGE | Rank::EXCHANGED => Some(Self::Exchange),
            Rank::IDLE => Some(Self::Idle),
            _ => None,
        }
    }
}

/// Ticks after which a connection that an RST has ended counts as over: the RST may have been ignored.
const RESET_TICKS: i64 = 4;
/// Bits of [`Holder::urge`] below the rank.
const AGE_BITS: u32 = 24;

impl Holder {
    /// Rank, and age within it.
    #[inline(always)]
    #[must_use]
    pub fn rank(self, now: Now) -> (Rank, u32) {
        let control = self.control;
        if control.is_empty() {
            return (Rank::EMPTY, 0);
        }
        if control.is_claimed() {
            return (Rank::NEVER, 0);
        }
        let idle = elapsed(now.tick, control.last_seen());
        let age = if idle > 0 { idle as u32 } else { 0 };
        if is_expired(control, self.timeout, now.tick) {
            return (Rank::EXPIRED, age);
        }
        let state = control.state();
        if state.is_pending() {
            return self.rank_of_pending(now, age);
        }
        let rank = match state {
            FlowState::CLOSING if idle > 0 => Rank::OVER,
            FlowState::RESET if idle >= RESET_TICKS => Rank::OVER,
            FlowState::REPLIED if idle > 0 => Rank::EXCHANGED,
            FlowState::REPLIED => Rank::EXCHANGE,
            _ if idle > i64::from(self.timeout >> 3) + i64::from(self.ticks_of_silence()) => Rank::IDLE,
            _ => Rank::NEVER,
        };
        (rank, age)
    }

    /// For how long nothing may be heard of an entry although its flow's other direction goes on: see [`Entry::peer_seen`].
    #[inline(always)]
    fn ticks_of_silence(self) -> u32 {
        refresh_ticks(self.timeout) + 1
    }

    #[inline(always)]
    fn rank_of_pending(self, now: Now, idle: u32) -> (Rank, u32) {
        let age = now.jiffy.wrapping_sub(self.born);
        // Another CPU may have looked at its clock a moment later.
        let age = if age > u32::MAX - now.second { 0 } else { age };
        let is_stale = age >= now.second;
        let is_reply = self.control.flags() & flow_flags::REPLY != 0;
        let most_idle = if is_reply { self.ticks_of_silence() } else { 0 };
        if is_stale && self.control.state() == FlowState::UNREPLIED && idle <= most_idle {
            // One way, but alive: syslog, a stream of samples.
            return (Rank::EXCHANGE, 0);
        }
        let rank = match (is_stale, self.is_own_class) {
            (true, true) => Rank::STALE_OWN,
            (true, false) => Rank::STALE,
            (false, true) => Rank::PENDING_OWN,
            (false, false) => Rank::PENDING,
        };
        (rank, age)
    }

    /// The rank as one number with the age: of two, the larger yields. 0 is never.
    #[inline(always)]
    #[must_use]
    pub fn urge(self, now: Now) -> u32 {
        let (rank, age) = self.rank(now);
        let most = (1 << AGE_BITS) - 1;
        rank.0 << AGE_BITS | if age < most { age } else { most }
    }
}

/// The rank within [`Holder::urge`].
#[inline(always)]
#[must_use]
pub const fn rank_of(urge: u32) -> Rank {
    Rank(urge >> AGE_BITS)
}

/// Ticks after which a direction's packets see to the other direction's entry again ([`Entry::peer_seen`]): an eighth of the
/// time-out, but not so long that a lost entry would be missed for long.
#[inline(always)]
#[must_use]
pub const fn refresh_ticks(timeout: u32) -> u32 {
    const MOST: u32 = 8;
    if timeout >> 3 < MOST { timeout >> 3 } else { MOST }
}

/// Whether an entry has been idle for longer than its state allows. The other direction may have been seen some ticks later
/// ([`refresh_ticks`]): that much longer.
#[inline(always)]
#[must_use]
pub const fn is_expired(control: Control, timeout: u32, tick: u32) -> bool {
    elapsed(tick, control.last_seen()) > timeout as i64 + refresh_ticks(timeout) as i64
}

/// Class of the flows that come from a pod's device.
#[inline(always)]
#[must_use]
pub const fn class_of_device(ifindex: u32) -> u8 {
    (ifindex.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// Class of the flows that come from a network of an outside client: its /24, or its /48.
#[inline(always)]
#[must_use]
pub fn class_of_source<F: Family>(src: &F::Addr) -> u8 {
    const MASK_V4: u32 = 0xffff_ff00_u32.to_be();
    const MASK_V6: u32 = 0xffff_0000_u32.to_be();
    let network = if F::IS_V4 {
        F::word(src, 0) & MASK_V4
    } else {
        F::word(src, 0) ^ (F::word(src, 1) & MASK_V6).rotate_left(11)
    };
    (network.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// Whose slot was taken, and who takes it.
pub struct Wanted<'a> {
    /// The time.
    pub now: Now,
    /// [`Entry::class`] of the new flow.
    pub class: u8,
    /// Time-outs by state.
    pub timeouts: &'a [u32; FlowState::COUNT],
    /// Index of a slot that does not yield, whoever is there.
    pub spared: u32,
}

/// Claims an empty slot in these sets: of two sets with room, in the one with more of it, without which the second choice would be
/// worth little. `None` where there is none, or where another CPU was quicker: then it is to be asked who yields.
#[inline(always)]
pub fn claim_empty<F: Family, T: Table<F>>(table: T, sets: Sets) -> Option<Place<T::Slot>> {
    let one = empty_ways(table, sets.0[0])?;
    let other = empty_ways(table, sets.0[1])?;
    let (set, empty) = if other.count_ones() > one.count_ones() { (sets.0[1], other) } else { (sets.0[0], one) };
    if empty == 0 {
        return None;
    }
    // The number of the lowest bit of four, for which BPF has no instruction.
    let lowest = empty & empty.wrapping_neg();
    let way = (lowest >> 1) - (lowest >> 3);
    let slot = table.slot(table.set(set)?, way);
    let control = Control::from_bits(slot.load(word::CONTROL));
    let is_claimed =
        control.is_empty() && slot.compare_exchange(word::CONTROL, control.to_bits(), control.claimed().to_bits());
    is_claimed.then_some(Place { index: set * WAYS + way, slot, control })
}

/// The ways of a set that are empty, a bit each: so that the kernel's verifier sees one path and not one for each pattern.
#[inline(always)]
fn empty_ways<F: Family, T: Table<F>>(table: T, set: u32) -> Option<u32> {
    let set = table.set(set)?;
    let (mut empty, mut way) = (0, 0);
    while way < WAYS {
        empty |= Control::from_bits(table.slot(set, way).load(word::CONTROL)).emptiness() << way;
        way += 1;
    }
    Some(empty)
}

/// The slots of a tuple's two sets, as they were when it was asked who yields first. It stands where the caller has room: the kernel's
/// verifier must not follow each way to each rank of eight slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidates {
    /// Their control words.
    pub controls: [u64; 2 * WAYS as usize],
    /// [`Holder::urge`] of each.
    pub urges: [u32; 2 * WAYS as usize],
}

/// Claims the slot in these sets that is empty, or whose holder yields first. The place's control word is the one that the holder had.
///
/// `None` where all holders live or are being written, or where another CPU has just taken that slot: then the new flow loses, or
/// tries again.
#[inline(always)]
pub fn claim<F: Family, T: Table<F>>(
    table: T,
    sets: Sets,
    wanted: &Wanted<'_>,
    candidates: &mut Candidates,
) -> Option<Place<T::Slot>> {
    if let Some(place) = claim_empty(table, sets) {
        return Some(place);
    }
    survey(table, sets.0[0], wanted, candidates, 0)?;
    survey(table, sets.0[1], wanted, candidates, WAYS as usize)?;
    take(table, sets, candidates)
}

/// Asks who is in a set, and how urgently each yields; for the candidates from number `first` on.
#[inline(always)]
pub fn survey<F: Family, T: Table<F>>(
    table: T,
    set: u32,
    wanted: &Wanted<'_>,
    candidates: &mut Candidates,
    first: usize,
) -> Option<()> {
    let slots = table.set(set)?;
    let mut way = 0;
    while way < WAYS {
        let slot = table.slot(slots, way);
        let control = Control::from_bits(slot.load(word::CONTROL));
        let number = (first + way as usize) % candidates.controls.len();
        candidates.controls[number] = control.to_bits();
        let urge = holder::<F, _>(slot, control, wanted).urge(wanted.now);
        candidates.urges[number] = if set * WAYS + way == wanted.spared { 0 } else { urge };
        way += 1;
    }
    Some(())
}

/// Whether any of the candidates yields.
#[inline(always)]
#[must_use]
pub fn yields(candidates: &Candidates) -> bool {
    let (mut most, mut number) = (0, 0);
    while number < candidates.urges.len() {
        most |= candidates.urges[number] >> AGE_BITS;
        number += 1;
    }
    most != 0
}

/// Who yields first in a set.
struct First {
    /// [`Holder::urge`].
    urge: u32,
    /// Number of the candidate.
    number: usize,
    /// Ways of the set that nobody would miss.
    free: u32,
}

#[inline(always)]
fn first_to_yield(candidates: &Candidates, from: usize) -> First {
    let mut first = First { urge: 0, number: 0, free: 0 };
    let mut number = from;
    while number < from + WAYS as usize {
        let urge = candidates.urges[number];
        // One where the rank is that of a connection that is over, or higher; without a branch.
        first.free += ((urge >> AGE_BITS) + (16 - Rank::OVER.0)) >> 4;
        if urge > first.urge {
            (first.urge, first.number) = (urge, number);
        }
        number += 1;
    }
    first
}

/// Claims the slot of the candidate that yields first, if it is still what it was: of two sets with room, in the one with more of it,
/// without which the second choice would be worth little.
#[inline(always)]
pub fn take<F: Family, T: Table<F>>(table: T, sets: Sets, candidates: &Candidates) -> Option<Place<T::Slot>> {
    let one = first_to_yield(candidates, 0);
    let other = first_to_yield(candidates, WAYS as usize);
    let is_other = if one.free > 0 && other.free > 0 { other.free > one.free } else { other.urge > one.urge };
    let First { urge, number, .. } = if is_other { other } else { one };
    if urge < 1 << AGE_BITS {
        return None;
    }
    let index = sets.0[(number / WAYS as usize) & 1] * WAYS + number as u32 % WAYS;
    let slot = table.at(index)?;
    let control = Control::from_bits(candidates.controls[number % candidates.controls.len()]);
    slot.compare_exchange(word::CONTROL, control.to_bits(), control.claimed().to_bits()).then_some(Place {
        index,
        slot,
        control,
    })
}

/// What there is to know of the flow in a slot.
#[inline(always)]
pub fn holder<F: Family, S: Slot>(slot: S, control: Control, wanted: &Wanted<'_>) -> Holder {
    let class = (slot.load(word::ports::<F>()) >> 40) as u8;
    Holder {
        control,
        born: slot.load(word::times::<F>()) as u32,
        is_own_class: class == wanted.class,
        timeout: wanted.timeouts[control.state().index()],
    }
}

/// Writes all but the control word.
#[inline(always)]
pub fn write<F: Family, S: Slot>(slot: S, entry: &Entry<F>) {
    slot.store(word::ports::<F>(), ports_word(entry));
    let mut index = 0;
    while index < F::PAIR_WORDS {
        slot.store(word::ADDRESSES + index, F::pair_word(&entry.src, &entry.dst, index));
        slot.store(word::new_addresses::<F>() + index, F::pair_word(&entry.new_src, &entry.new_dst, index));
        index += 1;
    }
    slot.store(word::new_ports::<F>(), new_ports_word(entry));
    slot.store(word::backend::<F>(), join(entry.backend, entry.generation));
    slot.store(word::sequence::<F>(), join(entry.sequence, entry.peer));
    slot.store(word::times::<F>(), join(entry.born, entry.peer_seen));
}

#[inline(always)]
fn ports_word<F: Family>(entry: &Entry<F>) -> u64 {
    u64::from(entry.sport_be)
        | u64::from(entry.dport_be) << 16
        | u64::from(entry.protocol) << 32
        | u64::from(entry.class) << 40
        | u64::from(entry.next_hop) << 48
}

#[inline(always)]
fn new_ports_word<F: Family>(entry: &Entry<F>) -> u64 {
    u64::from(entry.new_sport_be)
        | u64::from(entry.new_dport_be) << 16
        | u64::from(entry.address_delta) << 32
        | u64::from(entry.port_delta) << 48
}

/// Publishes what was written to a claimed slot, unless its tuple stands elsewhere by now: then the slot is given back. The place's
/// control word is that of the claim; `entry` is the one that was asked for.
#[inline(always)]
pub fn publish<F: Family, T: Table<F>>(
    table: T,
    place: Place<T::Slot>,
    key: &FlowKey<F>,
    entry: Control,
    sets: Sets,
) -> bool {
    place.slot.barrier();
    let twin = find_if(table, key, sets, |index, control| index != place.index && !control.is_empty());
    let control = match twin {
        Some(_) => place.control.released(),
        None => place.control.published(entry.state(), entry.flags(), entry.last_seen()),
    };
    // Nobody else writes here but late stores of a time: those go.
    place.slot.store(word::CONTROL, control.to_bits());
    twin.is_none()
}

/// Removes a live entry; false where it was gone, or went on living meanwhile in another way than by its time.
#[inline(always)]
pub fn remove<S: Slot>(slot: S, seen: Control) -> bool {
    let mut attempt = 0;
    let mut control = seen;
    while attempt < ATTEMPTS {
        if slot.compare_exchange(word::CONTROL, control.to_bits(), control.released().to_bits()) {
            return true;
        }
        control = Control::from_bits(slot.load(word::CONTROL));
        if !control.is_same_entry(seen) || control.state() != seen.state() {
            return false;
        }
        attempt += 1;
    }
    false
}

/// Times that a change of a control word is tried: each failure is another CPU's success, or a time that was stored.
pub const ATTEMPTS: u32 = 4;

/// Moves an entry on by `after`, which gives the next state, and sets flags besides. No event of another CPU is lost.
#[inline(always)]
pub fn advance<S: Slot>(slot: S, seen: Control, flags: u8, after: impl Fn(FlowState) -> FlowState) {
    let (mut attempt, mut control) = (0, seen);
    while attempt < ATTEMPTS && control.is_same_entry(seen) {
        let next = control.with(after(control.state()), control.flags() | flags);
        if next == control || slot.compare_exchange(word::CONTROL, control.to_bits(), next.to_bits()) {
            return;
        }
        control = Control::from_bits(slot.load(word::CONTROL));
        attempt += 1;
    }
}
