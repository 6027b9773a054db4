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
pub const SIZES: [u32; 12] = [401, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_537, 131_071, 262_139, 524_287, 655_373];

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
    let contenders = contenders(candidates);
    if contenders.is_empty() { Vec::new() } else { fill(&contenders, table_size(total_weight(&contenders))) }
}

/// Builds a table of a given size, one of [`SIZES`]; see [`build`]. Where it has fewer slots than there are backends, the last
/// of them get none.
#[must_use]
pub fn build_sized(candidates: &[Candidate], size: u32) -> Vec<u32> {
    let contenders = contenders(candidates);
    if contenders.is_empty() { Vec::new() } else { fill(&contenders, size) }
}

/// A backend that gets slots.
struct Contender {
    identity: u64,
    address: Address,
    port: u16,
    index: u32,
    /// Divided by what all weights have in common.
    weight: u64,
}

/// One backend's walk through its permutation of the slots. Apart from its [`Contender`], so that a thousand of them, which
/// take turns, stay in the first-level cache.
struct Walk {
    weight: u64,
    /// Weight saved up; a slot costs the largest weight, so the heaviest backend takes one in every round.
    credit: u64,
    next: u32,
    skip: u32,
    index: u32,
}

impl Walk {
    fn start(contender: &Contender, size: u32) -> Self {
        Self {
            weight: contender.weight,
            credit: 0,
            // The paper's offset and skip, from the two halves of one hash.
            next: hash::scale(contender.identity, size),
            skip: hash::scale(contender.identity << 32, size - 1) + 1,
            index: contender.index,
        }
    }

    /// Whether it may take a slot in this round.
    fn has_turn(&mut self, price: u64) -> bool {
        self.credit += self.weight;
        let is_rich = self.credit >= price;
        if is_rich {
            self.credit -= price;
        }
        is_rich
    }

    /// Goes on to the next slot that is free, and takes it.
    fn probe(&mut self, taken: &mut [u64], size: u32) -> u32 {
        loop {
            let slot = self.next;
            self.step_from(slot, size);
            let (word, bit) = (&mut taken[slot as usize >> 6], 1_u64 << (slot & 63));
            if *word & bit == 0 {
                *word |= bit;
                return slot;
            }
        }
    }

    /// The same slot without looking at those on the way, if just these are free.
    ///
    /// A free slot that is `distance` away comes after `distance / skip` steps, modulo the size, which is prime. That fraction
    /// of the size, in units of 2^-64, is one multiplication. Cutting off what is less moves it by less than `size` units,
    /// and two slots are `2^64 / size` units apart: their order stays.
    fn compute(&mut self, free: &mut Vec<u32>, size: u32) -> u32 {
        let a_step = fraction(inverse(self.skip, size), size);
        let steps = |slot: u32| {
            let distance = if slot >= self.next { slot - self.next } else { slot + size - self.next };
            u64::from(distance).wrapping_mul(a_step)
        };
        let nearest = (0..free.len()).min_by_key(|&position| steps(free[position])).unwrap_or_default();
        let slot = free.swap_remove(nearest);
        self.step_from(slot, size);
        slot
    }

