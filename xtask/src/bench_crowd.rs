// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench crowd`: builds the agent and the bench, and becomes the bench.

use anyhow::Result;

use crate::{bench::Output, bench_traffic};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// UDP exchanges in a second, if not ten thousand.
    #[arg(long, value_name = "N")]
    exchanges: Option<u32>,
    /// Seconds for which they go on, if not 300.
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// TCP connections that are open at once, if not a hundred thousand.
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
}

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = bench_traffic::prepare("shunt-bench-crowd")?;
    let Arguments { exchanges, seconds, connections, .. } = arguments;
    for (flag, value) in [("--exchanges", exchanges), ("--seconds", seconds), ("--connections", connections)] {
        command.args(value.iter().flat_map(|value| [flag.to_owned(), value.to_string()]));
    }
    arguments.output.hand_over_to(&mut command)
}
