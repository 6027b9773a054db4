// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets that are not what they should be: they pass as they came, and are counted.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        Rig, UPLINK,
        node::{self, HERE, OUTSIDE, THERE},
        with_rig,
    },
    reference::{Arrival, Door, Verdict, Version},
};

use crate::step::{PROTOCOLS, Step, end, first, take};

const IP: usize = 14;

/// A change to a frame, and the counter that must move.
type Damage = (&'static str, fn(&mut [u8]), &'static str);

const V4: [Damage; 7] = [
    ("a fragment of nothing known", |frame| frame[IP + 7] = 1, "orphan-fragment=1"),
    ("more options than there are bytes", |frame| frame[IP] = 0x4f, "malformed=1"),
    ("a short header", |frame| frame[IP] = 0x44, "malformed=1"),
    ("another version", |frame| frame[IP] = 0x65, "malformed=1"),
    ("longer than the frame", |frame| frame[IP + 3] += 1, "malformed=1"),
    ("too short for its headers", |frame| frame[IP + 3] = 27, "malformed=1"),
    ("no length", |frame| frame[IP + 2..IP + 4].fill(0), "malformed=1"),
];

const V6: [Damage; 4] = [
    ("another version", |frame| frame[IP] = 0x45, "malformed=1"),
    ("longer than the frame", |frame| frame[IP + 5] += 1, "malformed=1"),
    ("too short for its headers", |frame| frame[IP + 5] = 7, "malformed=1"),
    ("no length", |frame| frame[IP + 4..IP + 6].fill(0), "malformed=1"),
];

#[test]
fn a_strange_ip_header_is_counted_and_left_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for (version, damages) in [(Version::V4, &V4[..]), (Version::V6, &V6)] {
            for protocol in PROTOCOLS {
                let whole = first(protocol, end(OUTSIDE, version, 40_000), HERE.at_node(version)).build();
                for &(what, damage, moved) in damages {
                    let mut frame = whole.clone();
                    damage(&mut frame);
                    take(rig, Door::IN.map(|door| Step::untouched(what, (door, UPLINK), frame.clone(), moved)))?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn an_ipv6_packet_to_a_mapped_ipv4_address_meets_no_ipv4_service() -> Result<()> {
    with_rig(node::setup, |rig| {
        for protocol in PROTOCOLS {
            for dst in [HERE.at_cluster_ip(Version::V4), HERE.at_node(Version::V4)] {
                let IpAddr::V4(v4) = dst.ip() else { unreachable!("an IPv4 Service") };
                let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), dst.port());
                let frame = first(protocol, end(OUTSIDE, Version::V6, 40_000), mapped).build();
                take(rig, Door::IN.map(|door| Step::untouched("mapped", (door, UPLINK), frame.clone(), "")))?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_strange_layer_4_header_is_counted_and_left_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for (version, l4) in [(Version::V4, IP + 20), (Version::V6, IP + 40)] {
            for (protocol, at, value) in [(protocol::TCP, 12, 0x4f), (protocol::TCP, 12, 0), (protocol::UDP, 5, 7)] {
                let mut frame = first(protocol, end(OUTSIDE, version, 40_000), HERE.at_node(version)).build();
                frame[l4 + at] = value;
                take(
                    rig,
                    Door::IN.map(|door| Step::untouched("layer 4", (door, UPLINK), frame.clone(), "malformed=1")),
                )?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_truncated_packet_is_left_alone_wherever_it_ends() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for (service, is_begun) in [(HERE, false), (HERE, true), (THERE, false), (THERE, true)] {
                    let packet = first(protocol, end(OUTSIDE, version, 40_000), service.at_node(version));
                    let frame = packet.payload(b"payload").build();
                    if is_begun {
                        crate::step::send(rig, (Door::Ingress, UPLINK), frame.clone())?;
                    }
                    truncate_everywhere(rig, version, &frame)?;
                }
            }
        }
        rig.compare_flows()
    })
}

/// From the bare Ethernet header on. For TC the kernel tests nothing shorter than an IP header.
fn truncate_everywhere(rig: &mut Rig, version: Version, frame: &[u8]) -> Result<()> {
    let l4 = IP + if version == Version::V4 { 20 } else { 40 };
    for door in Door::ALL {
        for len in IP..frame.len() {
            let arrival =
                Arrival { door, ifindex: UPLINK, arrived_by: 0, frame: frame[..len].to_vec(), is_trace: false };
            let Some(outcome) = rig.try_send(&arrival)? else {
                ensure!(door != Door::Xdp && len < l4, "{door:?}: the kernel won't test {len} bytes");
                continue;
            };
            let moved = outcome.moved.to_string();
            let is_harmless = outcome.verdict == Verdict::Pass && outcome.frame == arrival.frame;
            ensure!(is_harmless && (moved.is_empty() || moved == "malformed=1"), "{door:?}, {len} bytes: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn padding_behind_the_packet_stays() -> Result<()> {
    with_rig(node::setup, |rig| {
        for (version, door) in [(Version::V4, Door::Xdp), (Version::V4, Door::Ingress), (Version::V6, Door::Xdp)] {
            let client = end(OUTSIDE, version, if door == Door::Xdp { 40_000 } else { 40_001 });
            let packet = first(protocol::TCP, client, HERE.at_node(version));
            let pad = |frame: Vec<u8>| [&frame[..], b"Ethernet pads to sixty bytes"].concat();
            let output = pad(packet.clone().between(client, HERE.backend(version)).build());
            let moved = crate::step::begun(HERE.index(version), output.len());
            let frame = pad(packet.build());
            take(rig, [Step { what: "padded", at: (door, UPLINK), frame, verdict: Verdict::Pass, output, moved }])?;
        }
        Ok(())
    })
}

#[test]
fn a_wrong_checksum_stays_wrong() -> Result<()> {
    with_rig(node::setup, |rig| {
        for version in Version::BOTH {
            for protocol in PROTOCOLS {
                for door in Door::IN {
                    let client = end(OUTSIDE, version, if door == Door::Xdp { 40_000 } else { 40_001 });
                    let mut frame = first(protocol, client, HERE.at_node(version)).payload(b"damaged").build();
                    *frame.last_mut().expect("a payload") ^= 0x10;
                    if version == Version::V4 {
                        frame[IP + 4] ^= 0x20;
                    }
                    let outcome = crate::step::send(rig, (door, UPLINK), frame)?;
                    ensure!(!shunt_tests::reference::is_sound(&outcome.frame), "{version:?} {protocol} {door:?}");
                    // Mended, it is sound again: nothing else is wrong with it.
                    let mut mended = outcome.frame;
                    *mended.last_mut().expect("a payload") ^= 0x10;
                    if version == Version::V4 {
                        mended[IP + 4] ^= 0x20;
                    }
                    ensure!(shunt_tests::reference::is_sound(&mended), "{version:?} {protocol} {door:?}");
                }
            }
        }
        Ok(())
    })
}
