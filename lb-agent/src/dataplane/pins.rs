// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where everything is pinned: one directory on a bpffs, which only one agent at a time may own.
//!
//! ```text
//! DIR/v2/maps/NAME
//! DIR/v2/before/NAME          while maps get another size
//! DIR/v2/programs/NAME
//! DIR/v2/links/DOOR-IFINDEX
//! ```

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use lb_common::maps::LAYOUT_VERSION;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::{
        stat::{major, minor},
        statfs::{FsType, statfs},
    },
};

use super::{
    mounts::{Mount, mounts},
    sys,
};

/// The directory of a layout's links.
pub const LINKS: &str = "links";

/// Where an agent keeps its pins by default.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/shunt";

/// Where bpffs belongs.
const SYSTEM_BPFFS: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` of the kernel's `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The mount source by which `cleanup` knows a bpffs that an agent has mounted.
pub const MOUNT_SOURCE: &str = "shunt";

/// The directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No bpffs, and none could be mounted.
    #[error(
        "mounting a bpffs at {path}: {cause}; run `mount -t bpf bpf {path}` as root, or name a directory on a bpffs in --bpffs"
    )]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A directory could not be made, read or removed.
    #[error("directory {path}: {cause}; check that it lies on a bpffs and that the agent is root")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It exists, on some other file system.
    #[error("{path} is not on a bpffs: nothing of Shunt's can be there; check --bpffs")]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent owns it.
    #[error("another agent{} runs on {path}: stop it first (only one of another network namespace may run, with another --bpffs)", pid_text(*pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other agent's process, where it can be seen.
        pid: Option<u32>,
    },
    /// Programs of another layout still run.
    #[error(
        "{path} serves, not layout {LAYOUT_VERSION}: programs of an agent of another version run on until an agent of this version has \
         had its first sync. Ask them with that version's lb-agent, and see in the log of the agent what it waits for"
    )]
    OtherLayout {
        /// The directory of the layout that serves.
        path: PathBuf,
    },
    /// A pin could not be made or replaced.
    #[error("pin {path}: {cause}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// The paths of all pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
    version: u32,
    /// Name of the directory of maps.
    maps: &'static str,
}

/// Where maps are pinned.
pub const MAPS: &str = "maps";
/// Where they are while others of another size take their places.
pub const MAPS_BEFORE: &str = "before";

/// Ownership of a pin directory. It ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    /// Held for its `flock`.
    file: Flock<File>,
}

impl Lock {
    /// Whether what is at a path now is what was locked: not so where the bpffs was unmounted, or the directory made anew.
    #[must_use]
    pub fn is_of(&self, path: &Path) -> bool {
        let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (held, found) = (self.file.metadata().map(place), fs::metadata(path).map(place));
        held.is_ok_and(|held| found.is_ok_and(|found| held == found))
    }
}

