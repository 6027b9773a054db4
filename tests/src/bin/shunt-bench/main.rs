// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures Shunt; `cargo xtask bench` builds and runs it. Every figure is a ratio to a floor of the same run.

#![deny(unsafe_code)]

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

mod packet;

#[derive(Parser)]
#[command(about = "Measures Shunt.", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds per packet of the programs themselves.
    Packet {
        /// Write the results to this file as well, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// How often everything is measured, in turns.
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What) -> Result<()> {
    let What::Packet { json, rounds } = what;
    let report = packet::measure(*rounds)?;
    println!("{report}");
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}
