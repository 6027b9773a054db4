// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a flood of first packets leaves of the flows that live, with maps as large as they are by default; `cargo xtask bench
//! flood` builds and runs it. It fails where less is left than shall be.

#![deny(unsafe_code)]

mod flood;
mod living;
mod report;
mod scene;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use shunt_tests::{
    bench::{Output, conclude},
    reference::Version,
};

use crate::{flood::Plan, report::Report};

#[derive(Parser)]
#[command(name = "cargo xtask bench flood", about = "Established flows that survive a flood of SYNs.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Established flows, half TCP and half UDP.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..=20_000))]
    flows: u32,
    /// SYNs of each family that floods, each of another flow.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(2..=1 << 22))]
    syns: u32,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let (flows, syns) = (arguments.flows, arguments.syns);
    let (few, many) = (61_000..=65_535, 32_768..=65_535);
    let plan = |name, versions, source_ports| Plan { name, versions, flows, syns, source_ports };
    let plans = [
        plan("IPv4", &[Version::V4], few.clone()),
        plan("IPv6", &[Version::V6], few.clone()),
        plan("IPv4 and IPv6", &Version::BOTH, few),
        plan("IPv4, 32,768 source ports", &[Version::V4], many),
    ];
    let rows = plans.iter().map(flood::measure).collect::<Result<_>>()?;
    let report = Report { flows, syns, rows };
    arguments.output.write(&report)?;
    ensure!(report.is_met(), "too few flows have survived");
    Ok(())
}
