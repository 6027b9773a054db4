// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where flows stand in their table, and who yields to whom: on one CPU, with many flows.

mod claim;

use std::cell::Cell;

use bytemuck::Zeroable;
use claim::claim;
use lb_common::{
    address::{Family, V4, V6},
    flow::{
        Control, Entry, Evicted, FlowKey, FlowState, flow_flags, protocol,
        table::{self, Holder, Now, Place, Rank, Sets, Slot, Table, WAYS, Wanted, rank_of},
        word,
    },
};
use proptest::prelude::*;

const WORDS: usize = word::count::<V4>();
const SEED: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
const NOW: Now = Now { tick: 100_000, jiffy: 25_600_000, second: 250 };
const TIMEOUTS: [u32; FlowState::COUNT] = [60, 86_400, 3_600, 3_600, 10, 30, 30, 10, 180];

/// A slot of a table that one CPU has to itself.
#[derive(Clone, Copy)]
struct Alone<'a>(&'a [Cell<u64>; WORDS]);

impl Slot for Alone<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].get()
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].set(value);
    }

    fn store_half(self, half: usize, value: u32) {
        self.replace(half / 2, 32 * (half % 2), u64::from(u32::MAX), value.into());
    }

    fn store_quarter(self, quarter: usize, value: u16) {
        self.replace(quarter / 4, 16 * (quarter % 4), u64::from(u16::MAX), value.into());
    }

    fn compare_exchange(self, word: usize, old: u64, new: u64) -> bool {
        let is_old = self.load(word) == old;
        if is_old {
            self.store(word, new);
        }
        is_old
    }

    fn barrier(self) {}
}

impl Alone<'_> {
    fn replace(self, word: usize, shift: usize, mask: u64, value: u64) {
        let word = &self.0[word];
        word.set(word.get() & !(mask << shift) | value << shift);
    }
}

#[derive(Clone, Copy)]
struct Slots<'a>(&'a [[Cell<u64>; WORDS]]);

impl<'a> Table<V4> for Slots<'a> {
    type Slot = Alone<'a>;
    type Set = u32;

    fn mask(self) -> u32 {
        self.0.len() as u32 / WAYS - 1
    }

    fn set(self, index: u32) -> Option<u32> {
        (index <= self.mask()).then_some(index)
    }

    fn slot(self, set: u32, way: u32) -> Alone<'a> {
        Alone(&self.0[(set * WAYS + way) as usize])
    }
}

fn memory(slots: usize) -> Vec<[Cell<u64>; WORDS]> {
    (0..slots).map(|_| Default::default()).collect()
}

/// An established flow that was just seen: it yields to nobody.
fn established(number: u32) -> Entry<V4> {
    let mut entry: Entry<V4> = Zeroable::zeroed();
    // Clients' ports count up, and so do clients.
    (entry.src, entry.sport_be) = ((0x0a00_0000 | number >> 8).to_be(), (40_000 + (number & 0xff) as u16).to_be());
    (entry.dst, entry.dport_be, entry.protocol) = (0x0a60_0001_u32.to_be(), 443_u16.to_be(), protocol::TCP);
    entry.control = entry.control.published(FlowState::ESTABLISHED, 0, NOW.tick);
    entry
}

fn read(place: &Place<Alone<'_>>) -> Entry<V4> {
    let mut entry = Zeroable::zeroed();
    assert!(table::read(place, &mut entry), "nobody writes it");
    entry
}

/// Puts a flow in its place; the rank of whom it has displaced.
fn put(table: Slots<'_>, entry: &Entry<V4>) -> Option<Rank> {
    let sets = Sets::of(&entry.key(), SEED, table.mask());
    let wanted = Wanted { now: NOW, class: entry.class, timeouts: &TIMEOUTS, spared: u32::MAX };
    let place = claim::<V4, _>(table, sets, &wanted)?;
    let displaced = table::holder::<V4, _>(place.slot, place.control, Some(entry.class), &TIMEOUTS).rank(NOW).0;
    table::write(place.slot, entry);
    assert!(table::publish(table, place.claimed(), &entry.key(), entry.control, sets), "no other has the tuple");
    let found = table::find::<V4, _>(table, &entry.key(), sets).expect("it was published");
    assert_eq!((found.index, read(&found).src), (place.index, entry.src));
    Some(displaced)
}

