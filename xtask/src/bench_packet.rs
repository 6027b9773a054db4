// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench packet`: builds the programs, their wrapper and the bench, of another revision as well if asked, and becomes the bench.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{against, bench::Output, build_ebpf, run, shell};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 11)]
    rounds: u32,
    /// SYNs of the flood.
    #[arg(long, default_value_t = 4_000_000)]
    syns: u32,
    /// Measure only rows whose name contains this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Compare with another revision, which takes turns with this tree: of git, for instance e6b8b95.
    #[arg(long, value_name = "REVISION")]
    against: Option<String>,
}

/// Builds everything and becomes the bench: its exit status is ours. What is measured runs in the kernel, so the bench
/// itself needs no release build.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "the bench loads eBPF programs and makes a network namespace: run it as root");
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    shell::run(shell::cargo().args(["build", "--package", "shunt-tests", "--bin", "shunt-bench-packet"]))?;
    let bench = run::built("shunt-bench-packet")?;
    let mut command = Command::new(&bench);
    command.arg("--rounds").arg(arguments.rounds.to_string()).arg("--syns").arg(arguments.syns.to_string());
    command.arg("--only").arg(&arguments.only);
    if let Some(revision) = &arguments.against {
        let built = against::build(revision)?;
        command.arg("--against").arg(built.bench).arg("--revision").arg(built.revision);
    }
    arguments.output.hand_over_to(&mut command)
}
