// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Maglev lookup tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4), with weights. For the agent: the programs only read slots.
//!
//! A table depends on nothing but the backends' addresses, ports and weights, so that every node builds the same one.

use alloc::{vec, vec::Vec};

use crate::{address::Address, hash};

/// Slots per unit of weight below which no table goes, as long as the ladder lasts.
pub const SLOTS_PER_WEIGHT: u64 = 100;

/// Table sizes: primes about a factor of two apart. Few steps, because a table that changes its size moves most flows
/// that have no entry; the lowest is for four backends, which most Services don't pass.
const SIZES: [u32; 12] = [401, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_537, 131_071, 262_139, 524_287, 655_373];

/// The largest table. More weight than a hundredth of it gets fewer slots per unit.
pub const MAX_SLOTS: u32 = SIZES[SIZES.len() - 1];

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Address of the endpoint.
    pub address: Address,
    /// Port of the endpoint, host byte order.
    pub port: u16,
    /// Share of new flows relative to the others; 0 gets none.
    pub weight: u32,
    /// What the slots shall hold.
    pub index: u32,
}

/// The smallest size of the ladder that gives every unit of weight its slots.
#[must_use]
pub fn table_size(total_weight: u64) -> u32 {
    SIZES.into_iter().find(|&size| u64::from(size) >= total_weight * SLOTS_PER_WEIGHT).unwrap_or(MAX_SLOTS)
}

/// Builds the table for a set of backends. Empty if no backend has weight.
///
/// The result does not depend on the order of `candidates`. Weights are first divided by their greatest common divisor.
#[must_use]
pub fn build(candidates: &[Candidate]) -> Vec<u32> {
    let mut turns = turns(candidates);
    let total_weight: u64 = turns.iter().map(|turn| turn.weight).sum();
    if total_weight == 0 {
        return Vec::new();
    }
    let size = table_size(total_weight);
    for turn in &mut turns {
        turn.start(size);
    }
    fill(&mut turns, size)
}

/// Builds a table of a given size, for comparing sizes; see [`build`].
#[must_use]
pub fn build_sized(candidates: &[Candidate], size: u32) -> Vec<u32> {
    let mut turns = turns(candidates);
    if turns.is_empty() {
        return Vec::new();
    }
    for turn in &mut turns {
        turn.start(size);
    }
    fill(&mut turns, size)
}

/// One backend's walk through its permutation of the slots.
struct Turn {
    identity: u64,
    address: Address,
    port: u16,
    index: u32,
    weight: u64,
    /// Weight saved up; a slot costs the largest weight, so the heaviest backend takes one in every round.
    credit: u64,
    next: u32,
    skip: u32,
}

impl Turn {
    fn start(&mut self, size: u32) {
        // The paper's offset and skip, from the two halves of one hash.
        self.next = hash::scale(self.identity, size);
        self.skip = hash::scale(self.identity << 32, size - 1) + 1;
    }
}

/// Public constants, not a secret: all nodes must agree. Which slot a flow hits is what the seed keeps secret.
const IDENTITY_KEY: [u64; 2] = [0x6d61_676c_6576_2e31, 0x7368_756e_742e_6465];

fn turns(candidates: &[Candidate]) -> Vec<Turn> {
    let divisor = candidates.iter().fold(0, |divisor, candidate| gcd(divisor, u64::from(candidate.weight))).max(1);
    let mut turns: Vec<Turn> = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0)
        .map(|candidate| {
            let words: [u64; 2] = bytemuck::cast(*candidate.address.words_be());
            Turn {
                identity: hash::siphash13(&IDENTITY_KEY, &[words[0], words[1], u64::from(candidate.port)]),
                address: candidate.address,
                port: candidate.port,
                index: candidate.index,
                weight: u64::from(candidate.weight) / divisor,
                credit: 0,
                next: 0,
                skip: 0,
            }
        })
        .collect();
    // By hash and not by address: neighbours in the order compete for slots, and the hash has no favourites.
    turns.sort_unstable_by_key(|turn| (turn.identity, turn.address, turn.port));
    turns
}

