// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench follow`: builds the programs, the agent and the bench, and becomes the bench.

use anyhow::Result;

use crate::{bench::Output, bench_traffic};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Changes for each kind of client, if not a hundred.
    #[arg(long, value_name = "N")]
    changes: Option<u32>,
}

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = bench_traffic::prepare("shunt-bench-follow")?;
    if let Some(changes) = arguments.changes {
        command.arg("--changes").arg(changes.to_string());
    }
    arguments.output.hand_over_to(&mut command)
}
