// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench SUBJECT`: measures one part of Shunt and shows the figures beside what they shall reach.

use anyhow::Result;

use crate::{bench_control, bench_packet, bench_traffic};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(clap::Subcommand)]
enum Subject {
    /// How long a pod's connect() takes, directly, by each door, and by nftables.
    Connect(bench_traffic::Arguments),
    /// Throughput and request rate, directly, by each door, and by nftables.
    Flow(bench_traffic::Arguments),
    /// From objects to maps: start, change, memory, by the number of Services.
    Control(bench_control::Arguments),
    /// Nanoseconds per packet of the programs themselves.
    Packet(bench_packet::Arguments),
}

/// Runs the bench of the subject.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.subject {
        Subject::Connect(arguments) => bench_traffic::run("shunt-bench-connect", arguments),
        Subject::Flow(arguments) => bench_traffic::run("shunt-bench-flow", arguments),
        Subject::Control(arguments) => bench_control::run(arguments),
        Subject::Packet(arguments) => bench_packet::run(arguments),
    }
}