/// A million slots, and flows that yield to nobody: how many find no place until so many of a hundred are taken.
#[test]
fn two_choices_of_four_ways_find_a_place() {
    const SLOTS: u32 = 1 << 20;
    let memory = memory(SLOTS as usize);
    let table = Slots(&memory);
    let (mut tried, mut refused) = (0, 0);
    for (percent, most) in [(50, 50), (60, 500), (70, 4_000), (75, 9_000)] {
        while (tried - refused) * 100 < SLOTS * percent {
            match put(table, &established(tried)) {
                Some(rank) => assert_eq!(rank, Rank::EMPTY),
                None => refused += 1,
            }
            tried += 1;
        }
        println!("{percent} %: {refused} of {tried} found no place");
        assert!(refused <= most, "at {percent} %: {refused} of {tried} found no place");
    }
}

/// The same where all slots have been used before, by flows that are over: nobody sweeps them.
#[test]
fn what_is_over_counts_as_room() {
    const SLOTS: u32 = 1 << 16;
    let memory = memory(SLOTS as usize);
    let table = Slots(&memory);
    let mut over = Holder { control: Control::zeroed(), born: 0, is_own_class: false, timeout: 0 }.control;
    over = over.published(FlowState::CLOSING, 0, NOW.tick - 5);
    memory.iter().for_each(|words| words[word::CONTROL].set(over.to_bits()));
    let refused = (0..SLOTS / 2).filter(|&number| put(table, &established(number)).is_none()).count();
    assert!(refused < 10, "{refused} of {} found no place", SLOTS / 2);
}

#[test]
fn a_flood_displaces_itself_and_nobody_who_lives() {
    const SLOTS: u32 = 1 << 14;
    let memory = memory(SLOTS as usize);
    let table = Slots(&memory);
    let living: Vec<_> = (0..SLOTS / 4).map(established).filter(|entry| put(table, entry).is_some()).collect();
    let pending = |number: u32, class: u8| {
        let mut entry = established(0x10_0000 | number);
        (entry.born, entry.class) = (NOW.jiffy, class);
        entry.control = entry.control.with(FlowState::HALF_OPEN, 0);
        entry
    };
    let quiet: Vec<_> = (0..SLOTS / 8).map(|number| pending(number, 7)).collect();
    let placed = quiet.iter().filter(|entry| put(table, entry).is_some()).count();
    assert_eq!(placed, quiet.len());
    for number in 0..4 * SLOTS {
        put(table, &pending(1 << 17 | number, 9));
    }
    let is_there = |entry: &Entry<V4>| {
        table::find::<V4, _>(table, &entry.key(), Sets::of(&entry.key(), SEED, table.mask())).is_some()
    };
    assert!(living.iter().all(is_there));
    let spared = quiet.iter().filter(|entry| is_there(entry)).count();
    // Where all eight ways are of the living or of the quiet class, there is nobody of the flood's own to yield.
    assert!(spared * 100 >= quiet.len() * 97, "{spared} of {} of another class are there", quiet.len());
}

/// The client's entry of a new flow wants a place where all but the entry of its own answers live: it gets none, rather than that one.
#[test]
fn a_flow_does_not_displace_its_own_other_half() {
    const SLOTS: u32 = 2 * table::WAYS;
    let memory = memory(SLOTS as usize);
    let table = Slots(&memory);
    for number in 0..SLOTS {
        let mut entry = established(number);
        (entry.born, entry.class) = (NOW.jiffy, 3);
        if number == 0 {
            entry.control = entry.control.with(FlowState::HALF_OPEN, 0);
        }
        assert_eq!(put(table, &entry), Some(Rank::EMPTY));
    }
    let place = |number: u32| {
        let key = established(number).key();
        (key, Sets::of(&key, SEED, table.mask()))
    };
    let (key, sets) = place(0);
    let spared = table::find::<V4, _>(table, &key, sets).expect("it was put there").index;
    let claim = |spared: u32| {
        let wanted = Wanted { now: NOW, class: 3, timeouts: &TIMEOUTS, spared };
        claim::<V4, _>(table, place(SLOTS).1, &wanted).map(|place| place.index)
    };
    assert_eq!(claim(spared), None);
    assert_eq!(claim(u32::MAX), Some(spared));
}

