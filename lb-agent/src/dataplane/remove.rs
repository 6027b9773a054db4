// SPDX-License-Identifier: MIT OR Apache-2.0
//! Takes away everything that an agent ever made below a directory, whatever its layout version.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, umount2},
    net::if_::if_nameindex,
};
use tracing::debug;

use super::{
    filters,
    pins::{self, LINKS, MAPS, MAPS_BEFORE, MOUNT_SOURCE, PinError, Pins, is_bpffs, version_of},
    sockets,
    sys::device_name,
};

/// What an agent has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A pinned link, and with it the program on a device.
    Link {
        /// Its pin.
        path: PathBuf,
        /// The device, where it still exists.
        device: Option<String>,
    },
    /// A pinned link, and with it a program of the socket door.
    SocketLink(PathBuf),
    /// TC filters on a device (Linux before 6.6).
    Filters {
        /// The device.
        device: String,
    },
    /// A pinned program.
    Program(PathBuf),
    /// A pinned map, with all that it held.
    Map(PathBuf),
    /// A directory.
    Directory(PathBuf),
    /// A bpffs that an agent had mounted.
    Mount(PathBuf),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { path, device: Some(device) } => write!(f, "link {} (on {device})", path.display()),
            Self::Link { path, device: None } => write!(f, "link {} (its device has gone)", path.display()),
            Self::SocketLink(path) => write!(f, "link {} (on a cgroup)", path.display()),
            Self::Filters { device } => write!(f, "TC filters on {device}"),
            Self::Program(path) => write!(f, "program {}", path.display()),
            Self::Map(path) => write!(f, "map {}", path.display()),
            Self::Directory(path) => write!(f, "directory {}", path.display()),
            Self::Mount(path) => write!(f, "bpffs mounted at {}", path.display()),
        }
    }
}

/// Removes everything, links first, so that no program runs whose maps are gone. `report` is told of every item. With
/// `dry_run` it is told the same, but nothing is removed; TC filters are then known by their marks alone.
///
/// # Errors
/// When an agent still runs, or something can't be removed. What came before is gone then; calling again goes on.
pub fn remove_all(root: &Path, dry_run: bool, report: &mut dyn FnMut(&Item)) -> Result<(), PinError> {
    let mut removal = Removal { dry_run, report };
    if !root.exists() {
        return removal.filters(&[]);
    }
    if !is_bpffs(root) {
        return Err(PinError::NotBpffs { path: root.into() });
    }
    let _lock = Pins::new(root).lock()?;
    let layouts: Vec<_> = children(root)?.into_iter().filter(|path| version_of(path).is_some()).collect();
    for layout in &layouts {
        removal.links(&layout.join(LINKS))?;
    }
    removal.filters(&layouts)?;
    for layout in layouts {
        removal.layout(&layout)?;
    }
    removal.root(root)
}

/// Removes what is left of a layout version, whose links nothing needs any more.
///
/// # Errors
/// When something can't be removed.
pub fn remove_layout(layout: &Path) -> Result<(), PinError> {
    let mut removal =
        Removal { dry_run: false, report: &mut |item| debug!("of another layout version: {item} removed") };
    removal.links(&layout.join(LINKS))?;
    removal.layout(layout)
}

struct Removal<'a> {
    dry_run: bool,
    report: &'a mut dyn FnMut(&Item),
}

