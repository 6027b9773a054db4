// SPDX-License-Identifier: MIT OR Apache-2.0
//! One network namespace: its configuration by `ip`, and programs and threads of ours inside it.
//!
//! Only the network namespace is entered, unlike by `ip netns exec`, which also mounts a fresh `/sys`: BPF file systems
//! and cgroups could not be seen there.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::{check_interrupt, site::Site};

/// Of every namespace: addresses work at once instead of after duplicate detection, and packets may take another way back.
const SYSCTLS: [(&str, &str); 5] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// A network namespace; the world's [`Site`] removes it.
pub struct Namespace {
    name: String,
    file: File,
    /// The list of threads of a cgroup, to which everything that enters is added.
    threads: Option<File>,
}

impl Namespace {
    /// Makes the namespace `<site>-<name>`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn create(site: &Site, name: &str) -> Result<Self> {
        check_interrupt()?;
        let name = format!("{}-{name}", site.name());
        let words = ["netns", "add", &name];
        let output = Command::new("ip").args(words).output().context("can't start ip")?;
        check(&format!("ip {}", words.join(" ")), &output)?;
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).with_context(|| format!("can't open {}", path.display()))?;
        let namespace = Self { name, file, threads: None };
        namespace.sysctl(&SYSCTLS)?;
        Ok(namespace)
    }

    /// The same, with the sockets of whatever enters it counted among those of a cgroup.
    ///
    /// # Errors
    /// When there is no such cgroup.
    pub(super) fn within(self, cgroup: Option<&Path>) -> Result<Self> {
        let Some(cgroup) = cgroup else { return Ok(self) };
        let path = cgroup.join("cgroup.threads");
        let threads = File::options().write(true).open(&path);
        Ok(Self { threads: Some(threads.with_context(|| format!("can't open {}", path.display()))?), ..self })
    }

    /// The same namespace for what is to be no socket of its node's cgroup.
    ///
    /// # Errors
    /// When this process has no file descriptor left.
    pub fn outside_cgroup(&self) -> Result<Self> {
        let file = self.file.try_clone().context("no file descriptor")?;
        Ok(Self { name: self.name.clone(), file, threads: None })
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside with these lines, each what one would type after `ip`.
    ///
    /// # Errors
    /// When a line fails; those before it have been done.
    pub fn ip(&self, lines: &str) -> Result<()> {
        check_interrupt()?;
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("can't start ip")?;
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).context("can't write to ip")?;
        let output = child.wait_with_output().context("can't wait for ip")?;
        check(&format!("in {}: ip -batch:\n{lines}\n", self.name), &output)
    }

    /// Writes settings below `/proc/sys`.
    ///
    /// # Errors
    /// When one can't be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            settings.iter().try_for_each(|(key, value)| {
                fs::write(Path::new("/proc/sys").join(key), value).with_context(|| format!("can't set {key}"))
            })
        })?
    }

    /// A command that will run inside, in a session of its own, so that a Ctrl-C is ours alone to handle.
    ///
    /// # Panics
    /// When this process has no file descriptor left.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = self.file.try_clone().expect("a file descriptor");
        let threads = self.threads.as_ref().map(|threads| threads.try_clone().expect("a file descriptor"));
        let mut command = Command::new(program);
        let enter = move || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            threads.iter().try_for_each(join)?;
            nix::unistd::setsid()?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes three system calls and nothing else: no allocation, no lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program inside to its end, and returns what it prints.
    ///
    /// # Errors
    /// When it can't be started or fails; the error holds what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        check_interrupt()?;
        let output = self.command(program).args(arguments).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("can't start {program}"))?;
        check(&format!("in {}: {program} {}", self.name, arguments.join(" ")), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `body` inside, on a thread of its own: sockets that it makes belong to this namespace.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    ///
    /// # Panics
    /// When `body` does.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let result = thread::scope(|scope| scope.spawn(|| self.enter_thread().map(|()| body())).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread inside, for good.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn enter_thread(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("can't enter {}", self.name))?;
        self.threads.iter().try_for_each(join).with_context(|| format!("can't join the cgroup of {}", self.name))
    }
}

/// Moves the calling thread into the cgroup of this list.
fn join(mut threads: &File) -> std::io::Result<()> {
    threads.write_all(b"0")
}

/// An error with everything that a failed command printed.
fn check(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        let printed = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("{what} failed ({}): {}", output.status, String::from_utf8_lossy(&printed).trim());
    }
    Ok(())
}
