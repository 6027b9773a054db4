// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench SUBJECT`: measures one part of Shunt and shows the figures beside what they shall reach.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{bench_control, bench_crowd, bench_flood, bench_follow, bench_packet, bench_traffic};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(clap::Subcommand)]
enum Subject {
    /// How long a pod's connect() takes, directly, by each door, by nftables and by iptables.
    Connect(bench_traffic::Arguments),
    /// Throughput and request rate, directly, by each door, and by nftables.
    Flow(bench_traffic::Arguments),
    /// From objects to maps: start, change, memory, by the number of Services.
    Control(bench_control::Arguments),
    /// Nanoseconds per packet of the programs themselves.
    Packet(bench_packet::Arguments),
    /// From the change of an object to the first answer of the new endpoint.
    Follow(bench_follow::Arguments),
    /// What a flood of first packets leaves of established flows.
    Flood(bench_flood::Arguments),
    /// Many clients at once: UDP exchanges at a steady rate, TCP connections that all stay open.
    Crowd(bench_crowd::Arguments),
}

/// Where the figures go besides the terminal.
#[derive(clap::Args)]
pub struct Output {
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write them as a page of HTML, with drawings.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Output {
    /// Becomes the bench, whose exit status is ours.
    pub fn hand_over_to(&self, bench: &mut Command) -> Result<()> {
        for (flag, file) in [("--json", &self.json), ("--html", &self.html)] {
            if let Some(file) = file {
                bench.arg(flag).arg(file);
            }
        }
        Err(bench.exec()).with_context(|| format!("can't start {}", bench.get_program().display()))
    }
}

/// Runs the bench of the subject.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.subject {
        Subject::Connect(arguments) => bench_traffic::run("shunt-bench-connect", arguments),
        Subject::Flow(arguments) => bench_traffic::run("shunt-bench-flow", arguments),
        Subject::Control(arguments) => bench_control::run(arguments),
        Subject::Packet(arguments) => bench_packet::run(arguments),
        Subject::Follow(arguments) => bench_follow::run(arguments),
        Subject::Flood(arguments) => bench_flood::run(arguments),
        Subject::Crowd(arguments) => bench_crowd::run(arguments),
    }
}
