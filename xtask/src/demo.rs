// SPDX-License-Identifier: MIT OR Apache-2.0
//! `demo`: sets up what the demo needs, builds it, and becomes it.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{build_ebpf, packages, run, shell};

/// Servers and tools of its world: programs' packages on Debian and Ubuntu.
const PACKAGES: [&str; 5] = ["iproute2", "nginx-light", "dnsmasq-base", "curl", "bind9-dnsutils"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave the world up, and say how to look around in it.
    #[arg(long)]
    keep: bool,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
    /// Remove the worlds that --keep has left up, and do nothing else.
    #[arg(long, conflicts_with_all = ["keep", "json"])]
    remove: bool,
}

/// Builds everything and becomes the demo: its exit status is ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "the demo makes network namespaces and loads eBPF programs: run it as root");
    packages::ensure(&PACKAGES, "run the demo's servers")?;
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    // Both at once: one after the other they would ask for other features of what they share, and have it built twice.
    shell::run(shell::cargo().args(["build", "--package", "lb-agent", "--package", "shunt-tests", "--bins"]))?;
    let demo = run::built("shunt-demo")?;
    let flags = [("--keep", arguments.keep), ("--json", arguments.json), ("--remove", arguments.remove)];
    let error = Command::new(&demo).args(flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag)).exec();
    Err(error).with_context(|| format!("can't start {}", demo.display()))
}