fn fill(turns: &mut [Turn], size: u32) -> Vec<u32> {
    let price = turns.iter().map(|turn| turn.weight).max().unwrap_or(1);
    let mut slots = vec![0; size as usize];
    // The probes for a free slot dominate; one bit per slot keeps them in the first-level cache.
    let mut taken = vec![0_u64; (size as usize).div_ceil(64)];
    let mut left = size;
    loop {
        for turn in &mut *turns {
            turn.credit += turn.weight;
            if turn.credit < price {
                continue;
            }
            turn.credit -= price;
            let slot = loop {
                let slot = turn.next as usize;
                turn.next += turn.skip;
                if turn.next >= size {
                    turn.next -= size;
                }
                let bit = 1_u64 << (slot & 63);
                if taken[slot >> 6] & bit == 0 {
                    taken[slot >> 6] |= bit;
                    break slot;
                }
            };
            slots[slot] = turn.index;
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        weights
            .iter()
            .enumerate()
            .map(|(index, &weight)| Candidate {
                address: Ipv4Addr::from(0x0a00_0001 + index as u32).into(),
                port: 8080,
                weight,
                index: index as u32,
            })
            .collect()
    }

    fn shares(slots: &[u32]) -> BTreeMap<u32, u64> {
        let mut shares = BTreeMap::new();
        for &slot in slots {
            *shares.entry(slot).or_default() += 1;
        }
        shares
    }

    fn moved(before: &[u32], after: &[u32], gone: u32) -> f64 {
        let moved = before.iter().zip(after).filter(|(b, a)| **b != gone && a != b).count();
        moved as f64 / before.len() as f64
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
    }

    #[test]
    fn three_backends_take_less_than_two_kibibytes() {
        assert_eq!(build(&candidates(&[1, 1, 1])).len(), 401);
    }

    #[test]
    fn equal_backends_differ_by_one_slot() {
        for count in [1, 2, 3, 10, 100, 1000] {
            let shares = shares(&build(&candidates(&vec![1; count])));
            assert_eq!(shares.len(), count);
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert!(most - least <= 1, "{count} backends: {least} to {most} slots");
        }
    }

    #[test]
    fn weights_are_shares_of_the_slots() {
        let slots = build(&candidates(&[90, 10, 0, 50]));
        let shares = shares(&slots);
        assert_eq!(shares.get(&2), None);
        for (index, weight) in [(0, 90), (1, 10), (3, 50)] {
            let due = slots.len() as f64 * f64::from(weight) / 150.0;
            assert!((shares[&index] as f64 - due).abs() <= 2.0, "backend {index}: {} slots, due {due}", shares[&index]);
        }
    }

    #[test]
    fn common_factors_of_weights_do_not_matter() {
        assert_eq!(build(&candidates(&[100, 100, 100])), build(&candidates(&[1, 1, 1])));
    }

    #[test]
    fn few_flows_move_when_a_backend_goes() {
        for (count, size) in [(10, 1021), (100, 16_381), (1000, 131_071)] {
            let all = candidates(&vec![1; count]);
            let table = build_sized(&all, size);
            // The mean over several that go: a single one may be lucky or not.
            let mean = (0..10)
                .map(|tenth| {
                    let gone = tenth * count / 10;
                    let mut fewer = all.clone();
                    fewer.remove(gone);
                    moved(&table, &build_sized(&fewer, size), gone as u32)
                })
                .sum::<f64>()
                / 10.0;
            assert!(mean < 0.03, "{count} backends: {mean}");
        }
    }

    #[test]
    fn no_weight_no_table() {
        assert!(build(&[]).is_empty());
        assert!(build(&candidates(&[0, 0])).is_empty());
    }

    proptest! {
        #[test]
        fn the_order_of_the_backends_does_not_matter(weights in prop::collection::vec(0..5_u32, 1..12), rotation in 0..12_usize) {
            let sorted = candidates(&weights);
            let mut rotated = sorted.clone();
            rotated.rotate_left(rotation % weights.len());
            prop_assert_eq!(build(&sorted), build(&rotated));
        }
    }
}
