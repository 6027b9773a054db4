// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a lookup table takes to build, without anything around it.

use std::{hint::black_box, net::Ipv4Addr, time::Instant};

use anyhow::Result;
use lb_common::maglev::{self, Candidate};

use crate::spread::Spread;

const ROUNDS: u32 = 31;

/// Builds a table of that size for so many backends, again and again.
pub fn measure(backends: u32, slots: u32) -> Result<Spread> {
    let candidate = |index: u32| Candidate {
        address: Ipv4Addr::from(0x0a00_0000 + index).into(),
        port: 8080,
        weight: 1,
        index: index + 1,
    };
    let candidates: Vec<_> = (0..backends).map(candidate).collect();
    let mut spread = Spread::recorder()?;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        black_box(maglev::build_sized(black_box(&candidates), slots));
        spread.record(start.elapsed());
    }
    Ok(spread.finish())
}
