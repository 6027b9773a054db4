// SPDX-License-Identifier: MIT OR Apache-2.0
//! `test`: all tiers on this machine, and one line that sums them up.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build_ebpf, packages, shell};

/// What the namespace tests run: programs' packages on Debian and Ubuntu.
const PACKAGES: [&str; 10] = [
    "iproute2",
    "nginx-light",
    "dnsmasq-base",
    "iperf3",
    "wrk",
    "tcpdump",
    "ethtool",
    "nftables",
    "curl",
    "bind9-dnsutils",
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// Random packets that are compared with the reference model; 100,000 if not said.
    #[arg(long, value_name = "N")]
    packets: Option<u64>,
}

/// Sets up, builds and runs everything. Fails when a test has failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "packet and namespace tests load eBPF programs: run them as root");
    packages::ensure(&PACKAGES, "run the tests' servers and clients")?;
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    // The agent that the namespace tests run, and the tests, from one build of what they share.
    shell::run(shell::cargo().args(["build", "--bins", "--tests"]))?;
    let mut cargo = shell::cargo();
    // Colours would hide libtest's words from us.
    cargo.args(["test", "--no-fail-fast", "--color", "never"]).args(&arguments.filter);
    if let Some(packets) = arguments.packets {
        cargo.env("SHUNT_PACKETS", packets.to_string());
    }
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("can't start cargo test")?;
    let mut summary = Summary::default();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.context("can't read what cargo test prints")?;
        println!("{line}");
        summary.read(&line);
    }
    let status = child.wait().context("can't wait for cargo test")?;
    summary.skipped.iter().for_each(|test| println!("skipped: {test}"));
    let Summary { passed, failed, skipped } = &summary;
    if *failed == 0 && !status.success() {
        bail!("cargo test failed ({status}), although no test did: see above");
    }
    println!("{passed} passed, {failed} failed, {} skipped", skipped.len());
    if *failed > 0 { std::process::exit(1) } else { Ok(()) }
}

/// Sums over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    passed: u64,
    failed: u64,
    /// Names, with reasons where there are.
    skipped: Vec<String>,
}

impl Summary {
    /// Reads one line of libtest's: `test result: ok. 3 passed; 0 failed; 1 ignored; ...` or `test NAME ... ignored, REASON`.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|test| test.split_once(" ... ignored"))
        {
            self.skipped.push(format!("{name}{}", outcome.replacen(',', ":", 1)));
        }
    }
}

/// The number before a word.
fn count(result: &str, word: &str) -> u64 {
    let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok());
    number.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn sums_over_programs_and_names_what_was_skipped() {
        let mut summary = Summary::default();
        let lines = "running 4 tests\n\
            test maglev::tests::is_even ... ok\n\
            test vm::old_kernel ... ignored, needs an image\n\
            test slow ... ignored\n\
            test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.23s";
        lines.lines().for_each(|line| summary.read(line));
        assert_eq!((summary.passed, summary.failed), (13, 1));
        assert_eq!(summary.skipped, ["vm::old_kernel: needs an image", "slow"]);
    }
}
