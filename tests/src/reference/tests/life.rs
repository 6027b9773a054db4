// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's words about a connection's life and those of the programs: the same of all packets.

use lb_common::flow::{Direction, FlowState, Known, Seen, event, is_step as is_step_of_programs, protocol};

use super::super::life::{Ends, Signs, first_state, is_step, meaning};
use crate::packets::Random;

/// Numbers at the edges of what is believed.
const EDGES: [u32; 12] = [
    0,
    1,
    (64 << 10) - 1,
    64 << 10,
    (128 << 10) - 1,
    128 << 10,
    (1 << 20) - 1,
    1 << 20,
    (16 << 20) - 1,
    16 << 20,
    1 << 31,
    u32::MAX,
];

#[test]
fn a_packet_means_the_same_to_model_and_programs() {
    let mut random = Random::new(7);
    for _ in 0..1_000_000 {
        let protocol = random.pick(&[protocol::TCP, protocol::UDP, protocol::SCTP]);
        let (byte, number) = (random.number() as u8, random.number() as u32);
        let flags = random.pick(&[0, 1, 2, 4, 16, 17, 18, 20, 24, byte]);
        let state = FlowState::from_bits(random.below(FlowState::COUNT) as u8);
        let base = random.pick(&[0, 0x0102_0304, u32::MAX - 7, number]);
        let mut near = || {
            let edge = random.pick(&EDGES);
            if random.chance(50) { base.wrapping_add(edge) } else { base.wrapping_sub(edge) }
        };
        let (sequence, acknowledgement, own_sequence, peer_sequence) = (near(), near(), near(), near());
        let [is_reply, is_answered, is_picked_up, is_lasting] = [(); 4].map(|()| random.chance(50));
        let ends = Ends { is_reply, is_answered, is_picked_up, own_sequence, peer_sequence, is_lasting };
        let signs = Signs { flags, sequence, acknowledgement };
        let direction = if is_reply { Direction::Reply } else { Direction::Original };
        let seen = Seen { direction, protocol, flags, sequence, acknowledgement };
        let known = Known { state, is_answered, sequence: own_sequence, peer_sequence, is_lasting, is_picked_up };
        let said = meaning(state, protocol, &ends, &signs).map_or(state, |meaning| meaning.after(state));
        assert_eq!(said, state.after(event(seen, known)), "{seen:?} {known:?}");
        assert_eq!(first_state(protocol, flags), FlowState::first(protocol, flags));
        assert_eq!(is_step(sequence, own_sequence), is_step_of_programs(sequence, own_sequence));
    }
}