fn holder(state: FlowState, idle: u32, age: u32, is_own_class: bool) -> Holder {
    let control = Control::zeroed().published(state, 0, NOW.tick.wrapping_sub(idle));
    Holder { control, born: NOW.jiffy.wrapping_sub(age), is_own_class, timeout: TIMEOUTS[state.index()] }
}

/// From whom yields first to whom never does.
#[test]
fn flows_yield_in_their_order() {
    let second = NOW.second;
    let order = [
        (Rank::EMPTY, Holder { control: Control::zeroed(), ..holder(FlowState::HALF_OPEN, 0, 0, false) }),
        (Rank::EXPIRED, holder(FlowState::ESTABLISHED, 90_000, 0, false)),
        (Rank::OVER, holder(FlowState::CLOSING, 1, 0, false)),
        (Rank::OVER, holder(FlowState::RESET, 4, 0, false)),
        (Rank::STALE_OWN, holder(FlowState::HALF_OPEN, 2, second, true)),
        (Rank::STALE, holder(FlowState::UNREPLIED, 1, second, false)),
        (Rank::EXCHANGED, holder(FlowState::REPLIED, 1, second, false)),
        (Rank::PENDING_OWN, holder(FlowState::HALF_OPEN, 0, second - 1, true)),
        (Rank::PENDING, holder(FlowState::UNREPLIED, 0, second - 1, false)),
        (Rank::EXCHANGE, holder(FlowState::REPLIED, 0, second, false)),
        (Rank::EXCHANGE, holder(FlowState::UNREPLIED, 0, 100 * second, false)),
        (Rank::IDLE, holder(FlowState::STREAM, 32, 100 * second, false)),
        (Rank::NEVER, holder(FlowState::STREAM, 31, 100 * second, false)),
        (Rank::NEVER, holder(FlowState::ESTABLISHED, 10_800, 0, true)),
        (Rank::NEVER, holder(FlowState::CLOSING, 0, 0, true)),
        (Rank::NEVER, holder(FlowState::RESET, 1, 0, true)),
    ];
    for (expected, holder) in order {
        assert_eq!(holder.rank(NOW).0, expected, "{holder:?}");
    }
    let urges: Vec<u32> = order.iter().map(|(_, holder)| rank_of(holder.urge(NOW)).to_bits()).collect();
    assert!(urges.is_sorted_by(|one, other| one >= other), "{urges:?}");
}

/// Of a flow that goes one way, the reply's entry hears every few ticks only; and the clocks of two CPUs may differ by a jiffy.
#[test]
fn a_flow_is_not_older_than_it_is() {
    let mut one_way = holder(FlowState::UNREPLIED, 4, 100 * NOW.second, false);
    assert_eq!(one_way.rank(NOW).0, Rank::STALE);
    one_way.control = one_way.control.with(FlowState::UNREPLIED, one_way.control.flags() | flow_flags::REPLY);
    assert_eq!(one_way.rank(NOW).0, Rank::EXCHANGE);
    let begun_just_now = Holder { born: NOW.jiffy + 1, ..holder(FlowState::HALF_OPEN, 0, 0, false) };
    assert_eq!(begun_just_now.rank(NOW), (Rank::PENDING, 0));
}

#[test]
fn who_is_being_written_never_yields() {
    let claimed = Holder { control: Control::zeroed().claimed(), ..holder(FlowState::HALF_OPEN, 0, 0, true) };
    assert_eq!(rank_of(claimed.urge(NOW)), Rank::NEVER);
}

