// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLAN tags, which XDP sees in the frame; TC finds them in the buffer's metadata, which a test can't set.

use anyhow::Result;
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        UPLINK, fragments,
        node::{self, EMPTY, HERE, OUTSIDE, THERE},
        tagged, with_rig,
    },
    reference::{Door, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, begun, continued, end, first, take};

const CUSTOMER: u16 = 0x8100;
const PROVIDER: u16 = 0x88a8;
/// One tag and two, of all kinds that there are.
const TAGS: [&[(u16, u16)]; 4] =
    [&[(CUSTOMER, 7)], &[(PROVIDER, 7)], &[(PROVIDER, 4094), (CUSTOMER, 7)], &[(CUSTOMER, 0xe001), (CUSTOMER, 7)]];

#[test]
fn tagged_packets_are_translated_and_keep_their_tags() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for (port, tags) in (40_000..).zip(TAGS) {
                    let (client, frontend) = (end(OUTSIDE, version, port), HERE.at_node(version));
                    let packet = first(protocol, client, frontend);
                    let frame = tagged(&packet.build(), tags);
                    let output = tagged(&packet.between(client, HERE.backend(version)).build(), tags);
                    let (index, len) = (HERE.index(version), frame.len());
                    let step = |moved| {
                        let (at, verdict) = ((Door::Xdp, UPLINK), Verdict::Pass);
                        Step { what: "tagged", at, frame: frame.clone(), verdict, output: output.clone(), moved }
                    };
                    take(rig, [step(begun(index, len)), step(continued(index, len))])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn tagged_fragments_are_translated() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let (client, frontend) = (end(OUTSIDE, version, 40_000), HERE.at_node(version));
            let packet = first(protocol::UDP, client, frontend).payload(&[7; 100]);
            let index = HERE.index(version);
            let there = fragments(&packet.build(), 1, 64);
            let out = fragments(&packet.between(client, HERE.backend(version)).build(), 1, 64);
            for (number, (frame, output)) in there.iter().zip(&out).enumerate() {
                let (frame, output) = (tagged(frame, TAGS[2]), tagged(output, TAGS[2]));
                let moved = if number == 0 { begun(index, frame.len()) } else { continued(index, frame.len()) };
                let (at, verdict) = ((Door::Xdp, UPLINK), Verdict::Pass);
                take(rig, [Step { what: "fragment", at, frame, verdict, output, moved }])?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_must_leave_or_be_answered_is_left_to_tc() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for (port, tags) in (40_000..).zip(TAGS) {
                    let packet = |service: node::Service| {
                        tagged(&first(protocol, end(OUTSIDE, version, port), service.at_node(version)).build(), tags)
                    };
                    let index = THERE.index(version);
                    let begun = format!("left-to-tc=1 service{index}.flows=1 backend{index}.flows=1");
                    let at = (Door::Xdp, UPLINK);
                    take(
                        rig,
                        [
                            Step::untouched("first", at, packet(THERE), &begun),
                            Step::untouched("second", at, packet(THERE), "left-to-tc=1"),
                            Step::untouched("refused", at, packet(EMPTY), "left-to-tc=1"),
                        ],
                    )?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn three_tags_and_tags_at_tc_are_let_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            let frame = first(protocol::TCP, end(OUTSIDE, version, 40_000), HERE.at_node(version)).build();
            let three = tagged(&frame, &[(PROVIDER, 1), (CUSTOMER, 2), (CUSTOMER, 3)]);
            let one = tagged(&frame, TAGS[0]);
            let at = |door| (door, UPLINK);
            take(
                rig,
                [
                    Step::untouched("three", at(Door::Xdp), three, ""),
                    Step::untouched("one", at(Door::Ingress), one.clone(), ""),
                    Step::untouched("one", at(Door::Egress), one.clone(), ""),
                    Step::untouched("nothing behind it", at(Door::Xdp), one[..18].to_vec(), ""),
                ],
            )?;
        }
        Ok(())
    })
}
