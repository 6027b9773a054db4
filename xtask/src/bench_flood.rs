// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench flood`: builds the programs, their wrapper and the bench, and becomes the bench.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{bench::Output, build_ebpf, run, shell};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// First packets of each family, if not four millions.
    #[arg(long, value_name = "N")]
    syns: Option<u32>,
}

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "the bench loads eBPF programs and makes a network namespace: run it as root");
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    shell::run(shell::cargo().args(["build", "--package", "shunt-tests", "--bin", "shunt-bench-flood"]))?;
    let mut command = Command::new(run::built("shunt-bench-flood")?);
    if let Some(syns) = arguments.syns {
        command.arg("--syns").arg(syns.to_string());
    }
    arguments.output.hand_over_to(&mut command)
}
