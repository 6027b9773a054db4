// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures of several rounds beside a floor of the same rounds.

use serde::Serialize;

/// One quantity of one way over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Median over the rounds.
    pub median: f64,
    /// Least of the rounds.
    pub min: f64,
    /// Most of them.
    pub max: f64,
    /// Median of the rounds' ratios to the floor of the same round.
    pub ratio: f64,
}

impl Comparison {
    /// Of values and floors by round, as many of one as of the other.
    #[must_use]
    pub fn new(values: &[f64], floors: &[f64]) -> Self {
        Self {
            median: median(values.to_vec()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ratio: median(values.iter().zip(floors).map(|(value, floor)| value / floor).collect()),
        }
    }
}

/// The middle one.
///
/// # Panics
/// Without any.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[half - 1], values[half]) } else { values[half] }
}

/// The value of sorted ones that so large a share is not greater than.
///
/// # Panics
/// Without any.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!([0.01, 0.5, 0.99].map(|share| quantile(&values, share) as u32), [1, 50, 99]);
    }

    #[test]
    fn a_ratio_is_that_of_each_round() {
        let comparison = Comparison::new(&[2.0, 30.0, 4.0], &[1.0, 10.0, 4.0]);
        assert!((comparison.median - 4.0).abs() < 1e-9 && (comparison.ratio - 2.0).abs() < 1e-9, "{comparison:?}");
        assert!((comparison.min - 2.0).abs() < 1e-9 && (comparison.max - 30.0).abs() < 1e-9);
    }
}
