// SPDX-License-Identifier: MIT OR Apache-2.0
//! The socket door: which programs it has, what they need of the kernel, and their links on the cgroup, which are pinned and
//! replaced in place like those on devices.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io,
    net::UdpSocket,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::generated::bpf_attach_type::{self, *};
use lb_common::{
    maps::{globals, programs},
    socket::socket_mode,
};
use tracing::warn;

use super::{
    audit::{Audit, LinkFate, LinkState, Part, judge},
    load,
    mounts::{Mount, mounts},
    pins::{self, Pins},
    sys,
};

/// Whose sockets are translated when they connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SocketMode {
    /// Those of the node's own processes and of pods in the node's network namespace; other pods are served packet by packet
    #[default]
    Host,
    /// Those of all pods too: no cost per packet, but side-cars and sandboxes that redirect a pod's connections see
    /// backends instead of Services
    All,
    /// None: the node's own processes reach no Service, unless by the net
    Off,
}

/// How the door is to be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// For whom.
    pub mode: SocketMode,
    /// The cgroup whose sockets are meant; else the root of the first cgroup v2 file system.
    pub cgroup: Option<PathBuf>,
}

impl SocketOptions {
    /// No door.
    pub const OFF: Self = Self { mode: SocketMode::Off, cgroup: None };
}

/// What the names of all pins of this door's links begin with; those on devices begin otherwise.
pub const PIN_PREFIX: &str = "socket-";

/// The programs, in the order of [`HOOKS`].
pub const PROGRAMS: [&str; HOOKS.len()] = {
    let mut names = [""; HOOKS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = HOOKS[index].0;
        index += 1;
    }
    names
};

/// A program's place: its name, its hook, and the name of its link's pin.
const HOOKS: [(&str, bpf_attach_type, &str); 9] = [
    (programs::CONNECT4, BPF_CGROUP_INET4_CONNECT, "socket-connect4"),
    (programs::CONNECT6, BPF_CGROUP_INET6_CONNECT, "socket-connect6"),
    (programs::SENDMSG4, BPF_CGROUP_UDP4_SENDMSG, "socket-sendmsg4"),
    (programs::SENDMSG6, BPF_CGROUP_UDP6_SENDMSG, "socket-sendmsg6"),
    (programs::RECVMSG4, BPF_CGROUP_UDP4_RECVMSG, "socket-recvmsg4"),
    (programs::RECVMSG6, BPF_CGROUP_UDP6_RECVMSG, "socket-recvmsg6"),
    (programs::GETPEERNAME4, BPF_CGROUP_INET4_GETPEERNAME, "socket-getpeername4"),
    (programs::GETPEERNAME6, BPF_CGROUP_INET6_GETPEERNAME, "socket-getpeername6"),
    (programs::SOCK_RELEASE, BPF_CGROUP_INET_SOCK_RELEASE, "socket-release"),
];

/// The door can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is no cgroup v2.
    #[error("no cgroup v2 file system is mounted")]
    NoCgroup,
    /// The cgroup's directory can't be opened.
    #[error("cgroup {path}: {cause}")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel refused a program.
    #[error("program {name}: {cause}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        cause: String,
    },
    /// The kernel refused a link.
    #[error("{name} on cgroup {path}: {cause}")]
    Link {
        /// The program's name.
        name: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// What this kernel has of what the door can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFeatures {
    /// Cookie of this network namespace, by which the programs know the node's own sockets.
    pub namespace: u64,
    /// Programs can name their error (6.1).
    pub has_set_retval: bool,
}

impl SocketFeatures {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When this network namespace has no name.
    pub fn detect() -> io::Result<Self> {
        let namespace = sys::namespace_cookie(UdpSocket::bind("0.0.0.0:0")?.as_fd())?;
        let helper = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
        Ok(Self { namespace, has_set_retval: helper.unwrap_or(false) })
    }

