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

mod claim;
mod field;
mod rank;

pub use self::{
    claim::{Candidates, Wanted, claim_empty, holder, survey, take, yields},
    field::{
        backend, born, class, control, next_hop, peer, peer_seen, sequence, set_backend, set_born, set_last_seen,
        set_next_hop, set_peer, set_peer_seen, set_sequence,
    },
    rank::{Evicted, Holder, Now, Rank, class_of_device, class_of_source, is_due, is_expired, rank_of},
};
use super::{Control, Entry, FlowKey, FlowState, word};
use crate::{address::Family, bits::join};

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
            let control = field::control(slot);
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
    entry.control = field::control(slot);
    entry.control.is_same_entry(place.control)
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
    let control = field::control(slot);
    (control.is_live() && has_key(slot, peer_key) && is_answered_by(slot, key)).then_some(Place {
        index,
        slot,
        control,
    })
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
        control = field::control(slot);
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
        control = field::control(slot);
        attempt += 1;
    }
}
