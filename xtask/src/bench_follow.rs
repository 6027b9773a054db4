// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench follow`: builds the programs, the agent and the bench, and becomes the bench.

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
    /// Changes for each kind of client, if not a hundred.
    #[arg(long, value_name = "N")]
    changes: Option<u32>,
}

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "the bench loads eBPF programs and makes network namespaces: run it as root");
    packages::ensure(&PACKAGES, "run the bench's servers and clients")?;
    bench_traffic::build()?;
    let mut command = Command::new(run::built("shunt-bench-follow")?);
    if let Some(changes) = arguments.changes {
        command.arg("--changes").arg(changes.to_string());
    }
    arguments.output.hand_over_to(&mut command)
}