    fn step_from(&mut self, slot: u32, size: u32) {
        self.next = slot + self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

/// What times `number` is 1 modulo a prime, by Euclid's algorithm. `number` is between 1 and the prime.
fn inverse(number: u32, prime: u32) -> u32 {
    let (mut rest, mut next) = (i64::from(prime), i64::from(number));
    let (mut factor, mut next_factor) = (0_i64, 1_i64);
    while next != 0 {
        let quotient = rest / next;
        (rest, next) = (next, rest - quotient * next);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(i64::from(prime)) as u32
}

/// `part / whole`, which is less than 1, in units of 2^-64, rounded down.
const fn fraction(part: u32, whole: u32) -> u64 {
    let (part, whole) = (part as u64, whole as u64);
    let (quotient, rest) = (u64::MAX / whole, u64::MAX % whole + 1);
    part * quotient + part * rest / whole
}

/// So many free slots are computed sooner than they are found. A probe is one of `size / free` until the next of them, and half
/// of all probes are for the last few hundred slots; to compute one costs as much as a probe for each that is free, and an
/// [`inverse`] before that.
fn few(size: u32) -> u32 {
    const HALF_AN_INVERSE_IN_PROBES: u32 = 75;
    (size + HALF_AN_INVERSE_IN_PROBES * HALF_AN_INVERSE_IN_PROBES).isqrt() - HALF_AN_INVERSE_IN_PROBES
}

/// Public constants, not a secret: all nodes must agree. Which slot a flow hits is what the seed keeps secret.
const IDENTITY_KEY: [u64; 2] = [0x6d61_676c_6576_2e31, 0x7368_756e_742e_6465];

/// In the order in which they take turns.
fn contenders(candidates: &[Candidate]) -> Vec<Contender> {
    let divisor = candidates.iter().fold(0, |divisor, candidate| gcd(divisor, u64::from(candidate.weight))).max(1);
    let mut contenders: Vec<Contender> = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0)
        .map(|candidate| {
            let words: [u64; 2] = bytemuck::cast(*candidate.address.words_be());
            Contender {
                identity: hash::siphash13(&IDENTITY_KEY, &[words[0], words[1], u64::from(candidate.port)]),
                address: candidate.address,
                port: candidate.port,
                index: candidate.index,
                weight: u64::from(candidate.weight) / divisor,
            }
        })
        .collect();
    // By hash and not by address: neighbours in the order compete for slots, and the hash has no favourites.
    contenders.sort_unstable_by_key(|contender| (contender.identity, contender.address, contender.port));
    contenders
}

fn total_weight(contenders: &[Contender]) -> u64 {
    contenders.iter().map(|contender| contender.weight).sum()
}

fn fill(contenders: &[Contender], size: u32) -> Vec<u32> {
    let price = contenders.iter().map(|contender| contender.weight).max().unwrap_or(1);
    let mut walks: Vec<Walk> = contenders.iter().map(|contender| Walk::start(contender, size)).collect();
    let mut slots = vec![0; size as usize];
    // The probes for a free slot dominate; one bit per slot keeps them in the first-level cache.
    let mut taken = vec![0_u64; (size as usize).div_ceil(64)];
    let mut free = Vec::new();
    // Where few backends have most of the slots, their own next one is free, more often than not.
    let few = if price * 16 > total_weight(contenders) { 0 } else { few(size) };
    let mut left = size;
    loop {
        for walk in &mut walks {
            if !walk.has_turn(price) {
                continue;
            }
            let slot = if left > few {
                walk.probe(&mut taken, size)
            } else {
                if free.is_empty() {
                    free = zeros(&taken, size);
                }
                walk.compute(&mut free, size)
            };
            slots[slot as usize] = walk.index;
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
}

/// Places of the bits that are not set, of so many.
fn zeros(words: &[u64], count: u32) -> Vec<u32> {
    let mut places = Vec::new();
    for (word, first) in words.iter().zip((0..count).step_by(64)) {
        let mut unset = !word;
        while unset != 0 {
            places.push(first + unset.trailing_zeros());
            unset &= unset - 1;
        }
    }
    places.retain(|place| *place < count);
    places
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

    /// The algorithm as the paper writes it down, but for the weights.
    fn plain(candidates: &[Candidate], size: u32) -> Vec<u32> {
        let contenders = contenders(candidates);
        let mut walks: Vec<Walk> = contenders.iter().map(|contender| Walk::start(contender, size)).collect();
        let price = contenders.iter().map(|contender| contender.weight).max().unwrap();
        let (mut slots, mut left) = (vec![None; size as usize], size);
        loop {
            for walk in &mut walks {
                if !walk.has_turn(price) {
                    continue;
                }
                while slots[walk.next as usize].is_some() {
                    walk.next = (walk.next + walk.skip) % size;
                }
                slots[walk.next as usize] = Some(walk.index);
                left -= 1;
                if left == 0 {
                    return slots.into_iter().flatten().collect();
                }
            }
        }
    }

    #[test]
    fn the_last_slots_are_computed_as_they_would_be_found() {
        for (size, count) in SIZES.into_iter().zip([4, 10, 20, 37, 80, 163, 300, 650, 1300, 2600, 5200, 6553]) {
            for weights in [&[1][..], &[1, 2, 3], &[5, 7, 0]] {
                let weights: Vec<u32> = weights.iter().copied().cycle().take(count).collect();
                let all = candidates(&weights);
                assert_eq!(build_sized(&all, size), plain(&all, size), "{count} backends, {size} slots");
            }
        }
    }

    #[test]
    fn no_weight_no_table() {
        assert!(build(&[]).is_empty());
        assert!(build(&candidates(&[0, 0])).is_empty());
    }

    proptest! {
        #[test]
        fn an_inverse_undoes_a_step(size in prop::sample::select(&SIZES), number in 1..MAX_SLOTS) {
            let number = number % (size - 1) + 1;
            prop_assert_eq!(u64::from(number) * u64::from(inverse(number, size)) % u64::from(size), 1);
        }

        #[test]
        fn fractions_are_rounded_down(size in prop::sample::select(&SIZES), part in 0..MAX_SLOTS) {
            let part = part % size;
            prop_assert_eq!(u128::from(fraction(part, size)), (u128::from(part) << 64) / u128::from(size));
        }

        #[test]
        fn the_order_of_the_backends_does_not_matter(weights in prop::collection::vec(0..5_u32, 1..12), rotation in 0..12_usize) {
            let sorted = candidates(&weights);
            let mut rotated = sorted.clone();
            rotated.rotate_left(rotation % weights.len());
            prop_assert_eq!(build(&sorted), build(&rotated));
        }
    }
}
