// SPDX-License-Identifier: MIT OR Apache-2.0
//! TC before Linux 6.6: filters of a clsact qdisc. They can't be pinned and outlive the agent all the same; so they have
//! one priority, handle and name, by which they are found, replaced in place and removed.
//!
//! A directory `filter-IFINDEX` among the pinned links remembers the device: a bpffs holds no ordinary files.

use std::{fs, io, path::PathBuf};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use lb_common::maps::programs;
use nix::libc;

use super::pins::Pins;

/// Ahead of other filters: a lower number runs earlier, and 1 is the lowest.
const PRIORITY: u16 = 1;
/// "SH": unlikely to be anybody else's.
const HANDLE: TcHandle = TcHandle::new(0, 0x5348);

const FILTERS: [(&str, TcAttachType); 2] =
    [(programs::TC_INGRESS, TcAttachType::Ingress), (programs::TC_EGRESS, TcAttachType::Egress)];

const MARK: &str = "filter-";

/// Puts both filters on a device, or replaces those of an earlier agent in place.
pub fn attach(ebpf: &mut Ebpf, pins: &Pins, name: &str, ifindex: u32) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(name) {
        Err(error) if errno(&error) != Some(libc::EEXIST) => return Err(error.into()),
        _ => {}
    }
    match fs::create_dir(mark(pins, ifindex)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    for (program, hook) in FILTERS {
        let program = ebpf.program_mut(program).ok_or(ProgramError::NotLoaded)?;
        attach_one(program.try_into()?, name, hook)?;
    }
    Ok(())
}

fn attach_one(program: &mut SchedClassifier, name: &str, hook: TcAttachType) -> Result<(), ProgramError> {
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = match program.attach_with_options(name, hook, TcAttachOptions::Netlink(options)) {
        Err(ProgramError::TcError(error)) if errno(&error) == Some(libc::EEXIST) => {
            let link = SchedClassifierLink::attached(name, hook, PRIORITY, HANDLE, None)?;
            program.attach_to_link(link)?
        }
        result => result?,
    };
    // Dropping the link would remove the filter, which shall outlive the agent.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes our filters from a device. Returns the hooks that had one.
pub fn detach(name: &str) -> Vec<&'static str> {
    let removed = |&(program, hook): &(&str, TcAttachType)| tc::qdisc_detach_program(name, hook, program).is_ok();
    FILTERS.iter().filter(|filter| removed(filter)).map(|(program, _)| *program).collect()
}

/// The devices that have filters of ours, as far as marks tell.
pub fn marked(pins: &Pins) -> Vec<u32> {
    let entries = fs::read_dir(pins.links()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(MARK)?.parse().ok()).collect()
}

/// Forgets a device.
pub fn unmark(pins: &Pins, ifindex: u32) -> io::Result<()> {
    fs::remove_dir(mark(pins, ifindex))
}

fn mark(pins: &Pins, ifindex: u32) -> PathBuf {
    pins.links().join(format!("{MARK}{ifindex}"))
}

fn errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
