// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entries read from memory that others write, and counted.

use std::{
    array,
    sync::atomic::{AtomicBool, AtomicU32},
    thread,
};

use lb_common::{flow::protocol, frontend::Frontend};
use proptest::prelude::*;

use super::*;
use crate::{
    dataplane::tests::Place,
    diff::{Operation, Writer as _},
};

/// A slot of the table.
type Slot = [AtomicU64; word::stride::<V4>()];

fn store(slot: &[AtomicU64], entry: &Entry<V4>) {
    let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(entry));
    slot.iter().zip(words).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
}

/// A flow of the client 192.0.2.1 to a frontend, at a backend; `flags` beside those of a live entry.
fn entry(backend: u32, state: FlowState, flags: u8) -> Entry<V4> {
    let address = |last| u32::from_ne_bytes([192, 0, 2, last]);
    Entry {
        control: Control::zeroed().claimed().published(state, flags, 100),
        src: address(1),
        dst: address(2),
        sport_be: 4000_u16.to_be(),
        dport_be: 80_u16.to_be(),
        protocol: protocol::TCP,
        new_src: address(3),
        new_dst: address(4),
        new_sport_be: 61_000_u16.to_be(),
        new_dport_be: 8080_u16.to_be(),
        backend,
        generation: 7,
        ..Entry::zeroed()
    }
}

#[test]
fn only_a_live_entry_is_read() {
    let slot: Slot = array::from_fn(|_| AtomicU64::new(0));
    assert_eq!(read::<V4>(&slot), None);
    let live = entry(1, FlowState::ESTABLISHED, flow_flags::SNAT);
    store(&slot, &live);
    assert_eq!(read(&slot), Some(live));
    store(&slot, &Entry { control: live.control.claimed(), ..live });
    assert_eq!(read::<V4>(&slot), None, "it is being written");
}

/// A writer claims the slot, writes, and publishes, again and again: what is read is one of its entries, never two.
#[test]
fn an_entry_that_is_written_meanwhile_is_read_whole_or_not_at_all() {
    const WRITES: u32 = 100_000;
    let slot: Slot = array::from_fn(|_| AtomicU64::new(0));
    let (is_done, reads) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut control = Control::zeroed();
            for n in 0..WRITES {
                let claimed = control.claimed();
                slot[word::CONTROL].store(claimed.to_bits(), Ordering::Relaxed);
                fence(Ordering::SeqCst);
                for word in &slot[1..] {
                    word.store(u64::from(n), Ordering::Relaxed);
                }
                control = claimed.published(FlowState::ESTABLISHED, 0, n);
                slot[word::CONTROL].store(control.to_bits(), Ordering::Release);
                if n % 64 == 0 {
                    thread::yield_now();
                }
            }
            is_done.store(true, Ordering::Relaxed);
        });
        while !is_done.load(Ordering::Relaxed) {
            if let Some(entry) = read::<V4>(&slot) {
                let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(&entry));
                let seen = u64::from(entry.control.last_seen());
                assert!(words[1..].iter().all(|word| *word == seen), "{words:x?}");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    assert!(reads.into_inner() > 0);
}

#[test]
fn flows_are_counted_once_and_by_their_backend_of_now() {
    let flow = |backend, state, flags| FlowEntry::new::<V4>(&entry(backend, state, flags), 130);
    let reply = |backend, state| flow(backend, state, flow_flags::REPLY);
    let backends = |index| Backend {
        state: if index == 3 { backend_state::FREE } else { backend_state::ACTIVE },
        generation: if index == 2 { 8 } else { 7 },
        ..Backend::default()
    };
    let flows = [
        flow(1, FlowState::ESTABLISHED, flow_flags::SNAT),
        reply(1, FlowState::ESTABLISHED),
        flow(1, FlowState::HALF_OPEN, flow_flags::SNAT),
        flow(1, FlowState::STREAM, 0),
        flow(2, FlowState::ESTABLISHED, 0),
        flow(3, FlowState::ESTABLISHED, 0),
    ];
    assert_eq!((flows[0].idle_ticks, flows[0].leaves[0].port()), (30, 61_000));
    let census = Census::of(flows.into_iter(), backends);
    let expected = Census {
        entries: [6, 0],
        flows: [5, 0],
        backends: HashMap::from([(1, OpenFlows { active: 2, inactive: 1 })]),
        source_ports: 2,
    };
    assert_eq!(census, expected);
}