impl Pins {
    /// The pins below a directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.into(), version: LAYOUT_VERSION, maps: MAPS }
    }

    /// The same, with the maps that have been set aside while others of another size take their places.
    #[must_use]
    pub fn set_aside(&self) -> Self {
        Self { maps: MAPS_BEFORE, ..self.clone() }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The directory of all maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.directory(self.maps)
    }

    /// The pin of a program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory("programs").join(name)
    }

    /// The directory of all links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.directory(LINKS)
    }

    /// The directory of this layout version.
    #[must_use]
    pub fn layout(&self) -> PathBuf {
        self.root.join(format!("v{}", self.version))
    }

    /// The pins that agents with another layout version have left here.
    #[must_use]
    pub fn others(&self) -> Vec<Self> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let versions = entries.filter_map(|entry| version_of(&entry.path())).filter(|&version| version != self.version);
        versions.map(|version| Self { version, ..self.clone() }).collect()
    }

    /// Makes sure that it is this layout by which traffic is served: the maps of another one can't be read.
    ///
    /// # Errors
    /// Where programs of another layout run.
    pub fn check_serving(&self) -> Result<(), PinError> {
        // They go with the last link.
        let has_links = |other: &Self| fs::read_dir(other.links()).is_ok_and(|mut links| links.next().is_some());
        match self.others().into_iter().find(has_links) {
            Some(other) => Err(PinError::OtherLayout { path: other.layout() }),
            None => Ok(()),
        }
    }

    fn directory(&self, kind: &str) -> PathBuf {
        self.layout().join(kind)
    }

    /// Makes the directories, on a bpffs that is mounted first if there is none.
    ///
    /// # Errors
    /// Where that fails, with what to do about it.
    pub fn create(&self) -> Result<(), PinError> {
        if !is_bpffs(existing_ancestor(&self.root)) {
            mount_for(&self.root)?;
        }
        for path in self.directories() {
            fs::create_dir_all(&path).map_err(|cause| PinError::Directory { path, cause })?;
        }
        Ok(())
    }

    /// The directories that [`Pins::create`] makes.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> {
        [MAPS, "programs", LINKS].map(|kind| self.directory(kind)).into_iter()
    }

    /// Waits until no other process asks the programs a question.
    ///
    /// # Errors
    /// Where there are no pins.
    pub fn wait_for_turn(&self) -> Result<Lock, PinError> {
        let path = self.maps();
        let error = |cause| PinError::Directory { path: path.clone(), cause };
        let file = File::open(&path).map_err(error)?;
        let locked = Flock::lock(file, FlockArg::LockExclusive);
        locked.map(|file| Lock { file }).map_err(|(_, errno)| error(errno.into()))
    }

    /// Becomes the one agent that owns the directory, which must exist.
    ///
    /// # Errors
    /// Where another owns it.
    pub fn lock(&self) -> Result<Lock, PinError> {
        let directory = |cause| PinError::Directory { path: self.root.clone(), cause };
        let file = File::open(&self.root).map_err(directory)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Lock { file }),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = file.metadata().ok().and_then(|metadata| lock_owner(metadata.dev(), metadata.ino()));
                Err(PinError::Locked { path: self.root.clone(), pid })
            }
            Err((_, errno)) => Err(directory(errno.into())),
        }
    }
}

/// The layout version whose directory a path is: `v1`, `v2` and so on.
#[must_use]
pub fn version_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// End of the name of a pin that is about to get its own. No dot: bpffs reserves names with dots.
const DRAFT: &str = "-new";

/// Whether a pin has such a name.
#[must_use]
pub fn is_draft(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(DRAFT.as_bytes())
}

/// Pins, replacing what was pinned there in one step.
///
/// # Errors
/// When the kernel refuses.
pub fn replace(fd: impl AsFd, path: &Path) -> Result<(), PinError> {
    let error = |cause| PinError::Pin { path: path.into(), cause };
    let mut new = path.to_path_buf().into_os_string();
    new.push(DRAFT);
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(error(cause)),
        _ => {}
    }
    sys::pin(fd.as_fd(), &new).and_then(|()| fs::rename(&new, path)).map_err(error)
}

/// The same, and opens what is pinned there now.
///
/// # Errors
/// When the kernel refuses.
pub fn replace_and_open(fd: impl AsFd, path: &Path) -> Result<OwnedFd, PinError> {
    replace(fd, path)?;
    sys::open_pin(path).map_err(|cause| PinError::Pin { path: path.into(), cause })
}

/// Whether what is pinned at a path is this link.
#[must_use]
pub fn is_pinned(link: impl AsFd, path: &Path) -> bool {
    let found = sys::open_pin(path).and_then(|found| sys::link_id(found.as_fd()));
    found.is_ok_and(|found| sys::link_id(link.as_fd()).is_ok_and(|own| own == found))
}

