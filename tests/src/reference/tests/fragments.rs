// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments. Those of a datagram must become those of the datagram translated whole.

use lb_common::flow::protocol;

use super::{assert_untouched, client, first, model, segment, send};
use crate::{
    packets::{
        UPLINK, fragments,
        node::{CLUSTER_IP, HERE, THERE, pick},
    },
    reference::{Door, Entry, Model, Outcome, Tuple, Verdict, Version},
};

const ID: u32 = 0x1234;
/// Bytes in all fragments but the last.
const PIECE: usize = 40;
/// Those whose checksum can be corrected in the first fragment alone.
const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];

fn send_all(model: &mut Model, at: (Door, u32), pieces: Vec<Vec<u8>>) -> Vec<Outcome> {
    pieces.into_iter().map(|piece| send(model, at, piece)).collect()
}

fn assert_followed(outcomes: Vec<Outcome>, expected: Vec<Vec<u8>>) {
    assert!(outcomes.iter().all(|outcome| outcome.moved.reasons.is_empty()), "{outcomes:?}");
    assert_eq!(outcomes.into_iter().map(|outcome| outcome.frame).collect::<Vec<_>>(), expected);
}

/// The flows, but for the next hops that they keep: what a later fragment looks up for a half-open flow is not kept.
fn lives(model: &Model) -> Vec<(Tuple, Entry)> {
    let flows = model.flows.0.iter();
    flows.map(|(tuple, entry)| (*tuple, Entry { next_hop: None, ..*entry })).collect()
}

#[test]
fn fragments_are_translated_like_the_datagram_in_both_directions() {
    let payload: Vec<u8> = (0..100).collect();
    for version in Version::BOTH {
        for protocol in PROTOCOLS {
            for service in [HERE, THERE] {
                let (mut one, mut other) = (model(), model());
                let whole = first(protocol, service, version).payload(&payload).build();
                let translated = send(&mut one, (Door::Ingress, UPLINK), whole.clone()).frame;
                let outcomes = send_all(&mut other, (Door::Ingress, UPLINK), fragments(&whole, ID, PIECE));
                let at = if version == Version::V4 { 34 } else { 54 };
                let port = u16::from_be_bytes([translated[at], translated[at + 1]]);
                assert_followed(outcomes, fragments(&translated, ID, PIECE));

                let (door, known) = if service.port == HERE.port {
                    (Door::Egress, client(version))
                } else {
                    (Door::Ingress, (service.at_node(version).ip(), port).into())
                };
                let reply = segment(protocol, service.backend(version), known).payload(&payload).build();
                let translated = send(&mut one, (door, UPLINK), reply.clone()).frame;
                let outcomes = send_all(&mut other, (door, UPLINK), fragments(&reply, ID, PIECE));
                assert_followed(outcomes, fragments(&translated, ID, PIECE));
                assert_eq!(lives(&one), lives(&other), "state and time are those of the first fragment");
            }
        }
    }
}

#[test]
fn a_later_fragment_needs_the_first_of_its_own_datagram() {
    for version in Version::BOTH {
        let mut model = model();
        model.setup.guarded.insert(pick(CLUSTER_IP, version));
        let mut whole = first(protocol::UDP, HERE, version).payload(&[1; 100]);
        for (is_cluster_ip, verdict) in [(false, Verdict::Pass), (true, Verdict::Drop)] {
            if is_cluster_ip {
                whole = whole.between(client(version), HERE.at_cluster_ip(version));
            }
            let pieces = fragments(&whole.build(), ID, PIECE);
            let strangers = fragments(&whole.build(), ID + 1, PIECE);
            // Too early, of another, and too late.
            for (piece, wait) in [(&pieces[1], 0), (&pieces[0], 0), (&strangers[1], 0), (&pieces[2], 30)] {
                for ports in model.fragments.0.values_mut() {
                    ports.last_seen -= wait;
                }
                let outcome = send(&mut model, (Door::Ingress, UPLINK), piece.clone());
                if std::ptr::eq(piece, &pieces[0]) {
                    assert!(outcome.moved.reasons.is_empty());
                } else {
                    assert_eq!((outcome.verdict, outcome.moved.to_string().as_str()), (verdict, "orphan-fragment=1"));
                }
            }
        }
        let reply = segment(protocol::UDP, HERE.backend(version), client(version)).payload(&[1; 100]).build();
        let piece = &fragments(&reply, ID, PIECE)[1];
        assert_untouched(&send(&mut model, (Door::Egress, UPLINK), piece.clone()), piece, "");
    }
}

#[test]
fn fragments_of_a_flow_that_has_gone_are_dropped() {
    for version in Version::BOTH {
        let mut model = model();
        let pieces = fragments(&first(protocol::UDP, HERE, version).payload(&[1; 100]).build(), ID, PIECE);
        send(&mut model, (Door::Ingress, UPLINK), pieces[0].clone());
        model.flows.0.clear();
        let outcome = send(&mut model, (Door::Ingress, UPLINK), pieces[1].clone());
        assert_eq!((outcome.verdict, outcome.moved.to_string().as_str()), (Verdict::Drop, "orphan-fragment=1"));
    }
}

#[test]
fn a_first_fragment_without_its_whole_header_is_malformed() {
    for version in Version::BOTH {
        let mut model = model();
        let pieces = fragments(&first(protocol::TCP, HERE, version).build(), ID, 16);
        let outcome = send(&mut model, (Door::Ingress, UPLINK), pieces[0].clone());
        assert_untouched(&outcome, &pieces[0], "malformed=1");
    }
}

#[test]
fn the_last_byte_of_a_datagram_is_a_fragment_too() {
    let version = Version::V4;
    let mut model = model();
    let pieces = fragments(&first(protocol::UDP, HERE, version).payload(&[1; 33]).build(), ID, PIECE);
    assert_eq!(pieces[1].len(), 14 + 20 + 1);
    let outcomes = send_all(&mut model, (Door::Ingress, UPLINK), pieces);
    assert_eq!(outcomes[1].frame[30..34], [10, 1, 0, 11], "the backend's address");
}
