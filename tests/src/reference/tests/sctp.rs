// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP: one association through its life, and its checksum.

use lb_common::flow::FlowState;

use super::{assert_sound, client, model, send};
use crate::{
    packets::{
        Segment, UPLINK, chunk,
        node::{HERE, THERE},
    },
    reference::{Door, Version},
};

#[test]
fn an_association_lives_and_dies() {
    for version in Version::BOTH {
        let mut model = model();
        let (client, frontend, backend) = (client(version), HERE.at_node(version), HERE.backend(version));
        let cookie_echo = 10;
        for (is_reply, kind, state) in [
            (false, chunk::INIT, FlowState::HALF_OPEN),
            (true, chunk::INIT_ACK, FlowState::HALF_OPEN),
            (false, cookie_echo, FlowState::ESTABLISHED),
            (true, chunk::DATA, FlowState::ESTABLISHED),
            (true, chunk::SHUTDOWN_COMPLETE, FlowState::CLOSING),
            (false, chunk::INIT, FlowState::HALF_OPEN),
            (false, chunk::ABORT, FlowState::CLOSING),
        ] {
            let (door, src, dst) =
                if is_reply { (Door::Egress, backend, client) } else { (Door::Ingress, client, frontend) };
            let outcome = send(&mut model, (door, UPLINK), Segment::sctp(src, dst, kind).payload(b"data").build());
            let (src, dst) = if is_reply { (frontend, client) } else { (client, backend) };
            assert_eq!(outcome.frame, Segment::sctp(src, dst, kind).payload(b"data").build());
            assert!(model.flows.0.values().all(|entry| entry.state == state), "{kind}: {:?}", model.flows);
        }
    }
}

#[test]
fn a_checksum_left_to_the_device_stays_zero_at_tc() {
    for (door, is_zero) in [(Door::Ingress, true), (Door::Xdp, false)] {
        let mut frame = Segment::sctp(client(Version::V4), HERE.at_node(Version::V4), chunk::INIT).build();
        frame[42..46].fill(0);
        let outcome = send(&mut model(), (door, UPLINK), frame);
        assert_eq!(outcome.frame[42..46] == [0; 4], is_zero);
    }
}

#[test]
fn damage_stays_damage() {
    for service in [HERE, THERE] {
        let frame = Segment::sctp(client(Version::V6), service.at_node(Version::V6), chunk::INIT).payload(&[7; 99]);
        let mut damaged = frame.build();
        damaged[100] ^= 8;
        let mut outcome = send(&mut model(), (Door::Ingress, UPLINK), damaged);
        outcome.frame[100] ^= 8;
        assert_sound(&outcome.frame);
    }
}
