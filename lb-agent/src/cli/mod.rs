// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: every flag and its default stands here or in its subcommand's file, and nowhere else.

mod answer;
pub mod cleanup;
pub mod get;
pub mod logging;
pub mod run;
pub mod trace;

use tokio::signal::unix::{SignalKind, signal};

/// A Kubernetes Service load balancer in eBPF: the node agent, and the tools to look into it.
#[derive(Debug, clap::Parser)]
#[command(name = "lb-agent", version, propagate_version = true)]
pub struct Cli {
    /// Logging, of every subcommand.
    #[command(flatten)]
    pub logging: logging::LoggingArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Load-balance the traffic of this network namespace, until told to stop; forwarding goes on afterwards
    Run(Box<run::RunArgs>),
    /// Show what the maps hold; needs no running agent
    Get(get::GetArgs),
    /// Ask the live programs where a packet would go, and why; leaves no mark on flows or counters
    Trace(trace::TraceArgs),
    /// Remove everything that Shunt ever made here: links, programs, maps. Its traffic is not balanced any more then
    ///
    /// Left is what others may use by now: a bpffs at /sys/fs/bpf, the directory on which an agent had mounted a bpffs of its
    /// own, and, on Linux before 6.6, clsact qdiscs without filters of Shunt's.
    Cleanup(cleanup::CleanupArgs),
}

/// Ends with the first SIGTERM or SIGINT.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
