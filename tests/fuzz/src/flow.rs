// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flow's entry and its peer, made of any tuple; and any life that a flow may lead.
#![no_main]

use bytemuck::Zeroable;
use lb_common::{
    address::{Family, V4, V6},
    flow::{Direction, Flow, FlowKey, FlowState, flow_flags, protocol, sctp_chunk},
};
use libfuzzer_sys::fuzz_target;
use shunt_fuzz::reference::{first_state, next_state};

type Ports = (u16, u16);

/// Those that have ports.
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];
/// Those that an entry may have besides its direction.
const FLAGS: u8 = flow_flags::SNAT | flow_flags::RESET | flow_flags::ANSWERED;

fuzz_target!(|input: ((u32, u32, u32, u32), (Ports, Ports), u8, u8, Vec<(bool, u8)>)| {
    let (addresses, ports, protocol, flags, life) = input;
    let protocol = PROTOCOLS[usize::from(protocol) % PROTOCOLS.len()];
    let (a, b, c, d) = addresses;
    check_pair::<V4>([a, b, c, d], ports, protocol, flags);
    check_pair::<V6>([[a; 4], [b, a, a, b], [c, 0, 0, d], [d; 4]], ports, protocol, flags);
    // Of SCTP a byte is a chunk.
    let meaning = |byte: u8| if protocol == protocol::SCTP { sctp_chunk::flags(byte) } else { byte };
    let mut life = life.into_iter().map(|(is_reply, byte)| (is_reply, meaning(byte)));
    let Some((_, first)) = life.next() else { return };
    let mut state = FlowState::first(protocol, first);
    assert_eq!(state, first_state(protocol, first));
    for (is_reply, flags) in life {
        let direction = if is_reply { Direction::Reply } else { Direction::Original };
        let next = state.next(direction, protocol, flags);
        assert_eq!(next, next_state(state, is_reply, protocol, flags));
        assert!(next.index() < FlowState::COUNT);
        state = next;
    }
});

fn check_pair<F: Family + PartialEq + std::fmt::Debug>(
    addresses: [F::Addr; 4],
    (from, to): (Ports, Ports),
    protocol: u8,
    flags: u8,
) {
    let key = FlowKey::<F>::new(addresses[0], addresses[1], from.0, from.1, protocol);
    let mut flow: Flow<F> = Zeroable::zeroed();
    (flow.src, flow.dst, flow.sport_be, flow.dport_be) = (addresses[2], addresses[3], to.0, to.1);
    flow.flags = flags & FLAGS;
    flow.set_deltas(&key);
    let (mut peer_key, mut peer) = (key, flow);
    flow.write_peer_key(&key, &mut peer_key);
    flow.write_peer(&key, &mut peer);
    assert!(flow.is_peer_key(&key, &peer_key) && peer.is_peer_key(&peer_key, &key));
    assert_ne!(flow.direction(), peer.direction());
    assert!(!flow.is_at_egress(), "only replies are");
    let (mut key_again, mut flow_again) = (key, flow);
    peer.write_peer_key(&peer_key, &mut key_again);
    peer.write_peer(&peer_key, &mut flow_again);
    assert_eq!((key_again, flow_again), (key, flow));
}
