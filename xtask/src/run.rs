// SPDX-License-Identifier: MIT OR Apache-2.0
//! `run -- ARGS`: the agent, freshly built, on this machine.

use std::{env, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{build_ebpf, shell};

#[derive(clap::Args)]
pub struct Arguments {
    /// Compile the programs' debug log in.
    #[arg(long)]
    log: bool,
    /// Arguments of the agent, after `--`: for instance `run --source dir:manifests/sample`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds the programs and the agent, and becomes the agent: signals reach it, and its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    let agent = build_agent(arguments.log)?;
    let error = Command::new(&agent).args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("can't start {}", agent.display()))
}

/// Builds the programs and the agent that embeds them, and says where the agent is.
fn build_agent(log: bool) -> Result<PathBuf> {
    build_ebpf::build(&build_ebpf::Arguments { log, ..Default::default() })?;
    shell::run(shell::cargo().args(["build", "--package", "lb-agent"]))?;
    built("lb-agent")
}

/// Where cargo has put a program: with us, who were built the same way.
pub fn built(program: &str) -> Result<PathBuf> {
    Ok(env::current_exe().context("can't find our own program")?.with_file_name(program))
}
