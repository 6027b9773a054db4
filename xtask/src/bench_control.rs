// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench control`: builds agent and bench for speed, and becomes the bench.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{bench::Output, build_ebpf, shell};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
}

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "the bench makes maps and a network namespace: run it as root");
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    // Together, so that what both share is built once. The agent stands beside the bench, which starts it.
    let packages =
        ["--package", "lb-agent", "--package", "shunt-tests", "--bin", "lb-agent", "--bin", "shunt-bench-control"];
    shell::run(shell::cargo().args(["build", "--release"]).args(packages))?;
    let bench = shell::root().join("target/release/shunt-bench-control");
    let mut command = Command::new(&bench);
    arguments.output.hand_over_to(&mut command)
}
