// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a map can have too little of, and how a plan gets by: what has gone makes room first, then comes what fits.

use crate::{compile::ServiceKey, problem::Problem};

/// In which order a plan adds and removes frontends and source ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The new are there before the old go: no moment without either.
    AddFirst,
    /// The old make room for the new.
    RemoveFirst,
}

/// A map without room for all of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// Some of its ports are not served.
    Services,
    /// Some of its endpoints are not served.
    Backends,
    /// A list of endpoints has no table at all.
    Tables,
    /// A table is smaller than it should be, or other nodes choose otherwise.
    FullTables,
    /// Some of its source ranges are not admitted.
    SourceRanges,
    /// Some of its addresses and ports are not served.
    Frontends,
}

impl Shortage {
    /// Whether all that is asked for is served nevertheless.
    pub const fn is_bearable(self) -> bool {
        matches!(self, Self::FullTables)
    }

    /// For the Service's owner.
    pub fn problem(self, service: &ServiceKey) -> Problem {
        let (cause, flag) = match self {
            Self::Services => ("Service ports, so some of its ports are not served", "--max-services"),
            Self::Backends => ("backends, so it is served by those that fit", "--max-backends"),
            Self::Tables => ("lookup tables, so clients are refused", "--max-table-slots"),
            Self::FullTables => (
                "lookup tables in their full size, so its traffic is spread less evenly than it should be",
                "--max-table-slots",
            ),
            Self::SourceRanges => ("source ranges, so some sources are not admitted", "--max-source-ranges"),
            Self::Frontends => ("frontends, so some of its addresses and ports are not served", "--max-frontends"),
        };
        Problem::new(
            format!("Service {service}"),
            format!("there is not enough room for its {cause}"),
            format!("raise {flag} and restart the agent"),
        )
    }
}