    /// What the programs are told; what each means stands beside the programs' maps.
    pub fn globals(&self, mode: SocketMode) -> [(&'static str, u64); 3] {
        let mode = if mode == SocketMode::All { socket_mode::ALL } else { socket_mode::HOST };
        [
            (globals::SOCKET_MODE, mode),
            (globals::NODE_NAMESPACE, self.namespace),
            (globals::HAS_SET_RETVAL, u64::from(self.has_set_retval)),
        ]
    }

    /// What is lacking, and what that costs.
    fn lacks(&self) -> Option<&'static str> {
        const NO_ERROR: &str = "the kernel (before 6.1) lets socket programs name no error: UDP to a Service without endpoints \
                                fails with EPERM instead of ECONNREFUSED";
        (!self.has_set_retval).then_some(NO_ERROR)
    }
}

/// The door's programs and links.
pub struct SocketDoor {
    pins: Pins,
    /// `None` where it stays closed.
    open: Option<Open>,
    /// Whether every hook has its program.
    is_attached: bool,
}

struct Open {
    cgroup: Cgroup,
    /// In the order of [`HOOKS`].
    programs: Vec<OwnedFd>,
    /// Those that were made or taken over, in the same order; held open: a link lives as long as its pin or a descriptor of it.
    links: Vec<Option<OwnedFd>>,
}

struct Cgroup {
    path: PathBuf,
    directory: File,
    /// Inode of the directory.
    id: u64,
}

impl Cgroup {
    fn open(given: Option<&Path>) -> Result<Self, SocketError> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => cgroup_in(mounts()).ok_or(SocketError::NoCgroup)?,
        };
        let error = |cause| SocketError::Cgroup { path: path.clone(), cause };
        let directory = File::open(&path).map_err(error)?;
        let id = directory.metadata().map_err(error)?.ino();
        Ok(Self { path, directory, id })
    }
}

/// Where the first cgroup v2 file system is.
fn cgroup_in(mounts: Vec<Mount>) -> Option<PathBuf> {
    mounts.into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.target)
}

impl SocketDoor {
    /// Takes the loaded programs, or what was `refused` of them. What keeps the door closed is said, and is no error: the packet
    /// doors work without it.
    pub fn load(
        ebpf: &Ebpf,
        mut refused: BTreeMap<&'static str, ProgramError>,
        pins: Pins,
        options: &SocketOptions,
        features: &SocketFeatures,
    ) -> Self {
        if options.mode == SocketMode::Off {
            return Self { pins, open: None, is_attached: false };
        }
        let open = Cgroup::open(options.cgroup.as_deref()).and_then(|cgroup| {
            let programs = pin_programs(ebpf, &mut refused, &pins)?;
            Ok(Open { cgroup, programs, links: HOOKS.map(|_| None).into() })
        });
        match &open {
            Ok(_) => features.lacks().iter().for_each(|lack| warn!("socket door: {lack}")),
            Err(why) => warn!(
                "no socket door: {why}; the node's own processes reach no Service, and NodePorts are not served on localhost"
            ),
        }
        Self { pins, open: open.ok(), is_attached: false }
    }

    /// Whether sockets are translated: the door could be opened, and has been.
    pub const fn is_attached(&self) -> bool {
        self.is_attached
    }

    /// Whether an earlier agent has opened it.
    pub fn has_links(&self) -> bool {
        HOOKS.iter().any(|(.., pin)| self.pins.links().join(pin).exists())
    }

    /// Whether the door can be opened.
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Opens the door, or lets the links of an earlier agent run this agent's programs, in place; closes it where it is not
    /// wanted any more. The maps must hold what they should. What is refused runs on as it is.
    pub fn take_over(&mut self) -> Vec<SocketError> {
        let mut refused = Vec::new();
        for (index, (name, attach_type, pin)) in HOOKS.into_iter().enumerate() {
            let own = self.pins.links().join(pin);
            let places = self.pins.others().into_iter().map(|place| place.links().join(pin));
            let former = [own.clone()].into_iter().chain(places).find(|path| path.exists());
            let Some(Open { cgroup, programs, links }) = &mut self.open else {
                if let Some(former) = former {
                    remove(&former);
                }
                continue;
            };
            let program = programs[index].as_fd();
            links[index] = former.as_deref().and_then(|former| replace(former, &own, cgroup, program));
            if links[index].is_some() {
                continue;
            }
            let created = sys::create_cgroup_link(program, cgroup.directory.as_fd(), attach_type as u32);
            // The former one is opened before its pin goes, and detached after: there is always one of the two.
            let before = former.as_deref().and_then(|path| sys::open_pin(path).ok());
            match created.and_then(|link| pins::replace(&link, &own).map(|()| link).map_err(io::Error::other)) {
                Ok(link) => {
                    links[index] = Some(link);
                    if let Some(before) = before {
                        // Refused where its cgroup has gone, which has taken the link along.
                        let _ = sys::detach_link(before.as_fd());
                    }
                    former.filter(|former| *former != own).iter().for_each(|path| remove(path));
                }
                Err(cause) => refused.push(SocketError::Link { name, path: cgroup.path.clone(), cause }),
            }
        }
        self.is_attached = self.open.is_some() && refused.is_empty();
        refused
    }

