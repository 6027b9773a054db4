// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The flow table under all interleavings of a few CPUs, by `loom`: what `lb_common::flow::table` promises of insertion, reading,
//! state and removal; and that the tests would notice if it did not keep to its protocol.

#[path = "../claim/mod.rs"]
mod claim;
mod memory;

use bytemuck::Zeroable;
use claim::claim;
use lb_common::{
    address::V4,
    flow::{
        Control, Entry, Event, FlowState, flow_flags, protocol,
        table::{self, Place},
        word,
    },
};
use loom::thread;
use memory::{Memory, Rules, SETS, TICK, Way, Ways, explore, finds_a_fault, flow, key, wanted};

/// What the assertions say that refuse a broken protocol.
const TWICE: &str = "is live twice";
const TORN: &str = "was read in part";
const CHANGED: &str = "was changed by a late store";

/// Claims a slot, writes an entry, publishes it.
fn insert<'a>(table: Ways<'a>, entry: &Entry<V4>) -> Option<Place<Way<'a>>> {
    let place = claim::<V4, _>(table, SETS, &wanted())?;
    table::write(place.slot, entry);
    table::publish(table, place.claimed(), &entry.key(), entry.control, SETS).then_some(place)
}

/// The same without the look for another entry with the key.
fn insert_blindly(table: Ways<'_>, entry: &Entry<V4>) {
    let Some(place) = claim::<V4, _>(table, SETS, &wanted()) else { return };
    table::write(place.slot, entry);
    let (state, flags) = (entry.control.state(), entry.flags());
    let control = place.control.claimed().published(state, flags, TICK);
    table::Slot::store(place.slot, word::CONTROL, control.to_bits());
}

/// Inserts a flow's reply and then the flow, or neither.
fn insert_pair(table: Ways<'_>, entry: &Entry<V4>) -> bool {
    let mut reply = *entry;
    entry.write_peer(&mut reply);
    let Some(place) = insert(table, &reply) else { return false };
    if insert(table, entry).is_some() {
        return true;
    }
    let control = place.control.claimed().published(reply.control.state(), reply.flags(), TICK);
    assert!(table::remove(place.slot, control), "nobody else ends it");
    false
}

fn half_open(client: u16) -> Entry<V4> {
    flow(client, protocol::TCP, FlowState::HALF_OPEN)
}

/// Every entry is one that was written, whole, and no tuple has two.
fn check(memory: &Memory, written: &[Entry<V4>]) {
    let entries = memory.entries();
    for (number, (index, entry)) in entries.iter().enumerate() {
        let of = |one: &Entry<V4>| Entry { control: entry.control, ..*one } == *entry;
        assert!(written.iter().any(of), "nobody has written {entry:?}");
        let twin = entries[..number].iter().find(|(_, other)| other.key() == entry.key());
        assert!(twin.is_none(), "{:?} {TWICE}, at {index} and as {twin:?}", entry.key());
    }
}

