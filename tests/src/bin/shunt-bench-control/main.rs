// SPDX-License-Identifier: MIT OR Apache-2.0
//! From objects to maps: how long a start and a change take, and what memory, by the number of Services.
//!
//! Started by `cargo xtask bench control`, which builds it for speed. Every measurement runs in a process of its own, so
//! that none inherits another's heap. Nothing is a test: a figure that misses its target is shown, and that is all.

mod inside;
mod maglev;
mod memory;
mod objects;
mod outside;
mod report;
mod spread;

use std::{env, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::de::DeserializeOwned;
use shunt_tests::bench::Output;

use crate::{inside::Inside, objects::Shape, outside::Outside, report::Report};

/// Numbers of Services of three endpoints.
const SERVICES: [u32; 3] = [1_000, 10_000, 30_000];
const ENDPOINTS: u32 = 3;
/// One Service with so many.
const LARGE: Shape = Shape { services: 1, endpoints: 10_000 };

#[derive(Parser)]
#[command(name = "cargo xtask bench control", about = "Measures the way from objects to maps.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Changes for each size, through the loop in this process.
    #[arg(long, default_value_t = 2_000)]
    changes: u32,
    /// Changes for each size, through a directory of manifests, which pauses after each.
    #[arg(long, default_value_t = 50)]
    manifest_changes: u32,
    /// Changes for each size, through an API server.
    #[arg(long, default_value_t = 500)]
    cluster_changes: u32,
    /// Changes of the one large Service.
    #[arg(long, default_value_t = 30)]
    large_changes: u32,
    #[command(subcommand)]
    part: Option<Part>,
}

/// One measurement, whose result is printed as JSON.
#[derive(Clone, Copy, clap::Subcommand)]
#[command(hide = true)]
enum Part {
    /// The loop in this process.
    Inside(Size),
    /// The agent as a process, on a directory.
    Directory(Size),
    /// The same, on an API server.
    Cluster(Size),
}

#[derive(Clone, Copy, clap::Args)]
struct Size {
    services: u32,
    endpoints: u32,
    changes: u32,
}

impl Size {
    const fn shape(self) -> Shape {
        Shape { services: self.services, endpoints: self.endpoints }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::Inside(size)) => print(&inside::measure(size.shape(), size.changes)?),
        Some(Part::Directory(size)) => print(&outside::measure_directory(size.shape(), size.changes)?),
        Some(Part::Cluster(size)) => print(&outside::measure_cluster(size.shape(), size.changes)?),
        None => run(&arguments),
    }
}

fn print(result: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::default();
    let mut p99_of_fewest = None;
    for services in SERVICES {
        let shape = Shape { services, endpoints: ENDPOINTS };
        let inside: Inside = measure("inside", shape, arguments.changes)?;
        add_inside(&mut report, services, &inside, *p99_of_fewest.get_or_insert(inside.change_us.p99));
        let directory: Outside = measure("directory", shape, arguments.manifest_changes)?;
        add_outside(&mut report, services, "a directory", &directory);
        let cluster: Outside = measure("cluster", shape, arguments.cluster_changes)?;
        add_outside(&mut report, services, "an API server", &cluster);
    }
    let large: Inside = measure("inside", LARGE, arguments.large_changes)?;
    let subject = "one Service of 10,000 endpoints";
    report.show(format!("{subject}: cold start"), large.cold_start_ms, "ms");
    report.show(format!("{subject}: one change, p50"), large.change_us.p50 / 1000.0, "ms");
    report.demand(format!("{subject}: one change, p99"), large.change_us.p99 / 1000.0, "ms", 25.0);
    let tables = [(3, 401, None), (100, 16_381, None), (1_000, 65_537, Some(1.0)), (10_000, 655_373, None)];
    for (backends, slots, target) in tables {
        let spread = maglev::measure(backends, slots)?;
        let name = format!("Maglev table, {backends} backends, {slots} slots");
        match target {
            Some(target) => report.demand(name, spread.p50 / 1000.0, "ms", target),
            None => report.show(name, spread.p50 / 1000.0, "ms"),
        }
    }
    arguments.output.write(&report)
}

/// Measures in a new process.
fn measure<T: DeserializeOwned>(part: &str, shape: Shape, changes: u32) -> Result<T> {
    let Shape { services, endpoints } = shape;
    eprintln!("measuring {services} x {endpoints}, {part}");
    let mut command = Command::new(env::current_exe().context("can't find our own program")?);
    command.arg(part).args([services, endpoints, changes].map(|number| number.to_string()));
    let output = command.stderr(std::process::Stdio::inherit()).output().context("can't start our own program")?;
    ensure!(output.status.success(), "measuring {services} Services {part} failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("can't read our own program's results")
}

fn add_inside(report: &mut Report, services: u32, inside: &Inside, p99_of_fewest: f64) {
    let name = |what: &str| format!("{services} Services: {what}");
    let is_middle = services == 10_000;
    report.show(name("opening the data plane"), inside.open_ms, "ms");
    let mut add = |what: &str, value, unit, target| match target {
        Some(target) => report.demand(name(what), value, unit, target),
        None => report.show(name(what), value, unit),
    };
    add("cold start to all maps written", inside.cold_start_ms, "ms", is_middle.then_some(500.0));
    add("cold start, CPU time of all threads", inside.cold_start_cpu_ms, "ms", None);
    add("restart on maps that are right", inside.restart_ms, "ms", None);
    add("one endpoint change, p50", inside.change_us.p50, "µs", None);
    add("one endpoint change, p99", inside.change_us.p99, "µs", (services >= 10_000).then_some(1000.0));
    if is_middle {
        add("one endpoint change, p99, to that at 1,000", inside.change_us.p99 / p99_of_fewest, "", Some(1.2));
    }
    let [cold, restarted] = inside.resident;
    add("memory of the loop, after the cold start", cold.own_mebibytes(), "MiB", is_middle.then_some(60.0));
    add("memory of the loop, after restart and changes", restarted.own_mebibytes(), "MiB", None);
    let table_mebibytes = inside.table_bytes as f64 / f64::from(1 << 20);
    add("memory of all lookup tables", table_mebibytes, "MiB", is_middle.then_some(16.0));
}

fn add_outside(report: &mut Report, services: u32, source: &str, outside: &Outside) {
    let name = |what: &str| format!("{services} Services, agent on {source}: {what}");
    report.show(name("start to ready"), outside.ready_ms, "ms");
    report.show(name("one object changed, p50"), outside.change_us.p50 / 1000.0, "ms");
    report.show(name("one object changed, p99"), outside.change_us.p99 / 1000.0, "ms");
    report.show(name("memory"), outside.resident.own_mebibytes(), "MiB");
    report.show(name("maps mapped into it"), outside.resident.maps_mebibytes(), "MiB");
}
