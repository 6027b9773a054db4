// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench crowd`: builds the agent and the bench, and becomes the bench.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{
    bench::Output,
    bench_traffic::{self, PACKAGES},
    packages, run, shell,
};

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
    ensure!(shell::is_root(), "the bench loads eBPF programs and makes network namespaces: run it as root");
    packages::ensure(&PACKAGES, "run the bench's servers and clients")?;
    bench_traffic::build()?;
    let mut command = Command::new(run::built("shunt-bench-crowd")?);
    let Arguments { exchanges, seconds, connections, .. } = arguments;
    for (flag, value) in [("--exchanges", exchanges), ("--seconds", seconds), ("--connections", connections)] {
        command.args(value.iter().flat_map(|value| [flag.to_owned(), value.to_string()]));
    }
    arguments.output.hand_over_to(&mut command)
}