/// Takes a pinned link off its device and removes the pin; it need not be there.
///
/// # Errors
/// When the pin can't be removed.
pub fn remove_link(path: &Path) -> io::Result<()> {
    if let Ok(link) = sys::open_pin(path) {
        // Refused where the device has gone, which has taken the link along. Without this the kernel would do it a
        // little after the pin is removed, and another XDP mode would be refused until then.
        let _ = sys::detach_link(link.as_fd());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a path lies on a bpffs.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.filesystem_type() == BPF_FS_MAGIC)
}

/// What is mounted exactly at a path, as its mounter named it; `None` where nothing is.
#[must_use]
pub fn mount_source(path: &Path) -> Option<String> {
    source_in(mounts(), path)
}

/// The last mount is on top.
fn source_in(mounts: Vec<Mount>, path: &Path) -> Option<String> {
    mounts.into_iter().rev().find(|mount| mount.target == path).map(|mount| mount.source)
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or_else(|| Path::new("/"))
}

/// Mounts a bpffs where it belongs, or on the directory itself where that lies elsewhere.
fn mount_for(root: &Path) -> Result<(), PinError> {
    let system = Path::new(SYSTEM_BPFFS);
    let (target, name) = if root.starts_with(system) { (system, "bpf") } else { (root, MOUNT_SOURCE) };
    fs::create_dir_all(target).map_err(|cause| PinError::Directory { path: target.into(), cause })?;
    mount(Some(name), target, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| PinError::Mount { path: target.into(), cause: errno.into() })
}

/// The process that holds a `flock` on an inode of a device, from `/proc/locks`.
fn lock_owner(device: u64, inode: u64) -> Option<u32> {
    owner_in(&fs::read_to_string("/proc/locks").ok()?, (major(device), minor(device), inode))
}

/// Lines such as `1: FLOCK  ADVISORY  WRITE 1234 00:1b:5678 0 EOF`: kind, process, device (hexadecimal) and inode, which
/// alone says little: that of every bpffs root is the same.
fn owner_in(locks: &str, ours: (u64, u64, u64)) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { return None };
        let [major, minor, inode] = place.split(':').collect::<Vec<_>>()[..] else { return None };
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        let place = (number(major)?, number(minor)?, inode.parse().ok()?);
        (place == ours).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:19:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 00:19:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 44 00:19:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 33 00:19:77 0 EOF\n";
        assert_eq!(owner_in(locks, (0, 0x19, 77)), Some(33));
        assert_eq!(owner_in(locks, (0, 0x19, 78)), Some(22));
        assert_eq!(owner_in(locks, (0, 0x19, 7)), None);
        assert_eq!(owner_in(locks, (0, 0x1a, 77)), None, "the same inode of another file system");
    }

    #[test]
    fn a_mount_is_known_by_its_source() {
        let mounts = "30 1 0:25 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700\n\
                      31 1 0:26 / /run/a rw - tmpfs shunt rw\n\
                      32 1 0:27 / /run/a rw - bpf shunt rw\n";
        let source = |path: &str| source_in(crate::dataplane::mounts::parse(mounts), Path::new(path));
        assert_eq!(source("/run/a").as_deref(), Some("shunt"));
        assert_eq!(source("/sys/fs/bpf").as_deref(), Some("bpf"));
        assert_eq!(source("/sys/fs/bpf/shunt"), None);
    }

    #[test]
    fn a_second_agent_is_told_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(directory.path());
        let lock = pins.lock().unwrap();
        let error = pins.lock().unwrap_err().to_string();
        assert!(error.starts_with(&format!("another agent (process {}) runs on", std::process::id())), "{error}");
        drop(lock);
        pins.lock().unwrap();
    }

    #[test]
    fn pins_carry_the_layout_version() {
        let pins = Pins::new(Path::new("/sys/fs/bpf/shunt"));
        assert_eq!(pins.map("CONFIG"), Path::new(&format!("/sys/fs/bpf/shunt/v{LAYOUT_VERSION}/maps/CONFIG")));
    }
}