    /// Looks whether every link that was made is still on the cgroup, runs what it should, and is pinned; puts back what is not.
    pub fn audit(&mut self, audit: &mut Audit) {
        let Some(Open { cgroup, programs, links }) = &mut self.open else { return };
        for (((name, attach_type, pin), program), held) in HOOKS.into_iter().zip(programs).zip(links) {
            let Some(link) = held else { continue };
            let own = self.pins.links().join(pin);
            let found = sys::cgroup_link_info(link.as_fd()).ok();
            let found = found.map(|info| LinkState { target: info.cgroup_id, program: info.program_id });
            let fate = judge(found, cgroup.id, sys::program_id(program.as_fd()).ok());
            let outcome = match fate {
                LinkFate::Whole => Ok(()),
                LinkFate::OtherProgram => sys::update_link(link.as_fd(), program.as_fd()),
                LinkFate::Detached => {
                    let made = sys::create_cgroup_link(program.as_fd(), cgroup.directory.as_fd(), attach_type as u32);
                    made.map(|made| {
                        *link = made;
                        // The pin is this link's, and no loss of its own; where it can't be made, the next look says so.
                        let _ = pins::replace(&*link, &own);
                    })
                }
            };
            let (is_whole, is_there) = (fate == LinkFate::Whole, outcome.is_ok());
            if !is_whole {
                audit.note(Part::SocketLink, format!("{name} on {}", cgroup.path.display()), outcome);
            }
            if is_there && !pins::is_pinned(&*link, &own) {
                audit.note(Part::Pin, own.display().to_string(), pins::replace(&*link, &own));
            }
        }
    }

    /// The names of the programs that are pinned.
    pub fn pinned_programs(&self) -> &'static [&'static str] {
        if self.is_open() { &PROGRAMS } else { &[] }
    }
}

impl fmt::Display for SocketDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.open {
            Some(open) => write!(f, "sockets below {}", open.cgroup.path.display()),
            None => f.write_str("no sockets"),
        }
    }
}

/// Lets a link that is on the right cgroup run another program, without a system call in between that meets none. Returns it;
/// `None` where it is on another cgroup, or refuses.
fn replace(former: &Path, own: &Path, cgroup: &Cgroup, program: std::os::fd::BorrowedFd<'_>) -> Option<OwnedFd> {
    let link = sys::open_pin(former).ok()?;
    let info = sys::cgroup_link_info(link.as_fd()).ok()?;
    if info.cgroup_id != cgroup.id {
        return None;
    }
    sys::update_link(link.as_fd(), program).ok()?;
    if former != own {
        fs::rename(former, own).ok()?;
    }
    Some(link)
}

fn remove(path: &Path) {
    if let Err(error) = pins::remove_link(path) {
        warn!("pin {}: {error}", path.display());
    }
}

fn pin_programs(
    ebpf: &Ebpf,
    refused: &mut BTreeMap<&'static str, ProgramError>,
    pins: &Pins,
) -> Result<Vec<OwnedFd>, SocketError> {
    let pin = |name: &'static str| {
        let error = |cause: String| SocketError::Program { name, cause };
        if let Some(refused) = refused.remove(name) {
            return Err(error(load::verifier_text(&refused)));
        }
        let program = ebpf.program(name).ok_or_else(|| error("it is not in the object".to_owned()))?;
        let program = program.fd().map_err(|cause| error(cause.to_string()))?;
        pins::replace_and_open(program, &pins.program(name)).map_err(|cause| error(cause.to_string()))
    };
    PROGRAMS.into_iter().map(pin).collect()
}

#[cfg(test)]
mod tests;
