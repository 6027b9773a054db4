// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench`: builds what is measured, and becomes the bench.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{build_ebpf, run, shell};

#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure and how, for the bench itself: `packet --rounds 21 --json results.json`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "the bench makes network namespaces and loads eBPF programs: run it as root");
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    shell::run(shell::cargo().args(["build", "--package", "shunt-tests", "--bin", "shunt-bench"]))?;
    let bench = run::built("shunt-bench")?;
    let error = Command::new(&bench).args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("can't start {}", bench.display()))
}
