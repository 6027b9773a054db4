// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs cost the kernel, shown so that growth is seen.

use std::io::{Write, stderr};

use anyhow::{Result, ensure};
use shunt_tests::packets::Object;

/// Half of what the kernel allows (since 5.2).
const VERIFIED: u32 = 500_000;

#[test]
fn programs_stay_far_below_the_verifiers_limit() -> Result<()> {
    for size in Object::load(&[])?.sizes()? {
        // Past libtest's capture: this is to be seen whenever the tests run.
        writeln!(stderr(), "{size}")?;
        ensure!(size.verified < VERIFIED, "{size}");
    }
    Ok(())
}
