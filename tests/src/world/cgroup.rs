// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cgroups, one for each node: the programs of a node's socket door see the sockets of its own cgroup and no others on this
//! machine.
//!
//! Pods and nodes of a world are namespaces, and what runs in them are threads of this process as well as processes. So
//! the cgroups are *threaded*: this process moves into the one above them, and its threads into theirs when they enter a
//! namespace.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::Site;

/// Where cgroup v2 may be mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The cgroup above those of the nodes; dropping it removes them all.
pub struct Cgroups {
    path: PathBuf,
    /// Where this process was.
    former: PathBuf,
}

impl Cgroups {
    /// Makes the cgroup of a world, and moves this process into it.
    ///
    /// # Errors
    /// Without cgroup v2.
    pub fn create(site: &Site) -> Result<Self> {
        let is_cgroup2 =
            |path: &&&str| statfs(**path).is_ok_and(|file_system| file_system.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let mount = Path::new(MOUNTS.iter().find(is_cgroup2).context("cgroup v2 is not mounted")?);
        let own = fs::read_to_string("/proc/self/cgroup").context("can't read /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2 of our own")?;
        let cgroups = Self { path: mount.join(site.name()), former: mount.join(own) };
        fs::create_dir(&cgroups.path).with_context(|| format!("can't create {}", cgroups.path.display()))?;
        enter(&cgroups.path)?;
        Ok(cgroups)
    }

    /// Makes the cgroup of a node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, node: &str) -> Result<PathBuf> {
        let path = self.path.join(node);
        fs::create_dir(&path).with_context(|| format!("can't create {}", path.display()))?;
        let kind = path.join("cgroup.type");
        fs::write(&kind, "threaded").with_context(|| format!("can't write {}", kind.display()))?;
        Ok(path)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let outcome = enter(&self.former).and_then(|()| remove(&self.path));
        if let Err(error) = outcome {
            eprintln!("{error:#}");
        }
    }
}

/// Moves this process.
fn enter(cgroup: &Path) -> Result<()> {
    let path = cgroup.join("cgroup.procs");
    fs::write(&path, std::process::id().to_string()).with_context(|| format!("can't enter {}", cgroup.display()))
}

/// Removes a cgroup and those below it, which must be empty.
fn remove(path: &Path) -> Result<()> {
    let children = fs::read_dir(path).with_context(|| format!("can't read {}", path.display()))?;
    for child in children.flatten().map(|child| child.path()).filter(|path| path.is_dir()) {
        remove(&child)?;
    }
    fs::remove_dir(path).with_context(|| format!("can't remove {}", path.display()))
}
