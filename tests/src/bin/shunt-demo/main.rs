// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shunt at work, in a world of namespaces: Services by ClusterIP and NodePort, a backend replaced, an agent killed.
//!
//! Started by `cargo xtask demo`, which builds what it needs. Exit status 0 only if no request failed.

mod checks;
mod look_around;
mod progress;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use shunt_tests::world::{Options, World, Xdp, catch_interrupts, remove_all};

use crate::{progress::Progress, report::Report};

#[derive(Parser)]
#[command(name = "cargo xtask demo", about = "Shows Shunt at work in a small world of network namespaces.")]
struct Arguments {
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

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.remove {
        remove_all().iter().for_each(|name| println!("removed {name}"));
        return Ok(true);
    }
    catch_interrupts()?;
    let progress = Progress::new();
    progress.step("world of namespaces", None);
    let mut world = World::new(Options { xdp: Xdp::Auto, ..Options::TC })?;
    let report = show(&mut world, &progress);
    progress.finish();
    if let Ok(report) = &report {
        if arguments.json {
            println!("{}", report.to_json());
        } else {
            println!("{}", report.to_table());
        }
        report.problems().for_each(|problem| eprintln!("{problem}"));
    }
    if arguments.keep {
        eprintln!("{}", look_around::commands(&world)?);
        world.keep()?;
    }
    Ok(report?.is_good())
}

/// The whole story.
fn show(world: &mut World, progress: &Progress) -> Result<Report> {
    progress.step("agents", None);
    world.apply_sample()?;
    world.start_agents()?;
    let mut report = Report::default();
    for check in checks::PATHS {
        report.add(check.run(world, progress)?);
    }
    report.add(checks::drain(world, progress)?);
    report.add(checks::agent_killed(world, progress)?);
    Ok(report)
}
