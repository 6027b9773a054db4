// SPDX-License-Identifier: MIT OR Apache-2.0
//! `fuzz`: the shared `no_std` part and the reference model under libFuzzer, each target for a while.
//!
//! The instrumentation is the compiler's own, so the pinned toolchain does, without cargo-fuzz or a nightly one. There is
//! nothing for an address sanitizer, which does need that, to find: none of this code is unsafe.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::shell;

const TARGETS: [&str; 5] = ["walk", "crc32c", "checksum", "flow", "model"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// A counter for each edge, a table of them, and the operands of comparisons: what libFuzzer is guided by.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

#[derive(clap::Args)]
pub struct Arguments {
    /// Only these targets: walk, crc32c, checksum, flow, model.
    targets: Vec<String>,
    /// How long each of them runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Builds the targets and runs one after the other. What they have found is kept in `target/fuzz` for the next time.
pub fn run(arguments: &Arguments) -> Result<()> {
    let directory = shell::root().join("target/fuzz");
    let mut cargo = shell::cargo();
    cargo.current_dir(shell::root().join("tests/fuzz")).env("RUSTFLAGS", INSTRUMENTATION);
    cargo.args(["build", "--release", "--target", TRIPLE, "--target-dir"]).arg(&directory);
    shell::run(&mut cargo)?;
    let chosen: Vec<&str> = match arguments.targets.as_slice() {
        [] => TARGETS.to_vec(),
        targets => targets.iter().map(String::as_str).collect(),
    };
    for target in chosen {
        let corpus: PathBuf = directory.join("corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("can't create {}", corpus.display()))?;
        println!("{target}:");
        let mut command = Command::new(directory.join(TRIPLE).join("release").join(target));
        command
            .arg(&corpus)
            .arg(format!("-max_total_time={}", arguments.seconds))
            .args(["-max_len=1000", "-verbosity=0"]);
        command.args(["-print_final_stats=1"]).arg(format!("-artifact_prefix={}/", directory.display()));
        shell::run(&mut command).with_context(|| format!("{target} has found something"))?;
    }
    Ok(())
}
