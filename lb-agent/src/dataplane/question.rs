// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the pinned TC program on a synthetic packet, and reads what it decided. See [`lb_common::trace`].

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd as _,
};

use bytemuck::{Pod, Zeroable};
use lb_common::{
    maps::programs,
    trace::{TRACE_MAGIC, TraceRecord},
};
use nix::libc;

use super::{
    maps::{MapError, Maps},
    pins::{PinError, Pins},
    sys,
};

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

/// Asks the live program what becomes of a packet that arrives by a device of this network namespace. Questions wait for
/// each other: there is one record.
///
/// # Errors
/// When the program can't be run.
pub fn ask(pins: &Pins, maps: &Maps, ifindex: u32, packet: &[u8]) -> Result<Answer, QuestionError> {
    let program = programs::TC_INGRESS;
    let path = pins.program(program);
    let descriptor = sys::open_pin(&path).map_err(|cause| PinError::Pin { path, cause })?;
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

fn cookie() -> io::Result<[u32; 4]> {
    let mut cookie = [0_u32; 4];
    File::open("/dev/urandom")?.read_exact(bytemuck::bytes_of_mut(&mut cookie))?;
    // All zero stands for no question; once in 2^128 that would be ours.
    cookie[0] |= 1;
    Ok(cookie)
}
