// SPDX-License-Identifier: MIT OR Apache-2.0
//! TC before Linux 6.6: filters of a clsact qdisc. They can't be pinned and outlive the agent all the same; so they have
//! one priority, handle and name, by which they are found, replaced in place and removed.
//!
//! A directory `filter-IFINDEX` among the pinned links remembers the device: a bpffs holds no ordinary files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        tc::{self as message, TcAttribute, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::{doors::Door, pins::Pins, sys};

/// Ahead of other filters: a lower number runs earlier, and 1 is the lowest.
const PRIORITY: u16 = 1;
/// "SH": unlikely to be anybody else's.
const HANDLE_NUMBER: u16 = 0x5348;
const HANDLE: TcHandle = TcHandle::new(0, HANDLE_NUMBER);

/// Programs and hooks of a device's filters.
fn filters_of(name: &str) -> impl Iterator<Item = (&'static str, TcAttachType)> {
    Door::of_device(name, sys::is_loopback(name)).iter().map(|door| {
        let is_ingress = matches!(door, Door::TcIngress | Door::NetArrival);
        (door.program(), if is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress })
    })
}

const MARK: &str = "filter-";

/// Puts all its filters on a device, or replaces those of an earlier agent in place.
pub fn attach(ebpf: &mut Ebpf, pins: &Pins, name: &str, ifindex: u32) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(name) {
        Err(error) if errno(&error) != Some(libc::EEXIST) => return Err(error.into()),
        _ => {}
    }
    match fs::create_dir(mark(&pins.links(), ifindex)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    for (program, hook) in filters_of(name) {
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

/// Which of our filters a device has not got.
pub fn missing(ifindex: u32, name: &str) -> Vec<&'static str> {
    let is_missing = |(program, hook): &(&str, TcAttachType)| {
        let names = programs_of(ifindex, *hook).unwrap_or_default();
        !names.iter().any(|name| name == program)
    };
    filters_of(name).filter(is_missing).map(|(program, _)| program).collect()
}

/// The names of the programs of the filter at our place; none where there is no such filter, or not even a clsact qdisc.
fn programs_of(ifindex: u32, hook: TcAttachType) -> io::Result<Vec<String>> {
    let hook = if matches!(hook, TcAttachType::Ingress) {
        message::TcHandle::MIN_INGRESS
    } else {
        message::TcHandle::MIN_EGRESS
    };
    let mut question = TcMessage::with_index(ifindex.cast_signed());
    question.header.parent = message::TcHandle { major: u16::MAX, minor: hook };
    question.header.handle = u32::from(HANDLE_NUMBER).into();
    question.header.info = u32::from(PRIORITY) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    question.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(question));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    sys::limit_receiving(&socket)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) = answer.payload else {
        return Ok(Vec::new());
    };
    let options = filter.attributes.into_iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let name = |option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name),
        _ => None,
    };
    Ok(options.flatten().filter_map(name).collect())
}

/// Removes our filters from a device. Returns the hooks that had one.
pub fn detach(name: &str) -> Vec<&'static str> {
    let removed = |&(program, hook): &(&str, TcAttachType)| tc::qdisc_detach_program(name, hook, program).is_ok();
    filters_of(name).filter(removed).map(|(program, _)| program).collect()
}

/// The devices that have filters of ours, as far as marks in a directory of links tell.
pub fn marked(links: &Path) -> Vec<u32> {
    let entries = fs::read_dir(links).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(MARK)?.parse().ok()).collect()
}

/// Whether a device is marked.
pub fn is_marked(pins: &Pins, ifindex: u32) -> bool {
    mark(&pins.links(), ifindex).is_dir()
}

/// Forgets a device.
pub fn unmark(pins: &Pins, ifindex: u32) -> io::Result<()> {
    fs::remove_dir(mark(&pins.links(), ifindex))
}

/// The mark of a device in a directory of links.
pub fn mark(links: &Path, ifindex: u32) -> PathBuf {
    links.join(format!("{MARK}{ifindex}"))
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
