// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry point of the agent and of the tools that look into it.

use std::process::ExitCode;

use clap::Parser;
use lb_agent::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logging.start();
    let result = match cli.command {
        Command::Run(args) => lb_agent::cli::run::run(*args),
        Command::Get(args) => lb_agent::cli::get::run(&args),
        Command::Trace(args) => lb_agent::cli::trace::run(&args),
        Command::Cleanup(args) => lb_agent::cli::cleanup::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
