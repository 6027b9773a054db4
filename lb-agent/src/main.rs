// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry point of the agent and of the tools that look into it.

use std::process::ExitCode;

use clap::Parser;
use lb_agent::cli::{Cli, Command, cleanup, get, run, trace};

/// musl's own takes a fifth longer over a start with 10,000 Services.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logging.start();
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Get(args) => get::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", text(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that it quotes itself.
fn text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
