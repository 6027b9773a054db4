// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on devices: links that are pinned, outlive the agent, and get its successor's programs in place, once the maps
//! of those hold what they should.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::ProgramError};
use lb_common::config::role;
use nix::{libc, net::if_::if_nametoindex};
use tracing::warn;

use super::{
    OpenError,
    audit::{Audit, LinkFate, LinkState, Part, judge},
    doors::{Door, XdpMode, XdpWish},
    filters,
    pins::{self, Pins},
    remove::remove_layout,
    sys::{self, device_name},
};
use crate::node::roles::Duty;

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
    /// The kernel refused an element of a program array.
    #[error("programs for packets that are not plain: {cause}")]
    Tails {
        /// What was refused.
        cause: Box<OpenError>,
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
            Self::Tails { .. } => "restart the agent; if it comes again, run `lb-agent cleanup` first",
            Self::Link { .. } | Self::Filter { .. } => "see what else is attached with `bpftool net`",
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver does not have it".to_owned(),
        Some(libc::EBUSY) => "another program is attached there".to_owned(),
        // So the kernel says to a program in the driver where one is in the network stack, and the other way round.
        Some(libc::EEXIST) => "another program is attached there, in the other mode (driver or generic)".to_owned(),
        // So veth says that a frame would not fit into a page, and so most drivers do.
        Some(libc::ERANGE | libc::EINVAL) => format!("{error}: perhaps its MTU is too large, 3500 bytes are not"),
        _ => error.to_string(),
    }
}

/// A link on a device.
struct Held {
    /// Its pin, which may be one of another layout version.
    path: PathBuf,
    /// Held open: a link lives as long as its pin or a descriptor of it.
    link: OwnedFd,
    /// Whether it runs this agent's program; else that of an earlier one.
    is_ours: bool,
}

/// All links of ours and of earlier agents.
pub struct Links {
    pins: Pins,
    programs: BTreeMap<&'static str, OwnedFd>,
    xdp: XdpMode,
    open: BTreeMap<u32, BTreeMap<Door, Held>>,
    /// Devices with filters, and the pins that remember them; whether the filters are ours, as with links.
    filtered: BTreeMap<u32, (Pins, bool)>,
}

