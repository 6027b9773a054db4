// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask TASK`: everything that a newcomer, a developer or CI does with this repository, one file per task.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod against;
mod bench;
mod bench_control;
mod bench_crowd;
mod bench_flood;
mod bench_follow;
mod bench_packet;
mod bench_traffic;
mod build_ebpf;
mod demo;
mod fuzz;
mod image;
mod inspect;
mod packages;
mod run;
mod shell;
mod summary;
mod test;
mod toolchain;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Shunt's tasks. Each sets up what it needs.", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF programs to target/bpf/shunt; install rust-src and bpf-linker first where they are lacking.
    BuildEbpf(build_ebpf::Arguments),
    /// Build everything and run the agent on this machine.
    Run(run::Arguments),
    /// Show Shunt at work in a small world of network namespaces.
    Demo(demo::Arguments),
    /// Run all tests: units, packets through the real programs, real clients and servers in namespaces.
    Test(test::Arguments),
    /// Put the pure parts and the reference model under a coverage-guided fuzzer.
    Fuzz(fuzz::Arguments),
    /// Run tests on Debian's kernels, each in a machine that QEMU emulates.
    Vm(vm::Arguments),
    /// Build a static agent, and an OCI image of it in target/image.
    Image(image::Arguments),
    /// Measure, and show the figures beside what they shall reach.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::BuildEbpf(arguments) => build_ebpf::build(&arguments).map(drop),
        Task::Run(arguments) => run::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Vm(arguments) => vm::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
