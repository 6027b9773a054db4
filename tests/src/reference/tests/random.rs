// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random packets of all kinds through the model alone, whatever the programs can do by now.

use std::collections::BTreeSet;

use lb_common::verdict::Reason;

use super::{Model, NOW, Now, is_sound};
use crate::packets::{Network, Random};

/// Reasons that are the kernel's, and not the model's.
const IMPOSSIBLE: [Reason; 7] = [
    Reason::RejectFailed,
    Reason::FlowInsertFailed,
    Reason::RewriteFailed,
    Reason::MapMissing,
    Reason::RouteRefuses,
    Reason::ForwardingOff,
    Reason::RouteWraps,
];
/// Of sockets.
const NEVER: [Reason; 1] = [Reason::LoopbackSource];

#[test]
fn random_packets_keep_their_checksums_and_meet_every_reason() {
    let network = Network::plan();
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut model = Model::new(random.setup(&network));
        for number in 0..1000 {
            if random.chance(2) {
                random.change(&mut model.setup);
            }
            let arrival = random.arrival(&model);
            let outcome = model.step(&arrival, Now { tick: NOW.tick + number / 20, jiffy: NOW.jiffy + 13 * number });
            let stays_sound = !is_sound(&arrival.frame) || outcome.frame == arrival.frame || is_sound(&outcome.frame);
            assert!(stays_sound, "packet {number} of {seed}: {arrival:02x?}\n{outcome}");
            seen.extend(outcome.moved.reasons.keys().copied());
        }
    }
    let missed = Reason::ALL
        .iter()
        .filter(|reason| !seen.contains(reason.as_str()) && !IMPOSSIBLE.contains(reason) && !NEVER.contains(reason));
    assert_eq!(missed.collect::<Vec<_>>(), Vec::<&Reason>::new());
}
