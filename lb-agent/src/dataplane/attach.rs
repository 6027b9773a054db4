// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on devices: links that are pinned, outlive the agent, and get new programs in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{Ebpf, programs::ProgramError};
use nix::{
    libc,
    net::if_::{if_indextoname, if_nametoindex},
};
use tracing::warn;

use super::{
    doors::{Door, XdpMode, XdpWish},
    filters,
    pins::{self, Pins},
    sys,
};

/// How a device's programs run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Whether TC is attached by links, or, before Linux 6.6, by filters.
    pub has_tc_links: bool,
    /// The XDP door, or why there is none.
    pub xdp: Result<Door, String>,
}

impl Attachment {
    /// Whether XDP runs in the driver, so that frames can be redirected to this device.
    #[must_use]
    pub fn is_native_xdp(&self) -> bool {
        self.xdp == Ok(Door::XdpDriver)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.has_tc_links { "TC" } else { "TC by filters" })?;
        match &self.xdp {
            Ok(door) => write!(f, ", {door}"),
            Err(why) => write!(f, ", no XDP ({why})"),
        }
    }
}

/// A device could not get its programs.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not there, or not under this name any more.
    #[error("device {name} (index {ifindex}) has gone")]
    Gone {
        /// Its name.
        name: String,
        /// Its index.
        ifindex: u32,
    },
    /// Its packets have no Ethernet header.
    #[error("device {name} is no Ethernet device (its hardware type is {hardware}): packets would not be understood")]
    NotEthernet {
        /// Its name.
        name: String,
        /// `ARPHRD_*` of the kernel's `include/uapi/linux/if_arp.h`.
        hardware: u16,
    },
    /// The kernel refused a link.
    #[error("{door} on {name}: {}", explain(cause))]
    Link {
        /// Its name.
        name: String,
        /// The door.
        door: Door,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel refused a filter.
    #[error("TC filters on {name}: {cause}")]
    Filter {
        /// Its name.
        name: String,
        /// What the kernel said.
        cause: ProgramError,
    },
}

impl AttachError {
    /// What can be done.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "nothing: it is attached when it comes back",
            Self::NotEthernet { .. } => "leave it out of --uplink and --pod-interface",
            Self::Link { door: Door::XdpDriver | Door::XdpGeneric, .. } => {
                "use --xdp auto, or remove the other XDP program"
            }
            Self::Link { .. } | Self::Filter { .. } => "see what else is attached with `bpftool net`",
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver does not have it".to_owned(),
        Some(libc::EBUSY) => "another program is attached there".to_owned(),
        _ => error.to_string(),
    }
}

/// All links of ours.
pub struct Links {
    pins: Pins,
    programs: BTreeMap<&'static str, OwnedFd>,
    xdp: XdpMode,
    open: BTreeMap<u32, BTreeSet<Door>>,
    filtered: BTreeSet<u32>,
}

impl Links {
    /// Adopts the links and filters of an earlier agent: they run the new programs from here on. Those whose device has
    /// gone are removed.
    pub fn adopt(pins: Pins, programs: BTreeMap<&'static str, OwnedFd>, xdp: XdpMode, ebpf: &mut Ebpf) -> Self {
        let mut links = Self { pins, programs, xdp, open: BTreeMap::new(), filtered: BTreeSet::new() };
        let entries = fs::read_dir(links.pins.links()).into_iter().flatten().flatten();
        let names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        for (door, ifindex) in names.iter().filter_map(|name| Door::of_pin(name)) {
            match links.adopt_one(door, ifindex) {
                Ok(true) => drop(links.open.entry(ifindex).or_default().insert(door)),
                Ok(false) => links.unpin(door, ifindex),
                Err(error) => {
                    warn!("{door} of device {ifindex}, left by an earlier agent, can't be taken over: {error}");
                    links.unpin(door, ifindex);
                }
            }
        }
        for ifindex in filters::marked(&links.pins) {
            let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
            match name.map(|name| filters::attach(ebpf, &links.pins, &name, ifindex)) {
                Some(Ok(())) => drop(links.filtered.insert(ifindex)),
                // The device has gone, and its filters with it; or they are attached anew in a moment.
                None | Some(Err(_)) => drop(filters::unmark(&links.pins, ifindex)),
            }
        }
        links
    }

    /// Whether the device is still there, and its link runs the new program.
    fn adopt_one(&self, door: Door, ifindex: u32) -> io::Result<bool> {
        let link = sys::open_pin(&self.pins.links().join(door.pin_name(ifindex)))?;
        if sys::link_info(link.as_fd())?.ifindex != ifindex {
            return Ok(false);
        }
        sys::update_link(link.as_fd(), self.programs[door.program()].as_fd())?;
        Ok(true)
    }