/// NodePorts go, or are written again: flows to another machine's port of that number, those that are no Service's, and those of the
/// Service that the port is of now, go on.
#[test]
fn rule_85_the_flows_of_a_node_port_are_those_to_the_nodes_addresses() {
    let Some(place) = Place::new("ended-flows") else { return };
    let mut dataplane = place.open();
    let of_node = entry(1, FlowState::ESTABLISHED, 0);
    let own = Entry { protocol: protocol::UDP, ..of_node };
    let others = Entry { dst: u32::from_ne_bytes([198, 51, 100, 2]), ..own };
    let direct = Entry { backend: NO_BACKEND, ..own };
    let kept = Entry { dport_be: 81_u16.to_be(), ..own };
    let inherited = Entry { dport_be: 82_u16.to_be(), ..own };
    let node_port = |entry: &Entry<V4>| FrontendKey::node_port(true, entry.dport_be, protocol::UDP);
    let written = |entry, service| Operation::UpsertFrontend {
        key: node_port(entry),
        frontend: Frontend { service, ..Frontend::zeroed() },
    };
    for operation in [
        Operation::UpsertNodeAddress(V4::widen(&own.dst)),
        Operation::SetBackend { index: own.backend, backend: Backend { service: 5, ..Backend::default() } },
        written(&kept, 5),
        written(&inherited, 6),
    ] {
        dataplane.write(&operation).unwrap();
    }
    let maps = dataplane.maps();
    let slots = || maps.flows_v4.sets.long_words().chunks_exact(word::stride::<V4>());
    slots().zip([own, others, direct, kept, inherited]).for_each(|(slot, entry)| store(slot, &entry));
    assert_eq!(maps.end_udp_flows(&[own, kept, inherited].iter().map(node_port).collect()).unwrap(), 2);
    let is_ended = |slot| read::<V4>(slot).unwrap().control.last_seen() != own.control.last_seen();
    assert_eq!(slots().take(5).map(is_ended).collect::<Vec<_>>(), [true, false, false, false, true]);
}

proptest! {
    /// A sweep keeps what lets the packets of every flow pass, both ways, though just one entry is there. The programs ask at ingress by
    /// the destination, and at egress by the source.
    #[test]
    fn a_sweep_keeps_what_flows_need(flags in 0..4_u8, ports: (u16, u16), addresses: (u32, u32)) {
        let mut own = entry(1, FlowState::ESTABLISHED, flags);
        (own.sport_be, own.dport_be, own.src, own.dst) = (ports.0, ports.1, addresses.0, addresses.1);
        let mut filter = Filter::default();
        concerns::<V4>(&own).for_each(|concern| filter.insert(concern));
        let filter = lb_common_filter(&filter);
        let bit = |address: u32, port_be| lb_common::hash::filter_port_bit_v4(address, port_be, protocol::TCP);
        let cell = lb_common::hash::filter_bit_v4;
        let mut peer = own;
        own.write_peer(&mut peer);
        for entry in [own, peer] {
            let passes = if flow_flags::is_at(entry.flags(), Hook::Egress) {
                filter.has_source(cell(entry.src)) && filter.has_backend(bit(entry.src, entry.sport_be))
            } else {
                let is_known = filter.destination(cell(entry.dst)) != 0;
                is_known && filter.has_port(bit(entry.dst, entry.dport_be), entry.dport_be, protocol::TCP)
            };
            prop_assert!(passes);
        }
    }
}

/// As the programs see it.
fn lb_common_filter(filter: &Filter) -> Box<lb_common::filter::Filter> {
    let mut own: Box<lb_common::filter::Filter> = bytemuck::allocation::zeroed_box();
    bytemuck::cast_slice_mut(std::slice::from_mut(&mut *own)).copy_from_slice(filter.words());
    own
}
