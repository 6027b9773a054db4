// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ground that a world stands on: its unique name, its directories, and the removal of everything that bears the name.
//!
//! A world is found again by name alone (`shunt-<pid>-<number>`), so that one whose process was killed can be removed by
//! the next.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::{Pid, geteuid},
};

const BPFFS: &str = "/sys/fs/bpf";
/// One world at a time in a process: its clients, servers and captures want the machine for themselves.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// A world's name and directories; dropping it removes the world.
pub struct Site {
    name: String,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    /// Waits for its turn, removes what killed processes have left, and makes the directories.
    ///
    /// # Errors
    /// When not root, or without a BPF file system.
    pub fn new() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("network namespaces and eBPF programs need root: run this as root");
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        mount_bpffs()?;
        for name in names().filter(|name| !is_alive(name) && !kept_mark(name).exists()) {
            remove(&name);
        }
        let name = format!("shunt-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let site = Self { name, _turn: turn };
        for directory in [site.directory(), site.bpffs()] {
            fs::create_dir(&directory).with_context(|| format!("can't create {}", directory.display()))?;
        }
        Ok(site)
    }

    /// The name that everything of this world starts with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For files.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        directory(&self.name)
    }

    /// For pinned maps, links and programs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        bpffs(&self.name)
    }

    /// Where the program is pinned that peers of XDP links run.
    #[must_use]
    pub fn xdp_pass(&self) -> PathBuf {
        self.bpffs().join("xdp_pass")
    }

    /// From now on nobody but [`remove_all`] removes this world.
    pub(super) fn mark_kept(&self) -> Result<()> {
        let mark = kept_mark(&self.name);
        fs::write(&mark, "").with_context(|| format!("can't write {}", mark.display()))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes every world whose process has ended, kept ones too; says which.
#[must_use]
pub fn remove_all() -> Vec<String> {
    let names: Vec<String> = names().filter(|name| !is_alive(name)).collect();
    names.iter().for_each(|name| remove(name));
    names
}

/// Ends the processes in a namespace and removes it.
pub(super) fn remove_namespace(name: &str) {
    end_processes(name);
    match Command::new("ip").args(["netns", "del", name]).status() {
        Ok(status) if status.success() => {}
        outcome => eprintln!("can't remove the network namespace {name}: {outcome:?}"),
    }
}

fn end_processes(name: &str) {
    let pids = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes all that bears a world's name. Goes on after a failure: what can be removed is.
fn remove(name: &str) {
    let prefix = format!("{name}-");
    for namespace in entries(Path::new("/run/netns")).filter(|namespace| namespace.starts_with(&prefix)) {
        remove_namespace(&namespace);
    }
    for directory in [bpffs(name), directory(name)] {
        if directory.exists()
            && let Err(error) = fs::remove_dir_all(&directory)
        {
            eprintln!("can't remove {}: {error}", directory.display());
        }
    }
}

/// Names of all worlds on this machine, by their directories.
fn names() -> impl Iterator<Item = String> {
    entries(&std::env::temp_dir()).filter(|name| creator(name).is_some())
}

/// The process that has made a world, by its name.
fn creator(name: &str) -> Option<u32> {
    let (pid, number) = name.strip_prefix("shunt-")?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

fn is_alive(name: &str) -> bool {
    creator(name).is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn bpffs(name: &str) -> PathBuf {
    Path::new(BPFFS).join(name)
}

fn kept_mark(name: &str) -> PathBuf {
    directory(name).join("kept")
}

fn mount_bpffs() -> Result<()> {
    if statfs(BPFFS).is_ok_and(|file_system| file_system.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("can't mount a BPF file system on {BPFFS}"))
}

#[cfg(test)]
mod tests {
    use super::creator;

    #[test]
    fn only_worlds_are_taken_for_worlds() {
        assert_eq!(creator("shunt-123-4"), Some(123));
        for other in ["shunt-123", "shunt-123-node", "shunt-x-1", "shunt", "123-4"] {
            assert_eq!(creator(other), None, "{other}");
        }
    }
}
