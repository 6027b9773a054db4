// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real agent as a process on a node.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Namespace, wait_until};
use crate::load::http;

/// In an emulated machine the verifier alone takes half a minute.
const READY_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(10);
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// The agent's program: built into the directory that this program was built into.
///
/// # Errors
/// When it is not there.
pub fn agent_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("can't find our own program")?;
    // Tests are one directory deeper than programs.
    let places = own.ancestors().skip(1).take(2).map(|directory| directory.join("lb-agent"));
    places.into_iter().find(|path| path.is_file()).with_context(|| {
        format!("no lb-agent near {}: build it with `cargo xtask build-ebpf && cargo build -p lb-agent`", own.display())
    })
}

/// A running agent, or one that has run.
pub struct Agent {
    node: String,
    child: Child,
    namespace: Arc<Namespace>,
    log: PathBuf,
    /// Where what this one logs begins.
    log_start: u64,
}

impl Agent {
    /// Starts it; what it logs is appended to `log`.
    pub(super) fn start(node: &str, namespace: Arc<Namespace>, mut command: Command, log: PathBuf) -> Result<Self> {
        let log_start = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let open = || File::options().create(true).append(true).open(&log);
        let (out, err) = open().and_then(|out| Ok((out, open()?))).with_context(|| format!("can't open {log:?}"))?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("can't start {command:?}"))?;
        Ok(Self { node: node.to_owned(), child, namespace, log, log_start })
    }

    /// Waits until the first sync is in the maps, by its log, and `/healthz` says that the node is eligible.
    ///
    /// # Errors
    /// When it doesn't in time, or the agent ends; the error holds the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let what = format!("the agent of {} becoming ready", self.node);
        self.namespace
            .enter(|| {
                wait_until(&what, READY_LIMIT, || {
                    self.check_alive()?;
                    // A node that serves what an earlier agent left is eligible before that.
                    let is_synced = self.own_log().contains("first sync: ");
                    let is_eligible = || http::get(HEALTHZ, "/healthz", PROBE_LIMIT);
                    Ok(is_synced && is_eligible().is_ok_and(|response| response.status == 200))
                })
            })?
            .with_context(|| self.log_tail())
    }

    /// An error when it has ended.
    fn check_alive(&self) -> Result<()> {
        let state = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // `pid (name) state ...`: Z is a process that has ended and was not waited for.
        let has_ended = state.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z'));
        if has_ended {
            bail!("the agent of {} has ended", self.node);
        }
        Ok(())
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, as a crash or the out-of-memory killer would.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("can't kill the agent")?;
        self.child.wait().context("can't wait for the agent")?;
        Ok(())
    }

    /// Asks it to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("can't signal the agent")?;
        self.wait_end("the agent's end after SIGTERM")
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not in time; `what` says what is waited for.
    pub fn wait_end(&mut self, what: &str) -> Result<ExitStatus> {
        let mut status = None;
        wait_until(what, END_LIMIT, || {
            status = self.child.try_wait().context("can't wait for the agent")?;
            Ok(status.is_some())
        })?;
        Ok(status.expect("waited for"))
    }

    /// All that it has logged, and the agents of this node before it.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it alone has logged.
    fn own_log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(usize::MAX);
        String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
    }

    /// The end of its log, with a heading.
    #[must_use]
    pub fn log_tail(&self) -> String {
        const LINES: usize = 40;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "--- end of the agent's log on {}:\n{}",
            self.node,
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already: that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