proptest! {
    /// Of two of one rank the older yields; a rank is never overtaken by age.
    #[test]
    fn the_older_of_two_yields(state in 0..9_u8, idle in 0..200_000_u32, more in 0..200_000_u32, ages: (u32, u32), own: bool) {
        let state = FlowState::from_bits(state);
        let one = holder(state, idle, ages.0, own);
        let other = holder(state, idle + more, ages.1, own);
        let (one_rank, one_age) = one.rank(NOW);
        let (other_rank, other_age) = other.rank(NOW);
        prop_assert_eq!(rank_of(one.urge(NOW)), one_rank);
        match one_rank.cmp(&other_rank) {
            std::cmp::Ordering::Equal => prop_assert_eq!(one_age <= other_age, one.urge(NOW) <= other.urge(NOW) || other_age >= 1 << 24),
            order => prop_assert_eq!(one.urge(NOW).cmp(&other.urge(NOW)), order),
        }
    }

    /// What is displaced is counted, but for what nobody had.
    #[test]
    fn every_flow_that_yields_while_it_lives_is_counted(state in 0..9_u8, idle in 0..200_u32, age: u32, own: bool) {
        let (rank, _) = holder(FlowState::from_bits(state), idle, age, own).rank(NOW);
        let is_nobodys = [Rank::NEVER, Rank::EXPIRED, Rank::EMPTY].contains(&rank);
        prop_assert_eq!(Evicted::of(rank).is_none(), is_nobodys, "{:?}", rank);
    }

    #[test]
    fn a_tuple_has_two_sets(seed: [u64; 2], src: u32, dst: u32, ports: (u16, u16), bits in 1..20_u32) {
        let mask = (1 << bits) - 1;
        let Sets([one, other]) = Sets::of(&FlowKey::<V4>::new(src, dst, ports.0, ports.1, protocol::TCP), seed, mask);
        prop_assert!(one != other && one <= mask && other <= mask);
    }

    /// Whatever the key is, and however regular the tuples are: no set is chosen much more often than another.
    #[test]
    fn sets_are_chosen_evenly(seed: [u64; 2], stride in 1..70_000_u32, is_v4: bool) {
        const SETS: u32 = 1 << 10;
        const TUPLES: u32 = SETS << 6;
        let mut chosen = [vec![0_u32; SETS as usize], vec![0_u32; SETS as usize]];
        for number in 0..TUPLES {
            let number = number.wrapping_mul(stride);
            let (host, port) = ((0x0a00_0000 | number >> 16).to_be(), (number as u16).to_be());
            let Sets(sets) = if is_v4 {
                sets::<V4>(host, 0x0a60_0001_u32.to_be(), port, seed, SETS)
            } else {
                sets::<V6>([1, 2, 3, host], [1, 2, 3, 4], port, seed, SETS)
            };
            for (counts, set) in chosen.iter_mut().zip(sets) {
                counts[set as usize] += 1;
            }
        }
        // A mean of 64, of which the standard deviation is 8: seven of them occur by chance once in 10^11.
        for counts in &chosen {
            let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
            prop_assert!(least >= Some(8) && most <= Some(125), "{:?} to {:?}", least, most);
        }
    }
}

fn sets<F: Family>(src: F::Addr, dst: F::Addr, port_be: u16, seed: [u64; 2], sets: u32) -> Sets {
    Sets::of(&FlowKey::<F>::new(src, dst, port_be, 443_u16.to_be(), protocol::TCP), seed, sets - 1)
}

/// A next hop is noted down beside protocol and class, which stay.
#[test]
fn a_next_hop_is_all_that_is_stored() {
    let memory = memory(8);
    let table = Slots(&memory);
    let entry = Entry { class: 0xab, ..established(1) };
    put(table, &entry).expect("room");
    let sets = Sets::of(&entry.key(), SEED, table.mask());
    let place = table::find::<V4, _>(table, &entry.key(), sets).expect("there");
    table::set_next_hop::<V4, _>(place.slot, 0xbeef);
    let read = read(&place);
    assert_eq!(read, Entry { next_hop: 0xbeef, control: read.control, ..entry });
    assert_ne!(read.flags() & flow_flags::LIVE, 0);
}
