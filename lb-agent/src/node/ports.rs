// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of ports, and the ports for source translation.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use lb_common::config;

/// Ports, first and last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortRange {
    /// Whether the port is in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        self.as_range().contains(&port)
    }

    /// All of them.
    #[must_use]
    pub fn as_range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Whether both have a port.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Text that is no range of ports.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a range of ports such as 61000-65535")]
pub struct PortRangeError {
    text: String,
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first > 0 && first <= last).then_some(Self { first, last })
        };
        parse().ok_or_else(|| PortRangeError { text: text.into() })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The ports for source translation: one range, or two that have no port in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePorts {
    first: PortRange,
    second: Option<PortRange>,
}

impl SourcePorts {
    /// The ranges.
    pub fn ranges(&self) -> impl Iterator<Item = PortRange> {
        [self.first].into_iter().chain(self.second)
    }

    /// Whether a port is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.ranges().any(|range| range.contains(port))
    }

    /// As the programs take them.
    #[must_use]
    pub fn to_config(self) -> [config::PortRange; 2] {
        let range = |PortRange { first, last }| config::PortRange { first, last };
        [range(self.first), self.second.map_or_else(config::PortRange::default, range)]
    }
}

/// Text that does not name ports for source translation.
#[derive(Debug, thiserror::Error)]
pub enum SourcePortsError {
    /// A part is no range.
    #[error(transparent)]
    NoRange(#[from] PortRangeError),
    /// More than the programs look at.
    #[error("{text:?} has more than two ranges of ports")]
    TooMany {
        /// What was given.
        text: String,
    },
    /// A port stands twice.
    #[error("the ranges {first} and {second} overlap")]
    Overlap {
        /// One.
        first: PortRange,
        /// The other.
        second: PortRange,
    },
}

impl FromStr for SourcePorts {
    type Err = SourcePortsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ranges = text.split(',').map(|range| range.trim().parse()).collect::<Result<Vec<PortRange>, _>>()?;
        match ranges[..] {
            [first] => Ok(Self { first, second: None }),
            [first, second] if first.overlaps(second) => Err(SourcePortsError::Overlap { first, second }),
            [first, second] => Ok(Self { first, second: Some(second) }),
            _ => Err(SourcePortsError::TooMany { text: text.into() }),
        }
    }
}

impl fmt::Display for SourcePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.second.map_or(Ok(()), |second| write!(f, ",{second}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports() {
        assert_eq!("61000-65535".parse::<PortRange>().unwrap(), PortRange { first: 61_000, last: 65_535 });
        for bad in ["", "61000", "5-4", "0-9", "1-70000", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn source_ports_are_one_range_or_two() {
        let both: SourcePorts = "10240-29999, 61000-65535".parse().unwrap();
        assert_eq!(both.to_string(), "10240-29999,61000-65535");
        assert_eq!(
            [10_239, 10_240, 29_999, 30_000, 61_000].map(|port| both.contains(port)),
            [false, true, true, false, true]
        );
        assert_eq!(both.to_config().map(config::PortRange::len), [19_760, 4_536]);
        let one: SourcePorts = "61000-65535".parse().unwrap();
        assert_eq!(one.to_config().map(config::PortRange::len), [4_536, 0]);
        for (bad, cause) in [
            ("61000", "is not a range of ports"),
            ("1-2,", "is not a range of ports"),
            ("1-2,3-4,5-6", "more than two"),
            ("1000-2000,2000-3000", "1000-2000 and 2000-3000 overlap"),
        ] {
            let error = bad.parse::<SourcePorts>().unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
    }
}
