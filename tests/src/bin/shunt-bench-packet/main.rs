// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nanoseconds per packet of the programs themselves; `cargo xtask bench packet` builds and runs it. Every figure is a
//! ratio to a floor of the same run.

#![deny(unsafe_code)]

mod case;
mod measure;
mod report;
mod scene;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use shunt_tests::bench::{Output, conclude};

#[derive(Parser)]
#[command(name = "cargo xtask bench packet", about = "Nanoseconds per packet of the programs themselves.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let report = measure::measure(arguments.rounds)?;
    arguments.output.write(&report)
}
