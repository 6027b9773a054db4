// SPDX-License-Identifier: MIT OR Apache-2.0
//! Throughput and request rate, directly and through each kind of Service; `cargo xtask bench flow` builds and runs it. Every
//! figure stands beside the direct way's of the same round.

#![deny(unsafe_code)]

mod load;
mod report;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use shunt_tests::{
    bench::{Comparison, Output, Scene, Way, conclude},
    world::catch_interrupts,
};

use self::{
    load::{From, Test},
    report::{Report, Row},
};

/// Services that are there besides the measured ones.
const SERVICES: u32 = 1_000;
/// Of each way's own: see [`load::run`].
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 6_000;

#[derive(Parser)]
#[command(name = "cargo xtask bench flow", about = "Throughput and request rate, by way.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    catch_interrupts()?;
    let mut scene = Scene::new()?;
    scene.set_services(SERVICES)?;
    let mut rows = Vec::new();
    for test in Test::all() {
        rows.extend(measure(&scene, test, arguments.rounds).with_context(|| test.name())?);
    }
    let report = Report { rounds: arguments.rounds, services: SERVICES, rows };
    arguments.output.write(&report)
}

/// One test by all its ways in turns, one round more than counts: the first warms up.
fn measure(scene: &Scene, test: Test, rounds: u32) -> Result<Vec<Row>> {
    let find = |way: Way| match test.from {
        From::Pod => scene.way(way, test.aim()),
        From::Outside => scene.way_from_outside(way, test.aim()),
    };
    let ways: Vec<_> = Way::ALL.into_iter().filter_map(|way| Some((way, find(way)?))).collect();
    let mut rates = vec![Vec::new(); ways.len()];
    for round in 0..=rounds {
        for (number, ((way, (from, to)), rates)) in ways.iter().zip(&mut rates).enumerate() {
            let first = FIRST_PORT + PORTS * number as u16;
            let rate = load::run(test.kind, from, *to, first..=first + PORTS - 1).with_context(|| way.name())?;
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let position = |way: Way| ways.iter().position(|(other, _)| *other == way).context("no floor");
    ways.iter()
        .zip(&rates)
        .map(|((way, _), own)| {
            let rate = Comparison::new(own, &rates[position(Way::FLOOR)?]);
            Ok(Row { test: test.name(), unit: test.kind.unit(), way: way.name(), rate, shall: way.rate_shall() })
        })
        .collect()
}
