// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs cost the kernel, shown so that growth is seen.

use std::io::{Write, stderr};

use anyhow::{Result, ensure};
use aya::util::KernelVersion;
use shunt_tests::packets::sizes;

/// Half of what kernels since 5.2 allow: another one may count otherwise, and a small change must not be the last.
const HALF: u32 = 500_000;
/// What we allow ourselves, on the kernel that it was set on: others count a little more or less.
const BUDGET: u32 = 20_000;
/// Programs that are allowed more, because few packets come to them.
const ALLOWED_MORE: [(&str, u32); 4] = [
    ("shunt_xdp_rare", 80_000),
    ("shunt_tc_ingress_rare", 80_000),
    ("shunt_tc_egress_rare", 80_000),
    ("shunt_net_rare", 80_000),
];
const DEVELOPMENT: KernelVersion = KernelVersion::new(6, 18, 0);

/// Threads cilium 30266 and 18584: each program is "too large" long before it looks so.
#[test]
fn pitfall_19_programs_stay_far_below_the_verifiers_limit() -> Result<()> {
    let kernel = KernelVersion::current()?;
    let is_ours = kernel >= DEVELOPMENT && kernel < KernelVersion::new(6, 19, 0);
    let budget =
        |name: &str| ALLOWED_MORE.iter().find(|(program, _)| *program == name).map_or(BUDGET, |(_, more)| *more);
    let sizes = sizes()?;
    for size in &sizes {
        // Past libtest's capture: this is to be seen whenever the tests run.
        writeln!(stderr(), "{size}")?;
    }
    for size in &sizes {
        let limit = if is_ours { budget(&size.name) } else { HALF };
        // A kernel that does not count (before 5.16) has at least taken it.
        ensure!(size.verified.is_none_or(|verified| verified < limit), "more than {limit}: {size}");
    }
    Ok(())
}
