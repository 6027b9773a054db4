// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench connect` and `bench flow`: builds the programs, the agent and the bench, and becomes the bench.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{bench::Output, build_ebpf, packages, run, shell};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 11)]
    rounds: u32,
    /// `connect` alone: numbers of Services, separated by commas.
    #[arg(long, value_name = "N,..")]
    services: Option<String>,
}

/// What the benches run: programs' packages on Debian and Ubuntu.
const PACKAGES: [&str; 8] =
    ["iproute2", "nginx-light", "dnsmasq-base", "iperf3", "wrk", "ethtool", "nftables", "iptables"];

/// Builds everything and becomes the bench: its exit status is ours.
pub fn run(bench: &str, arguments: &Arguments) -> Result<()> {
    let mut command = prepare(bench)?;
    command.arg("--rounds").arg(arguments.rounds.to_string());
    if let Some(services) = &arguments.services {
        command.arg("--services").arg(services);
    }
    arguments.output.hand_over_to(&mut command)
}

/// Builds all that a bench with real traffic runs, and gives the command that starts it.
pub fn prepare(bench: &str) -> Result<Command> {
    ensure!(shell::is_root(), "the bench loads eBPF programs and makes network namespaces: run it as root");
    packages::ensure(&PACKAGES, "run the bench's servers and clients")?;
    build()?;
    Ok(Command::new(run::built(bench)?))
}

/// Programs, agent and benches. What is measured runs in the kernel and in other programs, so nothing needs a release build.
fn build() -> Result<()> {
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    shell::run(shell::cargo().args(["build", "--package", "lb-agent", "--package", "shunt-tests", "--bins"]))
}
