// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flow's entry and its peer, made of any tuple; and any life that a flow may lead.
#![no_main]

use bytemuck::Zeroable;
use lb_common::{
    address::{Family, V4, V6},
    flow::{Direction, Entry, FlowState, Known, Seen, event, flow_flags, protocol, sctp_chunk},
};
use libfuzzer_sys::fuzz_target;
use shunt_fuzz::reference::{Ends, Signs, first_state, meaning};

type Ports = (u16, u16);

/// Those that have ports.
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];
/// Those that an entry may have besides its direction.
const FLAGS: u8 = flow_flags::SNAT | flow_flags::RESET | flow_flags::ANSWERED | flow_flags::PICKED_UP;

/// One packet: the backend's or not, what its flow knows, flags or type of chunk, its numbers and those that are known.
type Word = (bool, (bool, bool, bool), u8, (u32, u32), (u32, u32));

fuzz_target!(|input: ((u32, u32, u32, u32), (Ports, Ports), u8, u8, Vec<Word>)| {
    let (addresses, ports, protocol, flags, life) = input;
    let protocol = PROTOCOLS[usize::from(protocol) % PROTOCOLS.len()];
    let (a, b, c, d) = addresses;
    check_pair::<V4>([a, b, c, d], ports, protocol, flags);
    check_pair::<V6>([[a; 4], [b, a, a, b], [c, 0, 0, d], [d; 4]], ports, protocol, flags);
    let mut state = None;
    for word in life {
        state = Some(check_word(state, protocol, word));
    }
});

/// Both make the same of a packet; gives the state after it.
fn check_word(state: Option<FlowState>, protocol: u8, word: Word) -> FlowState {
    let (is_reply, (is_answered, is_picked_up, is_lasting), byte, (sequence, acknowledgement), known) = word;
    // Of SCTP a byte is a chunk.
    let flags = if protocol == protocol::SCTP { sctp_chunk::flags(byte) } else { byte };
    let Some(state) = state else {
        assert_eq!(FlowState::first(protocol, flags), first_state(protocol, flags));
        return first_state(protocol, flags);
    };
    let direction = if is_reply { Direction::Reply } else { Direction::Original };
    let (own_sequence, peer_sequence) = known;
    let after = state.after(event(
        Seen { direction, protocol, flags, sequence, acknowledgement },
        Known { state, is_answered, sequence: own_sequence, peer_sequence, is_lasting, is_picked_up },
    ));
    let ends = Ends { is_reply, is_answered, is_picked_up, own_sequence, peer_sequence, is_lasting };
    let signs = Signs { flags, sequence, acknowledgement };
    let expected = meaning(state, protocol, &ends, &signs).map_or(state, |meaning| meaning.after(state));
    assert_eq!(after, expected);
    assert!(after.index() < FlowState::COUNT);
    after
}

fn check_pair<F: Family + PartialEq + std::fmt::Debug>(
    addresses: [F::Addr; 4],
    (from, to): (Ports, Ports),
    protocol: u8,
    flags: u8,
) {
    let mut entry: Entry<F> = Zeroable::zeroed();
    (entry.src, entry.dst, entry.sport_be, entry.dport_be) = (addresses[0], addresses[1], from.0, from.1);
    (entry.new_src, entry.new_dst, entry.new_sport_be, entry.new_dport_be) = (addresses[2], addresses[3], to.0, to.1);
    entry.protocol = protocol;
    entry.control = entry.control.published(FlowState::HALF_OPEN, flags & FLAGS, 0);
    entry.set_deltas();
    let (mut peer, mut again) = (entry, entry);
    entry.write_peer(&mut peer);
    assert!(entry.peer_key().is(&peer.key()) && peer.peer_key().is(&entry.key()));
    assert_ne!(entry.direction(), peer.direction());
    peer.write_peer(&mut again);
    assert_eq!(again, entry);
}
