// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine in QEMU, from its start to its end, which comes in any case: at the end of its tests, when its kernel crashes,
//! or when its time is up.
//!
//! Always emulated (TCG): with KVM a machine within a virtual machine may hang. The kernel's words go to a file, those of
//! the tests come to us.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::shell;

const QEMU: &str = "qemu-system-x86_64";
const PROCESSORS: &str = "2";
const MEBIBYTES: &str = "3072";
/// A kernel that has crashed ends the machine, and so does one that hangs, as far as it notices.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 panic=-1 oops=panic softlockup_panic=1 hung_task_panic=1 rcupdate.rcu_cpu_stall_suppress=0";
/// Of the kernel's words, how many lines are shown where it did not end well.
const LAST_WORDS: usize = 25;

/// A running machine.
pub struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    console: PathBuf,
    ends: Instant,
    is_late: bool,
}

impl Machine {
    /// Starts it, for as long as `limit` at most.
    ///
    /// # Errors
    /// When QEMU can't be started.
    pub fn start(kernel: &Path, disk: &Path, console: PathBuf, limit: Duration) -> Result<Self> {
        // Not in the way of whatever else this computer does.
        let mut command = Command::new("nice");
        command.arg("--adjustment=5").arg(shell::find(QEMU).with_context(|| format!("there is no {QEMU}"))?);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", MEBIBYTES]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(disk).args(["-append", KERNEL_ARGUMENTS]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-chardev", "stdio,id=tests,signal=off", "-serial", "chardev:tests"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = command.spawn().context("can't start QEMU")?;
        let output = qemu.stdout.take().expect("piped");
        let (sender, lines) = channel();
        // Ends with QEMU's output.
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more when the machine has been given up.
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        Ok(Self { qemu, lines, console, ends: Instant::now() + limit, is_late: false })
    }

    /// The next line that the tests print; `None` when the machine has ended. One that does not end in time is switched off,
    /// and then there are but the lines that it has left.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(self.ends.saturating_duration_since(Instant::now())) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                self.is_late = true;
                // It may be ending just now.
                let _ = self.qemu.kill();
                self.lines.recv().ok()
            }
        }
    }

    /// Whether it had to be switched off.
    pub const fn is_late(&self) -> bool {
        self.is_late
    }

    /// The end of what the kernel has printed.
    pub fn last_words(&self) -> String {
        let mut bytes = Vec::new();
        // Without a console there are no words.
        let _ = fs::File::open(&self.console).and_then(|mut file| file.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already: that is fine.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
