// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pins of maps and programs: descriptors are held of all, so that a pin which somebody removes can be made again.
//!
//! Without its pin a map lives as long as this process, and the next agent would begin with an empty one.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use lb_common::maps;

use super::{
    OpenError,
    audit::{Audit, Part},
    maps::MapError,
    pins::{self, PinError, Pins},
    sys,
};

/// A map or program, and where it is pinned.
struct Pinned {
    path: PathBuf,
    fd: OwnedFd,
    id: u32,
    number: fn(BorrowedFd<'_>) -> io::Result<u32>,
}

/// All of them, as this agent has pinned them.
pub struct PinnedObjects(Vec<Pinned>);

impl PinnedObjects {
    /// Opens what is pinned now: all maps, and these programs.
    pub fn open(pins: &Pins, programs: impl IntoIterator<Item = &'static str>) -> Result<Self, OpenError> {
        let map = |name| {
            let path = pins.map(name);
            let text = path.display().to_string();
            Pinned::open(path, sys::map_id).map_err(|cause| MapError::Open { path: text, cause }.into())
        };
        let program = |name| {
            let path = pins.program(name);
            Pinned::open(path.clone(), sys::program_id).map_err(|cause| PinError::Pin { path, cause }.into())
        };
        let maps = maps::PINNED.into_iter().map(map);
        Ok(Self(maps.chain(programs.into_iter().map(program)).collect::<Result<_, OpenError>>()?))
    }

    /// Pins again what is not pinned any more, or whose place another has taken.
    pub fn audit(&self, audit: &mut Audit) {
        for pinned in self.0.iter().filter(|pinned| !pinned.is_there()) {
            audit.note(Part::Pin, pinned.path.display().to_string(), pins::replace(&pinned.fd, &pinned.path));
        }
    }
}

impl Pinned {
    fn open(path: PathBuf, number: fn(BorrowedFd<'_>) -> io::Result<u32>) -> io::Result<Self> {
        let fd = sys::open_pin(&path)?;
        let id = number(fd.as_fd())?;
        Ok(Self { path, fd, id, number })
    }

    fn is_there(&self) -> bool {
        sys::open_pin(&self.path).and_then(|found| (self.number)(found.as_fd())).is_ok_and(|found| found == self.id)
    }
}