impl Removal<'_> {
    fn item(&mut self, path: &Path, item: &Item, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), PinError> {
        if !self.dry_run {
            remove(path).map_err(|cause| PinError::Pin { path: path.into(), cause })?;
        }
        (self.report)(item);
        Ok(())
    }

    /// Links of a layout, of this version or another: whatever is pinned here is ours.
    fn links(&mut self, directory: &Path) -> Result<(), PinError> {
        for path in children(directory)?.into_iter().filter(|path| !path.is_dir()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let ifindex = name.rsplit_once('-').and_then(|(_, ifindex)| ifindex.parse().ok());
            let item = if name.starts_with(sockets::PIN_PREFIX) {
                Item::SocketLink(path.clone())
            } else {
                Item::Link { path: path.clone(), device: ifindex.and_then(device_name) }
            };
            self.item(&path, &item, pins::remove_link)?;
        }
        Ok(())
    }

    /// Filters outlive a lost mark, so every device is asked, not only those that a layout has marked.
    fn filters(&mut self, layouts: &[PathBuf]) -> Result<(), PinError> {
        if self.dry_run {
            let marked: BTreeSet<u32> =
                layouts.iter().flat_map(|layout| filters::marked(&layout.join(LINKS))).collect();
            for device in marked.into_iter().filter_map(device_name) {
                (self.report)(&Item::Filters { device });
            }
            return Ok(());
        }
        let devices =
            if_nameindex().map(|devices| devices.to_slice().iter().map(|device| device.name().to_owned()).collect());
        let devices: Vec<_> = devices.unwrap_or_default();
        for device in devices.into_iter().filter_map(|name| name.into_string().ok()) {
            if !filters::detach(&device).is_empty() {
                (self.report)(&Item::Filters { device });
            }
        }
        Ok(())
    }

    /// Marks of filters: the devices that they remember may have gone long ago.
    fn marks(&mut self, links: &Path) -> Result<(), PinError> {
        for ifindex in filters::marked(links).into_iter().filter(|_| !self.dry_run) {
            let path = filters::mark(links, ifindex);
            fs::remove_dir(&path).map_err(|cause| PinError::Directory { path, cause })?;
        }
        Ok(())
    }

    /// All but the links, whose marks go, too.
    fn layout(&mut self, layout: &Path) -> Result<(), PinError> {
        self.marks(&layout.join(LINKS))?;
        self.pins(&layout.join("programs"), Item::Program)?;
        self.pins(&layout.join(MAPS), Item::Map)?;
        self.pins(&layout.join(MAPS_BEFORE), Item::Map)?;
        self.directory(layout)
    }

    fn pins(&mut self, directory: &Path, item: fn(PathBuf) -> Item) -> Result<(), PinError> {
        for path in children(directory)? {
            self.item(&path, &item(path.clone()), |path| fs::remove_file(path))?;
        }
        Ok(())
    }

    /// A layout's directory with what is in it: directories alone by now.
    fn directory(&mut self, path: &Path) -> Result<(), PinError> {
        for child in children(path)? {
            self.item(&child, &Item::Directory(child.clone()), |path| fs::remove_dir(path))?;
        }
        self.item(path, &Item::Directory(path.into()), |path| fs::remove_dir(path))
    }

    /// The directory itself, unless something that is not ours lies in it, or a bpffs is mounted there by somebody else.
    fn root(&mut self, root: &Path) -> Result<(), PinError> {
        if children(root)?.iter().any(|path| version_of(path).is_none() && !is_kernels(path)) {
            return Ok(());
        }
        match pins::mount_source(root) {
            Some(source) if source == MOUNT_SOURCE => {
                // Lazily: our lock is still open there.
                let unmount = |path: &Path| umount2(path, MntFlags::MNT_DETACH).map_err(io::Error::from);
                self.item(root, &Item::Mount(root.into()), unmount)
            }
            Some(_) => Ok(()),
            None => self.item(root, &Item::Directory(root.into()), |path| fs::remove_dir(path)),
        }
    }
}

/// The kernel's own files in a new bpffs (`maps.debug`, `progs.debug`): nobody else may use names with dots.
fn is_kernels(path: &Path) -> bool {
    path.extension().is_some()
}

/// What is in a directory, in order; nothing where there is none.
fn children(directory: &Path) -> Result<Vec<PathBuf>, PinError> {
    let error = |cause| PinError::Directory { path: directory.into(), cause };
    let entries = match fs::read_dir(directory) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(error)?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(error)?;
    paths.sort();
    Ok(paths)
}
