// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the weights of the parts of a split to weights of backends, small enough for a lookup table.

use std::collections::BTreeMap;

use super::BackendKey;

/// Sum of weights that is spent at most on being exact, unless there are many backends: each unit takes a hundred slots,
/// and 32,749 slots are 128 KiB.
const MAX_EXACT: u64 = 327;
/// Units for each backend that are spent otherwise.
const UNITS_PER_BACKEND: u64 = 10;
/// Units that are spent on a small share of many backends, which else would get too much: as many as the largest table
/// has room for.
const MAX_UNITS: u64 = 6_500;

/// Divides each part's weight evenly over its usable backends. A part without any gives its share to the others; one of
/// weight 0 gets nothing.
///
/// One part alone, whatever its weight, gives every backend the weight 1 (rule 26).
pub(super) fn share(parts: &[(u32, &[BackendKey])]) -> BTreeMap<BackendKey, u32> {
    let used: Vec<_> = parts.iter().filter(|(weight, backends)| *weight > 0 && !backends.is_empty()).collect();
    let common = used.iter().try_fold(1, |common, (_, backends)| lcm(common, backends.len() as u64));
    let exact = |common: u64, weight: u32, len: usize| u64::from(weight) * (common / len as u64);
    let divisor = common.map_or(1, |common| {
        used.iter().fold(0, |divisor, (weight, backends)| gcd(divisor, exact(common, *weight, backends.len()))).max(1)
    });
    let total_weight: u64 = used.iter().map(|(weight, _)| u64::from(*weight)).sum();
    let count: u64 = used.iter().map(|(_, backends)| backends.len() as u64).sum();
    let least =
        used.iter().map(|(weight, backends)| (2 * total_weight * backends.len() as u64) / u64::from(*weight)).max();
    let units = MAX_EXACT.max(count * UNITS_PER_BACKEND).max(least.unwrap_or(0).min(MAX_UNITS));
    let is_small = common.is_some_and(|common| total_weight * common / divisor <= units);

    let mut shares = BTreeMap::new();
    for (weight, backends) in &used {
        let each = match common.filter(|_| is_small) {
            Some(common) => exact(common, *weight, backends.len()) / divisor,
            None => rounded(units * u64::from(*weight), total_weight * backends.len() as u64).max(1),
        };
        for backend in *backends {
            // The sum of all is at most a few thousand, or ten for each backend.
            *shares.entry(*backend).or_default() += each as u32;
        }
    }
    shares
}

/// `None` where it is too large to be of use.
fn lcm(a: u64, b: u64) -> Option<u64> {
    (a / gcd(a, b)).checked_mul(b).filter(|&lcm| lcm <= u64::from(u32::MAX))
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

const fn rounded(dividend: u64, divisor: u64) -> u64 {
    (dividend + divisor / 2) / divisor
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn backends(part: u8, count: usize) -> Vec<BackendKey> {
        let key = |last: usize| BackendKey {
            address: Ipv4Addr::new(10, part, (last >> 8) as u8, last as u8).into(),
            port: 80,
        };
        (0..count).map(key).collect()
    }

    /// The weight of each backend of each part, given the parts' weights and sizes; 0 where it has none.
    fn shares(parts: &[(u32, usize)]) -> Vec<u32> {
        let lists: Vec<_> = (0..).zip(parts).map(|(part, (_, count))| backends(part, *count)).collect();
        let given: Vec<_> = parts.iter().zip(&lists).map(|((weight, _), list)| (*weight, list.as_slice())).collect();
        let shares = share(&given);
        for list in &lists {
            assert!(list.iter().all(|backend| shares.get(backend) == shares.get(&list[0])));
        }
        lists.iter().map(|list| list.first().and_then(|backend| shares.get(backend)).copied().unwrap_or(0)).collect()
    }

    #[test]
    fn rule_26_one_part_alone_counts_every_backend_alike() {
        assert_eq!(shares(&[(1, 7)]), [1]);
        assert_eq!(shares(&[(90, 7), (10, 0)]), [1, 0]);
        assert_eq!(shares(&[]), [] as [u32; 0]);
    }

    #[test]
    fn split_weights_are_divided_evenly_over_the_backends_of_a_part() {
        assert_eq!(shares(&[(90, 3), (10, 2)]), [6, 1], "30 and 5 percent each");
        assert_eq!(shares(&[(50, 1), (50, 4)]), [4, 1]);
        assert_eq!(shares(&[(90, 7), (10, 3)]), [27, 7], "the exact 90 / 7 and 10 / 3");
    }

    #[test]
    fn a_small_share_of_a_split_stays_small_for_many_backends() {
        let [stable, canary] = shares(&[(99, 3), (1, 60)])[..] else { unreachable!() };
        let percent = 100.0 * f64::from(60 * canary) / f64::from(60 * canary + 3 * stable);
        assert!((0.9..1.1).contains(&percent), "{percent} %");
    }

    #[test]
    fn split_weight_0_drains_and_an_empty_part_gives_its_share_away() {
        assert_eq!(shares(&[(100, 2), (0, 2)]), [1, 0]);
        assert_eq!(shares(&[(60, 1), (20, 0), (20, 1)]), [3, 0, 1]);
        assert_eq!(shares(&[(100, 0), (0, 2)]), [0, 0]);
    }

    #[test]
    fn a_backend_of_two_parts_of_a_split_gets_both_shares() {
        let list = backends(0, 1);
        assert_eq!(
            share(&[(3, &list), (1, &list), (4, &backends(1, 1))]),
            [(list[0], 4), (backends(1, 1)[0], 4)].into()
        );
    }

    proptest! {
        /// No part gets much more or less than it should, and tables stay small.
        #[test]
        fn split_shares_are_close_and_small(parts in prop::collection::vec((1_u32..=100, 1_usize..60), 1..5)) {
            let total: u64 = parts.iter().map(|(weight, _)| u64::from(*weight)).sum();
            let units: Vec<u64> =
                shares(&parts).iter().zip(&parts).map(|(each, (_, count))| u64::from(*each) * *count as u64).collect();
            let sum: u64 = units.iter().sum();
            let count: usize = parts.iter().map(|(_, count)| count).sum();
            prop_assert!(sum <= 2 * MAX_UNITS.max(UNITS_PER_BACKEND * count as u64), "{sum} units");
            for (units, (weight, count)) in units.into_iter().zip(&parts) {
                let (got, wanted) = (units as f64 / sum as f64, f64::from(*weight) / total as f64);
                // Half a unit for each backend of this part and of the others.
                prop_assert!((got - wanted).abs() <= 0.05 + *count as f64 / sum as f64, "{got} for {wanted}");
            }
        }
    }
}
