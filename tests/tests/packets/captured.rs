// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames as real stacks send them, and the same damaged at random: bits turned, bytes and words that are anything, pieces cut
//! out, doubled, or taken from another frame. What a generator of ours does not think of may stand in them.

use anyhow::{Context, Result, ensure};
use shunt_tests::{
    packets::{
        ETHERNET, Random, Rig, UPLINK,
        node::{self, CLUSTER_IP, pick},
    },
    reference::{Arrival, Door, Outcome, Version, is_sound},
};

use crate::workers::share;

const CAPTURED: &str = include_str!("captured.txt");
/// Rounds over all frames, and damaged ones that come of each frame in a round.
const ROUNDS: usize = 40;
const MUTATIONS: usize = 20;

/// A frame, and whether it comes from the backend.
type Captured = (bool, Vec<u8>);

fn captured() -> Result<Vec<Captured>> {
    let frames = CAPTURED.lines().filter(|line| !line.starts_with('#'));
    frames
        .map(|line| {
            let (mark, digits) = line.split_once(' ').context("a mark and a frame")?;
            let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16);
            let mut bytes = (0..digits.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>()?;
            // As if they had been sent to our device.
            bytes[..ETHERNET.len()].copy_from_slice(&ETHERNET);
            Ok((mark == "<", bytes))
        })
        .collect()
}

/// The ClusterIPs are guarded, and errors are not limited.
fn restart(rig: &mut Rig) -> Result<()> {
    let mut setup = node::setup(&rig.network);
    setup.guarded.extend(Version::BOTH.map(|version| pick(CLUSTER_IP, version)));
    setup.rejects_per_tick = u32::MAX;
    rig.restart(setup)
}

fn try_both(rig: &mut Rig, door: Door, frame: Vec<u8>) -> Result<Option<Outcome>> {
    rig.try_send(&Arrival { door, ifindex: UPLINK, arrived_by: 0, frame, is_trace: false })
}

/// Both doors see the whole conversation, and nothing in it is lost on them but the error about another port.
#[test]
fn captured_conversations_are_translated() -> Result<()> {
    share(2, |rig, piece, (): &mut ()| {
        restart(rig)?;
        let door = [Door::Xdp, Door::Ingress][piece];
        let mut untouched = 0;
        for (number, (is_reply, frame)) in captured()?.into_iter().enumerate() {
            ensure!(is_sound(&frame), "frame {number} as it was recorded");
            let door = if is_reply { Door::Egress } else { door };
            let outcome = try_both(rig, door, frame.clone())?.context("a frame that the kernel takes")?;
            ensure!(is_sound(&outcome.frame), "frame {number}: {outcome}");
            untouched += usize::from(outcome.frame == frame);
        }
        // At XDP pings as well, which TC answers.
        let expected = if door == Door::Xdp { 4 } else { 2 };
        ensure!(untouched == expected, "{untouched} untouched by {door:?}");
        rig.compare_flows()
    })
    .map(drop)
}

#[test]
fn captured_frames_damaged_at_random() -> Result<()> {
    let frames = captured()?;
    share(ROUNDS, |rig, round, (): &mut ()| {
        restart(rig)?;
        let mut random = Random::new(round as u64);
        for (number, (is_reply, frame)) in frames.iter().enumerate() {
            for mutation in 0..MUTATIONS {
                let damaged = damage(&mut random, frame, &frames);
                let door = if *is_reply { Door::Egress } else { random.pick(&Door::IN) };
                try_both(rig, door, damaged)
                    .with_context(|| format!("mutation {mutation} of frame {number} in round {round}"))?;
            }
            let door = if *is_reply { Door::Egress } else { random.pick(&Door::IN) };
            try_both(rig, door, frame.clone()).with_context(|| format!("frame {number} in round {round}"))?;
        }
        rig.compare_flows().with_context(|| format!("round {round}"))
    })
    .map(drop)
}

/// One to three damages.
fn damage(random: &mut Random, frame: &[u8], others: &[Captured]) -> Vec<u8> {
    const IP: usize = 14;
    let mut frame = frame.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(frame.len());
        let len = random.below(frame.len() - at).min(1 + random.below(16));
        match random.below(8) {
            0..2 => frame[at] ^= 1 << random.below(8),
            2 => frame[at] = random.pick(&[0, 1, 4, 6, 17, 44, 58, 60, 0x45, 0x7f, 0x80, 0xff]),
            3 => frame[at..at + len].iter_mut().for_each(|byte| *byte = random.number() as u8),
            4 => drop(frame.drain(at..at + len)),
            5 => {
                let piece = frame[at..at + len].to_vec();
                drop(frame.splice(at..at, piece));
            }
            6 => {
                let (_, other) = &others[random.below(others.len())];
                let end = (at + len).min(other.len());
                if at < end {
                    frame[at..end].copy_from_slice(&other[at..end]);
                }
            }
            _ => frame.truncate(IP.max(at)),
        }
        if frame.len() < IP {
            return frame;
        }
    }
    frame
}
