// SPDX-License-Identifier: MIT OR Apache-2.0
//! `test`: all tiers on this machine, and one line that sums them up.

use std::{
    io::{BufRead, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build_ebpf, packages, shell,
    summary::Summary,
    vm::{Kernel, Programs, Ready},
};

/// What the namespace tests run: programs' packages on Debian and Ubuntu.
const PACKAGES: [&str; 14] = [
    "iproute2",
    "iputils-ping",
    "nginx-light",
    "dnsmasq-base",
    "iperf3",
    "wrk",
    "tcpdump",
    "ethtool",
    "nftables",
    "curl",
    "bind9-dnsutils",
    "hping3",
    "nmap",
    "traceroute",
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// Random packets that are compared with the reference model; 100,000 if not said.
    #[arg(long, value_name = "N")]
    packets: Option<u64>,
    /// Then run those tests of `vm` on another kernel that take little time; repeat it for several.
    #[arg(long = "vm", value_enum, value_name = "KERNEL")]
    kernels: Vec<Kernel>,
}

/// Sets up, builds and runs everything. Fails when a test has failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(shell::is_root(), "packet and namespace tests load eBPF programs: run them as root");
    packages::ensure(&PACKAGES, "run the tests' servers and clients")?;
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    // The agent that the namespace tests run, and the tests, from one build of what they share.
    shell::run(shell::cargo().args(["build", "--bins", "--tests"]))?;
    let mut summary = Summary::default();
    let mut cargo = shell::cargo();
    // Colours would hide libtest's words from us.
    cargo.args(["test", "--no-fail-fast", "--color", "never"]).args(&arguments.filter);
    if let Some(packets) = arguments.packets {
        cargo.env("SHUNT_PACKETS", packets.to_string());
    }
    run_tests(&mut cargo, &mut summary)?;
    if has_parent_devices() {
        let mut cargo = shell::cargo();
        cargo
            .args(["test", "--package", "shunt-tests", "--test", "parents", "--color", "never"])
            .args(&arguments.filter);
        run_tests(cargo.args(["--", "--ignored"]), &mut summary)?;
    }
    for &kernel in &arguments.kernels {
        match Ready::new(kernel) {
            Ok(ready) => summary.add(ready.test(&Programs::build()?, arguments.filter.as_deref(), true)?),
            Err(error) => summary.skipped.push(format!("all tests on {kernel}: {error:#}")),
        }
    }
    summary.conclude();
    Ok(())
}

/// Runs `cargo test`, shows what it prints, and adds it up.
fn run_tests(cargo: &mut Command, summary: &mut Summary) -> Result<()> {
    let failed = summary.failed;
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("can't start cargo test")?;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.context("can't read what cargo test prints")?;
        println!("{line}");
        summary.read(&line);
    }
    let status = child.wait().context("can't wait for cargo test")?;
    if summary.failed == failed && !status.success() {
        bail!("cargo test failed ({status}), although no test did: see above");
    }
    Ok(())
}

/// Whether this machine's kernel has the devices that `tests/parents.rs` wants: tried in a network namespace of its own.
fn has_parent_devices() -> bool {
    const LINES: &str =
        "link add a type veth peer name b\nlink add link a name c type vlan id 7\nlink add d type bond\n";
    let mut command = Command::new("unshare");
    command.args(["--net", "ip", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    // Where it does not want to hear more it has failed already.
    let _ = child.stdin.take().expect("piped").write_all(LINES.as_bytes());
    child.wait().is_ok_and(|status| status.success())
}
