// SPDX-License-Identifier: MIT OR Apache-2.0
//! `vm`: the tests on other kernels, Debian's, each in an emulated machine.

mod cpio;
mod disk;
mod kernel;
mod machine;
mod plan;
mod report;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use self::kernel::Kernel;
use self::{kernel::Unpacked, machine::Machine, report::Report};
use crate::{build_ebpf, packages, run, shell, summary::Summary};

/// The machine, what is on its disk, and what makes that: programs' packages on Debian and Ubuntu.
const PACKAGES: [&str; 16] = [
    "qemu-system-x86",
    "busybox-static",
    "xz-utils",
    "binutils",
    "iproute2",
    "nginx-light",
    "dnsmasq-base",
    "iperf3",
    "wrk",
    "tcpdump",
    "ethtool",
    "curl",
    "bind9-dnsutils",
    "iputils-ping",
    "traceroute",
    "hping3",
];

/// For all tests of one kernel, and for the quick ones, on a machine that has more to do.
const LIMITS: [Duration; 2] = [Duration::from_secs(90 * 60), Duration::from_secs(20 * 60)];

#[derive(clap::Args)]
pub struct Arguments {
    /// The kernel; repeat it for several. Default: all
    #[arg(long = "kernel", value_enum)]
    kernels: Vec<Kernel>,
    /// Run only those tests that `cargo xtask test --vm` runs.
    #[arg(long)]
    quick: bool,
    /// Run only this test program, or only tests whose name contains this.
    filter: Option<String>,
}

/// Sets up, builds and runs everything. Fails when a test has failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let all = <Kernel as clap::ValueEnum>::value_variants();
    let kernels = if arguments.kernels.is_empty() { all } else { &arguments.kernels };
    let ready = kernels.iter().map(|kernel| Ready::new(*kernel)).collect::<Result<Vec<_>>>()?;
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    let programs = Programs::build()?;
    let mut sums = Summary::default();
    for ready in ready {
        sums.add(ready.test(&programs, arguments.filter.as_deref(), arguments.quick)?);
    }
    sums.conclude();
    Ok(())
}

/// A machine that can be started.
pub struct Ready {
    kernel: Kernel,
    unpacked: Unpacked,
}

impl Ready {
    /// Gets QEMU and the kernel.
    ///
    /// # Errors
    /// When one of them can't be had.
    pub fn new(kernel: Kernel) -> Result<Self> {
        packages::ensure(&PACKAGES, "run tests on other kernels")?;
        let unpacked = kernel::fetch(kernel).with_context(|| format!("{kernel} can't be had"))?;
        Ok(Self { kernel, unpacked })
    }

    /// Runs the tests, or with `is_quick` those that take little time, and prints a line for each.
    ///
    /// # Errors
    /// When the machine can't be started, or does not come to its end. That tests have failed is in the summary.
    pub fn test(&self, programs: &Programs, filter: Option<&str>, is_quick: bool) -> Result<Summary> {
        let started = Instant::now();
        let directory = self.kernel.directory();
        let runs = plan::runs(self.kernel, filter, is_quick, |name| programs.find(name));
        let disk = disk::write(&directory, &self.unpacked, &run::built("lb-agent")?, &runs)?;
        let console = directory.join("console.log");
        let mut machine = Machine::start(&self.unpacked.image, &disk, console, LIMITS[usize::from(is_quick)])?;
        let mut report = Report::new(self.kernel);
        while let Some(line) = machine.line() {
            report.read(&line);
        }
        let summary = report.conclude(&runs, machine.is_late(), || machine.last_words());
        println!("--- {}: {summary}, in {} s", self.kernel, started.elapsed().as_secs());
        Ok(summary)
    }
}

/// Test programs by their names.
pub struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// Builds the agent and all test programs: the same command as that of `test`, so that nothing is built twice.
    ///
    /// # Errors
    /// When that fails.
    pub fn build() -> Result<Self> {
        let mut cargo = shell::cargo();
        cargo.args(["build", "--bins", "--tests", "--message-format", "json-render-diagnostics"]);
        let output = cargo.stderr(Stdio::inherit()).output().context("can't start cargo")?;
        ensure!(output.status.success(), "the tests can't be built");
        let messages = String::from_utf8_lossy(&output.stdout);
        Ok(Self(messages.lines().filter_map(test_program).collect()))
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).cloned()
    }
}

/// A test program that one of cargo's messages tells of. A package's programs may have the library's name; only tests of
/// libraries and of `tests/` are wanted.
fn test_program(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_wanted = message["profile"]["test"] == true && (target["kind"][0] == "test" || target["kind"][0] == "lib");
    let path = message["executable"].as_str().filter(|_| is_wanted)?;
    Some((target["name"].as_str()?.to_owned(), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_others() {
        let message = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"a"}},"profile":{{"test":{test}}},"executable":"/a"}}"#
            )
        };
        assert_eq!(test_program(&message("test", true)), Some(("a".to_owned(), "/a".into())));
        assert_eq!(test_program(&message("bin", true)), None);
        assert_eq!(test_program(&message("lib", false)), None);
        assert_eq!(test_program("no message"), None);
    }
}