fn one_tuple_by_many(cpus: u16, rules: Rules, insert: fn(Ways<'_>, &Entry<V4>)) -> impl Fn() + Send + Sync {
    move || {
        let memory = Memory::new([1, 1], rules);
        // They have decided differently: the table has changed in between.
        let entry = |cpu: u16| Entry { backend: u32::from(cpu), ..half_open(7) };
        let threads: Vec<_> = (1..cpus)
            .map(|cpu| {
                let memory = memory.clone();
                thread::spawn(move || insert(memory.table(), &entry(cpu)))
            })
            .collect();
        insert(memory.table(), &entry(0));
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        check(&memory, &(0..cpus).map(entry).collect::<Vec<_>>());
    }
}

#[test]
fn a_tuple_that_two_cpus_insert_is_live_once() {
    explore(None, one_tuple_by_many(2, Rules::Kept, |table, entry| _ = insert(table, entry)));
}

#[test]
fn a_tuple_that_three_cpus_insert_is_live_once() {
    explore(Some(2), one_tuple_by_many(3, Rules::Kept, |table, entry| _ = insert(table, entry)));
}

#[test]
fn without_the_barrier_a_tuple_would_be_live_twice() {
    let program = one_tuple_by_many(2, Rules::NoBarrier, |table, entry| _ = insert(table, entry));
    assert!(finds_a_fault(Some(2), TWICE, program));
}

#[test]
fn without_a_look_for_a_twin_a_tuple_would_be_live_twice() {
    assert!(finds_a_fault(Some(2), TWICE, one_tuple_by_many(2, Rules::Kept, insert_blindly)));
}

/// Two clients' flows that want to be answered under one tuple: one of them gets it, and the other leaves nothing.
#[test]
fn a_reply_tuple_belongs_to_one_flow() {
    explore(Some(3), || {
        let memory = Memory::new([2, 2], Rules::Kept);
        let flows = [1, 2].map(|client| {
            let mut entry = half_open(client);
            (entry.new_src, entry.new_sport_be) = (500, 500);
            entry.set_deltas();
            entry
        });
        let other = {
            let memory = memory.clone();
            thread::spawn(move || insert_pair(memory.table(), &flows[1]))
        };
        let is_one = insert_pair(memory.table(), &flows[0]);
        let is_other = other.join().expect("no panic");
        let replies = flows.map(|entry| {
            let mut reply = entry;
            entry.write_peer(&mut reply);
            reply
        });
        check(&memory, &[flows[0], flows[1], replies[0], replies[1]]);
        assert!(!(is_one && is_other));
        let pairs = usize::from(is_one) + usize::from(is_other);
        assert_eq!(memory.entries().len(), 2 * pairs, "halves: {:?}", memory.entries());
    });
}

/// Different tuples, and room for one.
#[test]
fn a_slot_is_claimed_by_one() {
    explore(None, || {
        let memory = Memory::new([1, 0], Rules::Kept);
        let flows = [1, 2].map(|client| flow(client, protocol::TCP, FlowState::ESTABLISHED));
        let other = {
            let memory = memory.clone();
            thread::spawn(move || insert(memory.table(), &flows[1]).is_some())
        };
        let is_one = insert(memory.table(), &flows[0]).is_some();
        let is_other = other.join().expect("no panic");
        check(&memory, &flows);
        assert!(is_one != is_other && memory.entries().len() == 1);
    });
}

/// A flow that yields while others read it, in all words.
fn reading(read: fn(&Place<Way<'_>>) -> Option<Entry<V4>>) -> impl Fn() + Send + Sync {
    move || {
        let old = flow(1, protocol::TCP, FlowState::CLOSING);
        let old = Entry { control: old.control.published(FlowState::CLOSING, 0, TICK - 5), ..old };
        let memory = Memory::with([1, 0], Rules::Kept, &[old]);
        let reader = {
            let memory = memory.clone();
            thread::spawn(move || {
                for (client, written) in [(1, old), (2, half_open(2))] {
                    let Some(place) = table::find::<V4, _>(memory.table(), &key(client), SETS) else { continue };
                    if let Some(read) = read(&place) {
                        assert_eq!(read, Entry { control: read.control, ..written }, "{TORN}");
                    }
                }
            })
        };
        assert!(insert(memory.table(), &half_open(2)).is_some());
        reader.join().expect("no panic");
        check(&memory, &[half_open(2)]);
    }
}

#[test]
fn no_reader_uses_a_torn_entry() {
    explore(
        Some(3),
        reading(|place| {
            let mut entry = Zeroable::zeroed();
            table::read(place, &mut entry).then_some(entry)
        }),
    );
}

#[test]
fn without_a_second_look_a_torn_entry_would_be_used() {
    let read = |place: &Place<Way<'_>>| {
        let words: [u64; word::count::<V4>()] = std::array::from_fn(|index| table::Slot::load(place.slot, index));
        Some(bytemuck::cast(words))
    };
    assert!(finds_a_fault(Some(3), TORN, reading(read)));
}

/// What a CPU stores that has found an entry just before it yielded harms nobody.
fn late_stores(rules: Rules) -> impl Fn() + Send + Sync {
    move || {
        let old = flow(1, protocol::TCP, FlowState::CLOSING);
        let old = Entry { control: old.control.published(FlowState::CLOSING, 0, TICK - 5), ..old };
        let new = flow(2, protocol::UDP, FlowState::UNREPLIED);
        let memory = Memory::with([1, 0], rules, &[old]);
        let late = {
            let memory = memory.clone();
            thread::spawn(move || {
                let Some(place) = table::find::<V4, _>(memory.table(), &old.key(), SETS) else { return };
                table::set_next_hop::<V4, _>(place.slot, 9);
                table::set_last_seen(place.slot, TICK);
                table::set_peer_seen::<V4, _>(place.slot, TICK);
                table::advance(place.slot, place.control, 0, |state| state.after(Event::GoesOn));
            })
        };
        let inserted = insert(memory.table(), &new).is_some();
        late.join().expect("no panic");
        let entries = memory.entries();
        let (_, entry) = entries.first().expect("one of them");
        let written = if inserted { new } else { old };
        let expected =
            Entry { control: entry.control, next_hop: entry.next_hop, peer_seen: entry.peer_seen, ..written };
        assert_eq!(*entry, expected, "{CHANGED}");
        assert_eq!(entry.control.state(), written.control.state());
    }
}

#[test]
fn a_late_store_harms_no_other_flow() {
    explore(None, late_stores(Rules::Kept));
}

#[test]
fn a_next_hop_that_was_stored_with_its_neighbours_would_change_another_flows_protocol() {
    assert!(finds_a_fault(Some(3), CHANGED, late_stores(Rules::WideNextHop)));
}

/// Both ends' FINs at once, in both entries, while times are noted down (review A16).
#[test]
fn no_event_is_lost_when_both_ends_close_at_once() {
    explore(None, || {
        let original = flow(1, protocol::TCP, FlowState::ESTABLISHED);
        let mut reply = original;
        original.write_peer(&mut reply);
        let memory = Memory::with([1, 1], Rules::Kept, &[original, reply]);
        let see = move |memory: &Memory, own: Entry<V4>, peer: Entry<V4>, event| {
            for entry in [own, peer] {
                let place = table::find::<V4, _>(memory.table(), &entry.key(), SETS).expect("it lives");
                table::advance(place.slot, place.control, flow_flags::ANSWERED, |state| state.after(event));
                table::set_last_seen(place.slot, TICK + 1);
            }
        };
        let other = {
            let memory = memory.clone();
            thread::spawn(move || see(&memory, reply, original, Event::FinReply))
        };
        see(&memory, original, reply, Event::FinOriginal);
        other.join().expect("no panic");
        for (_, entry) in memory.entries() {
            assert_eq!((entry.control.state(), entry.control.last_seen()), (FlowState::CLOSING, TICK + 1));
            assert_ne!(entry.flags() & flow_flags::ANSWERED, 0);
        }
    });
}

/// Whoever removes an entry has seen its last state; a flow that goes on meanwhile stays.
#[test]
fn what_goes_on_is_not_removed() {
    explore(None, || {
        let entry = flow(1, protocol::TCP, FlowState::RESET);
        let memory = Memory::with([1, 0], Rules::Kept, &[entry]);
        let remover = {
            let memory = memory.clone();
            thread::spawn(move || {
                let place = table::find::<V4, _>(memory.table(), &key(1), SETS)?;
                (place.control.state() == FlowState::RESET).then(|| table::remove(place.slot, place.control))
            })
        };
        if let Some(place) = table::find::<V4, _>(memory.table(), &key(1), SETS) {
            table::set_last_seen(place.slot, TICK + 1);
            table::advance(place.slot, place.control, 0, |state| state.after(Event::GoesOn));
        }
        let is_removed = remover.join().expect("no panic") == Some(true);
        let entries = memory.entries();
        let states: Vec<FlowState> = entries.iter().map(|(_, entry)| entry.control.state()).collect();
        assert_eq!(states, if is_removed { vec![] } else { vec![FlowState::ESTABLISHED] });
    });
}

/// Two CPUs find the same flow outdated: both remove it and begin it anew.
#[test]
fn a_flow_that_two_cpus_decide_anew_is_live_at_most_once() {
    explore(Some(4), || {
        let old = flow(1, protocol::TCP, FlowState::CLOSING);
        let memory = Memory::with([1, 1], Rules::Kept, &[old]);
        let again = move |memory: &Memory, backend| {
            let place = table::find::<V4, _>(memory.table(), &key(1), SETS);
            if let Some(place) = place.filter(|place| place.control.state() == FlowState::CLOSING) {
                table::remove(place.slot, place.control);
            }
            insert(memory.table(), &Entry { backend, ..half_open(1) });
        };
        let other = {
            let memory = memory.clone();
            thread::spawn(move || again(&memory, 5))
        };
        again(&memory, 6);
        other.join().expect("no panic");
        check(&memory, &[Entry { backend: 5, ..half_open(1) }, Entry { backend: 6, ..half_open(1) }]);
    });
}

/// The words that the tests hold for those of a flow are those of an entry.
#[test]
fn a_slot_is_an_entry() {
    assert_eq!(size_of::<Entry<V4>>(), 8 * word::count::<V4>());
    assert!(Control::from_bits(0).is_empty());
}