    /// Devices with programs of ours.
    pub fn devices(&self) -> BTreeSet<u32> {
        self.open.keys().chain(&self.filtered).copied().collect()
    }

    /// Attaches what a role asks for; what is there already stays, and what it does not ask for goes.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        (ifindex, name): (u32, &str),
        role: u16,
        is_veth: bool,
    ) -> Result<Attachment, AttachError> {
        self.check(ifindex, name)?;
        let has_tc_links = self.attach_tc(ebpf, ifindex, name)?;
        let wish = self.xdp.wish(role, is_veth);
        for door in [Door::XdpDriver, Door::XdpGeneric] {
            if wish != XdpWish::Must(door) && wish != XdpWish::May(door) && self.is_open(door, ifindex) {
                self.unpin(door, ifindex);
            }
        }
        let xdp = match wish {
            XdpWish::No(why) => Err(why.to_owned()),
            XdpWish::May(door) => self.open(door, ifindex).map(|()| door).map_err(|error| explain(&error)),
            XdpWish::Must(door) => Ok(self.open_or_fail(door, ifindex, name).map(|()| door)?),
        };
        Ok(Attachment { has_tc_links, xdp })
    }

    /// Takes our programs off a device, or forgets it if it has gone.
    pub fn detach(&mut self, ifindex: u32) {
        for door in self.open.get(&ifindex).cloned().unwrap_or_default() {
            self.unpin(door, ifindex);
        }
        if self.filtered.remove(&ifindex) {
            if let Some(name) = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok()) {
                filters::detach(&name);
            }
            // Gone already where somebody has tidied up: then there is nothing to forget.
            let _ = filters::unmark(&self.pins, ifindex);
        }
    }

    fn check(&self, ifindex: u32, name: &str) -> Result<(), AttachError> {
        const ARPHRD_ETHER: u16 = 1;
        let gone = || AttachError::Gone { name: name.to_owned(), ifindex };
        if if_nametoindex(name) != Ok(ifindex) {
            return Err(gone());
        }
        match sys::hardware_type(name) {
            Ok(ARPHRD_ETHER) => Ok(()),
            Ok(hardware) => Err(AttachError::NotEthernet { name: name.to_owned(), hardware }),
            Err(_) => Err(gone()),
        }
    }

    /// Whether by links; else by filters.
    fn attach_tc(&mut self, ebpf: &mut Ebpf, ifindex: u32, name: &str) -> Result<bool, AttachError> {
        if self.filtered.contains(&ifindex) {
            return Ok(false);
        }
        for door in [Door::TcIngress, Door::TcEgress] {
            match self.open_or_fail(door, ifindex, name) {
                // A kernel before 6.6 does not know this kind of link.
                Err(AttachError::Link { cause, .. }) if cause.raw_os_error() == Some(libc::EINVAL) => {
                    filters::attach(ebpf, &self.pins, name, ifindex)
                        .map_err(|cause| AttachError::Filter { name: name.to_owned(), cause })?;
                    self.filtered.insert(ifindex);
                    return Ok(false);
                }
                result => result?,
            }
        }
        Ok(true)
    }

    fn open_or_fail(&mut self, door: Door, ifindex: u32, name: &str) -> Result<(), AttachError> {
        self.open(door, ifindex).map_err(|cause| match cause.raw_os_error() {
            Some(libc::ENODEV) => AttachError::Gone { name: name.to_owned(), ifindex },
            _ => AttachError::Link { name: name.to_owned(), door, cause },
        })
    }

    fn open(&mut self, door: Door, ifindex: u32) -> io::Result<()> {
        if self.is_open(door, ifindex) {
            return Ok(());
        }
        let (attach_type, flags) = door.attach();
        let link = sys::create_link(self.programs[door.program()].as_fd(), ifindex, attach_type, flags)?;
        sys::pin(link.as_fd(), &self.pins.links().join(door.pin_name(ifindex)))?;
        self.open.entry(ifindex).or_default().insert(door);
        Ok(())
    }

    fn is_open(&self, door: Door, ifindex: u32) -> bool {
        self.open.get(&ifindex).is_some_and(|doors| doors.contains(&door))
    }

    fn unpin(&mut self, door: Door, ifindex: u32) {
        let path = self.pins.links().join(door.pin_name(ifindex));
        if let Err(error) = pins::remove_link(&path) {
            warn!("removing {}: {error}", path.display());
        }
        if let Some(doors) = self.open.get_mut(&ifindex) {
            doors.remove(&door);
            if doors.is_empty() {
                self.open.remove(&ifindex);
            }
        }
    }
}