impl Links {
    /// Finds the links and filters of earlier agents, whatever their layout version. They run on as they are until
    /// [`Links::take_over`]. Those whose device has gone are removed.
    pub fn adopt(pins: Pins, programs: BTreeMap<&'static str, OwnedFd>, xdp: XdpMode) -> Self {
        let mut links = Self { pins, programs, xdp, open: BTreeMap::new(), filtered: BTreeMap::new() };
        for place in [links.pins.clone()].into_iter().chain(links.pins.others()) {
            let entries = fs::read_dir(place.links()).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Some((door, ifindex)) = Door::of_pin(name) else { continue };
                let held = sys::open_pin(&path).map(|link| Held { path: path.clone(), link, is_ours: false });
                let Some(held) = held.ok().filter(|held| held.is_on(ifindex)) else {
                    remove(&path);
                    continue;
                };
                if !links.is_open(door, ifindex) {
                    links.open.entry(ifindex).or_default().insert(door, held);
                }
            }
            for ifindex in filters::marked(&place.links()) {
                // A device that has gone has taken its filters along.
                match device_name(ifindex) {
                    Some(_) => drop(links.filtered.insert(ifindex, (place.clone(), false))),
                    None => drop(filters::unmark(&place, ifindex)),
                }
            }
        }
        links
    }

    /// Lets every adopted link and filter run this agent's programs, in place, and removes what is left of other layout
    /// versions. For this the maps must hold what they should: those of a new layout were empty. What is refused runs on
    /// as it is.
    pub fn take_over(&mut self, ebpf: &mut Ebpf) -> Vec<AttachError> {
        let mut refused = Vec::new();
        let held =
            self.open.iter().flat_map(|(&ifindex, doors)| doors.iter().map(move |(&door, held)| (ifindex, door, held)));
        let former: Vec<_> =
            held.filter(|(.., held)| !held.is_ours).map(|(ifindex, door, _)| (door, ifindex)).collect();
        for (door, ifindex) in former {
            if let Err(cause) = self.take_over_link(door, ifindex) {
                let name = device_name(ifindex).unwrap_or_else(|| ifindex.to_string());
                refused.push(AttachError::Link { name, door, cause });
            }
        }
        let former = self.filtered.iter_mut().filter(|(_, (_, is_ours))| !is_ours);
        for (&ifindex, (place, is_ours)) in former {
            let Some(name) = device_name(ifindex) else { continue };
            match filters::attach(ebpf, &self.pins, &name, ifindex) {
                Ok(()) => {
                    if *place != self.pins {
                        // The directory of another layout, which shall go.
                        let _ = filters::unmark(place, ifindex);
                    }
                    (*place, *is_ours) = (self.pins.clone(), true);
                }
                Err(cause) => refused.push(AttachError::Filter { name, cause }),
            }
        }
        for other in self.pins.others().iter().filter(|other| !self.needs(other)) {
            match remove_layout(&other.layout()) {
                Ok(()) => warn!(
                    "maps of another layout are gone: {}; the flows and sockets that they held are forgotten, connections \
                     in progress are decided anew",
                    other.layout().display()
                ),
                Err(error) => warn!("{error}"),
            }
        }
        refused
    }

    /// Whether links or filters still run that another layout's directory tells of.
    fn needs(&self, other: &Pins) -> bool {
        let mut links = self.open.values().flat_map(BTreeMap::values);
        links.any(|held| held.path.starts_with(other.layout()))
            || self.filtered.values().any(|(place, _)| place == other)
    }

    /// In place where the kernel lets us. Else a second link is made beside the first, which goes only then; XDP has no
    /// room for two.
    fn take_over_link(&mut self, door: Door, ifindex: u32) -> io::Result<()> {
        let Some(held) = self.open.get_mut(&ifindex).and_then(|doors| doors.get_mut(&door)) else { return Ok(()) };
        let own = self.pins.links().join(door.pin_name(ifindex));
        let program = self.programs[door.program()].as_fd();
        match sys::update_link(held.link.as_fd(), program) {
            Ok(()) if held.path != own => fs::rename(&held.path, &own)?,
            Ok(()) => {}
            Err(refused) => {
                let (attach_type, flags) = door.attach();
                let second = sys::create_link(program, ifindex, attach_type, flags).map_err(|_| refused)?;
                pins::replace(&second, &own).map_err(io::Error::other)?;
                // Gone already if its device went meanwhile.
                let _ = sys::detach_link(held.link.as_fd());
                if held.path != own {
                    remove(&held.path);
                }
                held.link = second;
            }
        }
        (held.path, held.is_ours) = (own, true);
        Ok(())
    }

    /// Devices with programs of ours.
    pub fn devices(&self) -> BTreeSet<u32> {
        self.open.keys().chain(self.filtered.keys()).copied().collect()
    }

    /// Attaches what a duty asks for; what is there already stays, and what it does not ask for goes.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        (ifindex, name): (u32, &str),
        duty: Duty,
        kind: &str,
    ) -> Result<Attachment, AttachError> {
        let is_loopback = self.check(ifindex, name, duty)?;
        let doors = Door::of_device(name, is_loopback);
        let has_tc_links = self.attach_tc(ebpf, (ifindex, name), doors)?;
        for door in Door::ALL.into_iter().filter(|door| door.is_tc() && !doors.contains(door)) {
            // The device had another name.
            self.unpin(door, ifindex);
        }
        let wish = self.xdp.wish(duty, kind);
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

    /// Looks whether every link and filter is still there, runs what it should, and is pinned; puts back what is not. Of devices
    /// that have gone netlink tells.
    pub fn audit(&mut self, ebpf: &mut Ebpf, audit: &mut Audit) {
        let open: Vec<_> =
            self.open.iter().flat_map(|(&ifindex, doors)| doors.keys().map(move |&door| (ifindex, door))).collect();
        for (ifindex, door) in open {
            if let Some(name) = device_name(ifindex) {
                self.audit_link(door, ifindex, &name, audit);
            }
        }
        let filtered: Vec<_> = self.filtered.keys().copied().collect();
        for ifindex in filtered {
            if let Some(name) = device_name(ifindex) {
                self.audit_filters(ebpf, ifindex, &name, audit);
            }
        }
    }

    fn audit_link(&mut self, door: Door, ifindex: u32, name: &str, audit: &mut Audit) {
        let program = self.programs[door.program()].as_fd();
        let own = self.pins.links().join(door.pin_name(ifindex));
        let Some(held) = self.open.get_mut(&ifindex).and_then(|doors| doors.get_mut(&door)) else { return };
        let wanted = sys::program_id(program).ok().filter(|_| held.is_ours);
        let fate = judge(held.state(), ifindex.into(), wanted);
        let outcome = match fate {
            LinkFate::Whole => Ok(()),
            LinkFate::OtherProgram => sys::update_link(held.link.as_fd(), program),
            LinkFate::Detached => {
                let (attach_type, flags) = door.attach();
                sys::create_link(program, ifindex, attach_type, flags).map(|link| {
                    remove(&held.path);
                    (held.link, held.is_ours) = (link, true);
                    // The pin is this link's, and no loss of its own.
                    if pins::replace(&held.link, &own).is_ok() {
                        held.path.clone_from(&own);
                    }
                })
            }
        };
        let (is_whole, is_there) = (matches!(fate, LinkFate::Whole), outcome.is_ok());
        if !is_whole {
            audit.note(Part::Link, format!("{door} on {name}"), outcome.map_err(|error| explain(&error)));
        }
        if !is_there || pins::is_pinned(&held.link, &held.path) {
            return;
        }
        let pinned = pins::replace(&held.link, &own);
        if pinned.is_ok() {
            held.path.clone_from(&own);
        }
        audit.note(Part::Pin, own.display().to_string(), pinned);
    }

    fn audit_filters(&mut self, ebpf: &mut Ebpf, ifindex: u32, name: &str, audit: &mut Audit) {
        let lost = filters::missing(ifindex, name);
        let is_marked = self.filtered.get(&ifindex).is_some_and(|(place, _)| filters::is_marked(place, ifindex));
        if lost.is_empty() && is_marked {
            return;
        }
        let outcome = self.filter(ebpf, ifindex, name);
        for filter in lost {
            audit.note(Part::Filter, format!("{filter} on {name}"), outcome.as_ref().map(|&()| ()));
        }
        if !is_marked {
            audit.note(Part::Pin, format!("mark of the filters on {name}"), outcome);
        }
    }

    /// Takes our programs off a device, or forgets it if it has gone.
    pub fn detach(&mut self, ifindex: u32) {
        self.open.remove(&ifindex).into_iter().flatten().for_each(|(_, held)| held.end());
        if let Some((place, _)) = self.filtered.remove(&ifindex) {
            if let Some(name) = device_name(ifindex) {
                filters::detach(&name);
            }
            // Gone already where somebody has tidied up: then there is nothing to forget.
            let _ = filters::unmark(&place, ifindex);
        }
    }

    /// Whether it is the loopback device. Its packets begin like those of Ethernet devices, and nothing but the net wants them.
    fn check(&self, ifindex: u32, name: &str, duty: Duty) -> Result<bool, AttachError> {
        let gone = || AttachError::Gone { name: name.to_owned(), ifindex };
        if if_nametoindex(name) != Ok(ifindex) {
            return Err(gone());
        }
        match sys::hardware_type(name) {
            Ok(sys::ARPHRD_ETHER) => Ok(false),
            Ok(sys::ARPHRD_LOOPBACK) if duty.role == role::NET => Ok(true),
            Ok(hardware) => Err(AttachError::NotEthernet { name: name.to_owned(), hardware }),
            Err(_) => Err(gone()),
        }
    }

    /// Whether by links; else by filters.
    fn attach_tc(
        &mut self,
        ebpf: &mut Ebpf,
        (ifindex, name): (u32, &str),
        doors: &[Door],
    ) -> Result<bool, AttachError> {
        match self.filtered.get(&ifindex) {
            Some((_, false)) => return Ok(false),
            // Replaced in place, or made anew on a device that has come back.
            Some((_, true)) => return self.filter(ebpf, ifindex, name).map(|()| false),
            None => {}
        }
        for &door in doors {
            match self.open_or_fail(door, ifindex, name) {
                // A kernel before 6.6 does not know this kind of link.
                Err(AttachError::Link { cause, .. }) if cause.raw_os_error() == Some(libc::EINVAL) => {
                    return self.filter(ebpf, ifindex, name).map(|()| false);
                }
                result => result?,
            }
        }
        Ok(true)
    }

    fn filter(&mut self, ebpf: &mut Ebpf, ifindex: u32, name: &str) -> Result<(), AttachError> {
        filters::attach(ebpf, &self.pins, name, ifindex)
            .map_err(|cause| AttachError::Filter { name: name.to_owned(), cause })?;
        self.filtered.insert(ifindex, (self.pins.clone(), true));
        Ok(())
    }

    fn open_or_fail(&mut self, door: Door, ifindex: u32, name: &str) -> Result<(), AttachError> {
        self.open(door, ifindex).map_err(|cause| match cause.raw_os_error() {
            Some(libc::ENODEV) => AttachError::Gone { name: name.to_owned(), ifindex },
            _ => AttachError::Link { name: name.to_owned(), door, cause },
        })
    }

    fn open(&mut self, door: Door, ifindex: u32) -> io::Result<()> {
        match self.open.get(&ifindex).and_then(|doors| doors.get(&door)) {
            Some(held) if held.is_on(ifindex) => return Ok(()),
            _ => self.unpin(door, ifindex),
        }
        let (attach_type, flags) = door.attach();
        let link = sys::create_link(self.programs[door.program()].as_fd(), ifindex, attach_type, flags)?;
        let path = self.pins.links().join(door.pin_name(ifindex));
        sys::pin(link.as_fd(), &path)?;
        self.open.entry(ifindex).or_default().insert(door, Held { path, link, is_ours: true });
        Ok(())
    }

    fn is_open(&self, door: Door, ifindex: u32) -> bool {
        self.open.get(&ifindex).is_some_and(|doors| doors.contains_key(&door))
    }

    fn unpin(&mut self, door: Door, ifindex: u32) {
        let Some(doors) = self.open.get_mut(&ifindex) else { return };
        doors.remove(&door).into_iter().for_each(Held::end);
        if doors.is_empty() {
            self.open.remove(&ifindex);
        }
    }
}

impl Held {
    /// Whether the link is still on the device: it ends with it, and the next device may get the same index.
    fn is_on(&self, ifindex: u32) -> bool {
        self.state().is_some_and(|state| state.target == u64::from(ifindex))
    }

    fn state(&self) -> Option<LinkState> {
        let info = sys::link_info(self.link.as_fd()).ok()?;
        Some(LinkState { target: info.ifindex.into(), program: info.program_id })
    }

    /// Takes it off its device, also where its pin has been removed already.
    fn end(self) {
        // Refused where the device has gone, which has taken the link along.
        let _ = sys::detach_link(self.link.as_fd());
        remove(&self.path);
    }
}

/// Takes a link off its device, or forgets it if that has gone.
fn remove(path: &Path) {
    if let Err(error) = pins::remove_link(path) {
        warn!("removing {}: {error}", path.display());
    }
}
