// SPDX-License-Identifier: MIT OR Apache-2.0
//! Questions to the live programs, and what they decided: a synthetic packet for the pinned TC program (see
//! [`lb_common::trace`]), or a connection that a socket program answers and lets nobody have.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use bytemuck::{Pod, Zeroable};
use lb_common::{
    flow::protocol,
    socket::{TRACE_ANSWERED, TRACE_SOCKET},
    trace::{TRACE_MAGIC, TraceRecord},
};
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::{
    doors::Door,
    filters,
    maps::{MapError, Maps},
    pins::{PinError, Pins},
    sys,
};
use crate::random::random;

/// The programs can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// No directory of pins, or no program in it.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The record can't be written or read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No random bytes for the cookie.
    #[error("reading /dev/urandom: {cause}")]
    Random {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel did not run it.
    #[error("running program {program} on device {ifindex}: {cause}{}", hint(cause))]
    Run {
        /// The program.
        program: &'static str,
        /// The device by which the packet arrives.
        ifindex: u32,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A socket to ask with can't be made.
    #[error("a socket from {} to {to}: {cause}", from.map_or_else(|| "any address".to_owned(), |from| from.to_string()))]
    Socket {
        /// Where it is bound.
        from: Option<SocketAddr>,
        /// Where it connects.
        to: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No socket program ran.
    #[error(
        "the socket door did not answer: it is closed (--socket-lb off), or this process is outside of the agent's --cgroup"
    )]
    NoAnswer,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::EINVAL) => "; is the device in this network namespace, and up?",
        Some(libc::EPERM) => "; run as root",
        _ => "",
    }
}

/// What the program decided, and what it made of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The decision.
    pub record: TraceRecord,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

/// The part of `struct __sk_buff` (kernel's `include/uapi/linux/bpf.h`) that a test run can set. The rest must be zero.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Context {
    /// From `len` to `priority`.
    before: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
    tc_index: u32,
    cb: [u32; 5],
    after: u32,
}

/// Asks the live program of a TC door what becomes of a packet at a device of this network namespace. Questions wait for each other:
/// there is one record.
///
/// # Errors
/// When the program can't be run.
pub fn ask(pins: &Pins, maps: &Maps, (door, ifindex): (Door, u32), packet: &[u8]) -> Result<Answer, QuestionError> {
    let program = door.program();
    let descriptor = attached(pins, door, ifindex)?;
    let _turn = pins.wait_for_turn()?;
    let cookie = cookie().map_err(|cause| QuestionError::Random { cause })?;
    maps.trace.set(0, &TraceRecord { cookie, ..TraceRecord::default() })?;
    let [first, second, third, fourth] = cookie;
    let context = Context { ifindex, cb: [TRACE_MAGIC, first, second, third, fourth], ..Context::default() };
    let run = sys::test_run(descriptor.as_fd(), packet, bytemuck::bytes_of(&context));
    let record = maps.trace.get(0);
    // Whatever came of it: without a cookie no packet is taken for a question.
    maps.trace.set(0, &TraceRecord::default())?;
    let packet = run.map_err(|cause| QuestionError::Run { program, ifindex, cause })?;
    Ok(Answer { record: record?, packet })
}

/// Asks the live socket programs what becomes of a connection, or of a datagram's socket, that is made here.
///
/// The programs refuse the connection once they have answered. Should none run, the socket is bound to the loopback device,
/// so that nothing leaves this machine.
///
/// # Errors
/// When there is no answer.
pub fn ask_socket(
    pins: &Pins,
    maps: &Maps,
    (from, to): (Option<SocketAddr>, SocketAddr),
    protocol: u8,
) -> Result<TraceRecord, QuestionError> {
    let error = |cause| QuestionError::Socket { from, to, cause };
    let kind = if protocol == protocol::TCP { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(to), kind.nonblocking(), None).map_err(error)?;
    socket.bind_device(Some(b"lo")).map_err(error)?;
    if let Some(from) = from {
        socket.bind(&from.into()).map_err(error)?;
    }
    let cookie = sys::socket_cookie(socket.as_fd()).map_err(error)?;
    let _turn = pins.wait_for_turn()?;
    let cookie = [cookie as u32, (cookie >> 32) as u32, TRACE_SOCKET, 0];
    maps.trace.set(0, &TraceRecord { cookie, ..TraceRecord::default() })?;
    // It fails in any case: what counts is the record.
    let _ = socket.connect(&to.into());
    let record = maps.trace.get(0);
    maps.trace.set(0, &TraceRecord::default())?;
    let record = record?;
    if record.cookie[3] == TRACE_ANSWERED { Ok(record) } else { Err(QuestionError::NoAnswer) }
}

/// Whether a device has a program for packets that arrive.
#[must_use]
pub fn has_door(pins: &Pins, ifindex: u32) -> bool {
    pins.links().join(Door::TcIngress.pin_name(ifindex)).exists() || filters::is_marked(pins, ifindex)
}

/// The program that packets meet at that device. The one that is pinned is that of the latest agent, which may have had
/// no first sync yet; it answers for devices without programs, and where TC works by filters.
fn attached(pins: &Pins, door: Door, ifindex: u32) -> Result<OwnedFd, PinError> {
    let link = sys::open_pin(&pins.links().join(door.pin_name(ifindex)));
    let attached = link.and_then(|link| sys::open_program(sys::link_info(link.as_fd())?.program_id));
    attached.or_else(|_| {
        let path = pins.program(door.program());
        sys::open_pin(&path).map_err(|cause| PinError::Pin { path, cause })
    })
}

fn cookie() -> io::Result<[u32; 4]> {
    let mut cookie: [u32; 4] = random()?;
    // All zero stands for no question; once in 2^128 that would be ours.
    cookie[0] |= 1;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use lb_common::{config::role, maps::programs};

    use super::*;
    use crate::{
        dataplane::tests::{Place, ifindex, ip},
        node::{roles::Duty, state::VETH},
    };

    #[test]
    fn the_program_that_is_attached_is_asked_and_not_that_of_an_agent_before_its_first_sync() {
        let Some(place) = Place::new("asked") else { return };
        ip("link add uplink type veth peer name pod");
        let uplink = ifindex("uplink");
        place.open().attach(uplink, "uplink", Duty { role: role::UPLINK, is_main: true }, VETH).unwrap();
        let pins = Pins::new(&place.options.bpffs);
        let asked = || sys::program_id(attached(&pins, Door::TcIngress, uplink).unwrap().as_fd()).unwrap();
        let pinned = || sys::program_id(sys::open_pin(&pins.program(programs::TC_INGRESS)).unwrap().as_fd()).unwrap();
        let first = asked();
        let mut second = place.open();
        assert!(asked() == first && pinned() != first);
        assert!(second.take_over().is_empty());
        assert!(asked() == pinned() && pinned() != first);
    }
}
