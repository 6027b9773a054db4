// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs that ask netfilter's conntrack ([`lb_common::conntrack`]), put together here: they call functions of the kernel that are no
//! helpers (kfuncs, Linux 5.18), which aya can't.
//!
//! Where conntrack is a module it may come after the agent, and its type information takes `CAP_SYS_ADMIN`. Where nobody has loaded it,
//! netfilter translates no source either.

mod types;

use std::{
    fs, io, mem,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use lb_common::{
    conntrack::{Options, Question},
    maps::{self, tail},
};
use nix::libc;
use tracing::{info, warn};

use super::{pins::Pins, sys};

/// Type information of the kernel and its modules.
const TYPES: &str = "/sys/kernel/btf";
const MODULE: &str = "nf_conntrack";

/// Whether the programs of this agent can ask conntrack.
#[derive(Debug, Default)]
pub struct Conntrack {
    /// The programs that would ask it are this agent's.
    is_wanted: bool,
    is_asked: bool,
    /// The programs of before ask an earlier agent's.
    is_found: bool,
    failures: u32,
}

/// How often it is tried to load the programs: what fails as often fails always.
const MOST_FAILURES: u32 = 10;

/// Why conntrack can't be asked.
#[derive(Debug, thiserror::Error)]
enum ConntrackError {
    /// The kernel's type information can't be read, or opened.
    #[error("reading the kernel's type information of {subject}: {cause}{}", remedy(cause))]
    Types { subject: &'static str, cause: io::Error },
    /// It is not what it should be.
    #[error("the kernel's type information of {subject} is damaged")]
    Damaged { subject: &'static str },
    /// An old kernel's conntrack.
    #[error("this kernel's conntrack has no functions for programs (Linux has them since 5.18)")]
    TooOld,
    /// The verifier, or a map.
    #[error("the program that asks conntrack: {cause}")]
    Program { cause: io::Error },
}

fn remedy(cause: &io::Error) -> &'static str {
    if cause.raw_os_error() == Some(libc::EPERM) { "; that of a module takes CAP_SYS_ADMIN" } else { "" }
}

impl ConntrackError {
    /// Whether it would be the same at every attempt.
    fn is_for_good(&self) -> bool {
        match self {
            Self::TooOld => true,
            Self::Types { cause, .. } | Self::Program { cause } => cause.raw_os_error() == Some(libc::EPERM),
            Self::Damaged { .. } => false,
        }
    }
}

impl Conntrack {
    /// At the start: whether an earlier agent's programs ask it, which go on until [`Conntrack::want`].
    pub fn found(is_found: bool) -> Self {
        Self { is_found, ..Self::default() }
    }

    /// Whether it is asked.
    pub const fn is_asked(&self) -> bool {
        self.is_asked || self.is_found && !self.is_wanted
    }

    /// Once the programs of the doors run.
    pub const fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Puts the programs where those of the doors go on, unless they are there or there is no conntrack (yet).
    pub fn install(&mut self, pins: &Pins) {
        if self.is_wanted && !self.is_asked && self.failures < MOST_FAILURES {
            self.note(install(pins));
        }
    }

    /// Takes in what an attempt came to. A failure is said once.
    fn note(&mut self, installed: Result<bool, ConntrackError>) {
        match installed {
            Ok(is_there) => self.is_asked = is_there,
            Err(error) => {
                let is_first = self.failures == 0;
                self.failures = if error.is_for_good() { MOST_FAILURES } else { self.failures + 1 };
                if is_first {
                    let again = if error.is_for_good() { "" } else { " (it is tried again)" };
                    warn!(
                        "{error}{again}; answers to pods whose source netfilter translates are taken for new clients where they come to \
                         a port that is a NodePort, too"
                    );
                }
            }
        }
    }
}

/// Whether there is a conntrack, which is asked then.
fn install(pins: &Pins) -> Result<bool, ConntrackError> {
    let Some(functions) = Functions::find()? else { return Ok(false) };
    let failed = |cause| ConntrackError::Program { cause };
    let open = |name: &str| sys::open_pin(&pins.map(name)).map_err(failed);
    let question = open(maps::CONNTRACK)?;
    for door in DOORS {
        let programs = open(door.programs)?;
        let instructions = program(&door, &functions, &question, &programs);
        let program =
            sys::load_program(door.types, door.name, &instructions, functions.module.as_ref()).map_err(failed)?;
        // SAFETY: a program array takes an index and a descriptor, of 32 bits each.
        unsafe { sys::update(programs.as_fd(), &door.own, &program.as_raw_fd()) }.map_err(failed)?;
    }
    info!("conntrack is asked whose a packet is that comes to a port of both a Service and this node");
    Ok(true)
}

/// One of the two that ask.
struct Door {
    name: &'static str,
    /// Program type and attach type.
    types: (u32, u32),
    /// The map of programs that this one stands in, at which index, and where it goes on.
    programs: &'static str,
    own: u32,
    next: u32,
    /// The action for packets that are no Service's.
    pass: i32,
    is_xdp: bool,
}

const DOORS: [Door; 2] = [
    Door {
        name: "shunt_xdp_ct",
        types: (bpf_prog_type::BPF_PROG_TYPE_XDP as u32, bpf_attach_type::BPF_XDP as u32),
        programs: maps::XDP_PROGRAMS,
        own: tail::XDP_CONNTRACK,
        next: tail::XDP_RARE,
        // XDP_PASS.
        pass: 2,
        is_xdp: true,
    },
    Door {
        name: "shunt_tc_ct",
        types: (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32, 0),
        programs: maps::TC_PROGRAMS,
        own: tail::TC_CONNTRACK,
        next: tail::TC_INGRESS_RARE,
        // TC_ACT_UNSPEC.
        pass: -1,
        is_xdp: false,
    },
];

/// The functions that are called, by their numbers.
struct Functions {
    xdp_lookup: u32,
    skb_lookup: u32,
    release: u32,
    /// The module's type information, where they are a module's.
    module: Option<OwnedFd>,
}

impl Functions {
    /// `None` where there is no conntrack.
    fn find() -> Result<Option<Self>, ConntrackError> {
        const NAMES: [&str; 3] = ["bpf_xdp_ct_lookup", "bpf_skb_ct_lookup", "bpf_ct_release"];
        let read = |subject: &'static str| {
            fs::read(Path::new(TYPES).join(subject)).map_err(|cause| ConntrackError::Types { subject, cause })
        };
        let has_module = Path::new(TYPES).join(MODULE).exists();
        if !has_module && !Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
            return Ok(None);
        }
        let kernel = read("vmlinux")?;
        let kernel = types::Types::parse(&kernel, None).ok_or(ConntrackError::Damaged { subject: "vmlinux" })?;
        let (found, module) = if has_module {
            let module = read(MODULE)?;
            let module =
                types::Types::parse(&module, Some(&kernel)).ok_or(ConntrackError::Damaged { subject: MODULE })?;
            let opened = sys::open_module_types(MODULE);
            let opened = opened.map_err(|cause| ConntrackError::Types { subject: MODULE, cause })?;
            (NAMES.map(|name| module.function(name)), Some(opened))
        } else {
            (NAMES.map(|name| kernel.function(name)), None)
        };
        let [Some(xdp_lookup), Some(skb_lookup), Some(release)] = found else { return Err(ConntrackError::TooOld) };
        Ok(Some(Self { xdp_lookup, skb_lookup, release, module }))
    }
}

/// An instruction (RFC 9669): code, destination and source register, offset, immediate value.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | ((from << 4 | to) as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (value.cast_unsigned() as u64) << 32
}

/// The instructions of a door's program: it looks its packet up, passes on what is asked about, and goes on with all else where it came from.
fn program(door: &Door, functions: &Functions, question: &OwnedFd, programs: &OwnedFd) -> Vec<u64> {
    const LOOK_UP: i32 = 1;
    const TAIL_CALL: i32 = 12;
    const DIRECTION: usize = mem::offset_of!(Question, options) + mem::offset_of!(Options, direction);
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    let add = |to, value| instruction(0x07, to, 0, 0, value);
    let load = |to, from, at: usize| instruction(0x61, to, from, at as i16, 0);
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    let call_kernel = |function: u32| {
        let module = i16::from(functions.module.is_some());
        instruction(0x85, 0, 2, module, function.cast_signed())
    };
    let map = |to, map: &OwnedFd| [instruction(0x18, to, 1, 0, map.as_raw_fd()), 0];
    let skip_if = |register, value, count| instruction(0x15, register, 0, count, value);
    let look_up = if door.is_xdp { functions.xdp_lookup } else { functions.skb_lookup };

    let mut code = vec![copy(6, 1)];
    // The question, at which the seventh register points from then on.
    code.push(instruction(0x62, 10, 0, -4, 0));
    code.extend(map(1, question));
    code.extend([copy(2, 10), add(2, -4), call(LOOK_UP)]);
    let lacks_question = code.len();
    code.push(0);
    code.push(copy(7, 0));
    // A tuple of one length or the other, each known to the verifier.
    code.extend([load(3, 7, mem::offset_of!(Question, tuple_len)), skip_if(3, Question::LEN_V4.cast_signed(), 2)]);
    code.extend([set(3, Question::LEN_V6.cast_signed()), instruction(0x05, 0, 0, 1, 0)]);
    code.push(set(3, Question::LEN_V4.cast_signed()));
    code.extend([copy(1, 6), copy(2, 7), copy(4, 7), add(4, mem::offset_of!(Question, options) as i32)]);
    code.extend([set(5, size_of::<Options>() as i32), call_kernel(look_up)]);
    let is_unknown = code.len();
    code.push(0);
    code.extend([instruction(0x71, 8, 7, DIRECTION as i16, 0), load(9, 7, mem::offset_of!(Question, is_about_any))]);
    code.extend([instruction(0x4f, 8, 9, 0, 0), copy(1, 0), call_kernel(functions.release)]);
    let is_answer = code.len();
    code.push(0);
    // Back.
    let back = code.len();
    code.push(instruction(0x62, 7, 0, mem::offset_of!(Question, is_answered) as i16, 1));
    code.push(copy(1, 6));
    code.extend(map(2, programs));
    code.extend([set(3, door.next.cast_signed()), call(TAIL_CALL)]);
    // To the stack.
    let pass = code.len();
    code.extend([set(0, door.pass), instruction(0x95, 0, 0, 0, 0)]);

    let distance = |from: usize, to: usize| (to - from - 1) as i16;
    code[lacks_question] = skip_if(0, 0, distance(lacks_question, pass));
    code[is_unknown] = skip_if(0, 0, distance(is_unknown, back));
    code[is_answer] = skip_if(8, Options::REPLY.into(), distance(is_answer, pass));
    code
}

#[cfg(test)]
mod tests {
    use lb_common::config::config_flags;

    use super::*;
    use crate::dataplane::{Dataplane, tests::Place};

    #[test]
    fn it_is_asked_where_the_kernel_has_it_once_our_programs_run() {
        let Some(place) = Place::new("conntrack") else { return };
        let mut dataplane = place.open();
        dataplane.audit();
        assert_eq!(dataplane.config().flags & config_flags::ASKS_CONNTRACK, 0);
        assert!(dataplane.take_over().is_empty());
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap();
        let is_there = ["bpf_xdp_ct_lookup", "bpf_skb_ct_lookup", "bpf_ct_release"]
            .iter()
            .all(|name| symbols.lines().any(|line| line.split_whitespace().nth(2) == Some(name)));
        assert_eq!(dataplane.config().flags & config_flags::ASKS_CONNTRACK != 0, is_there);
        // Whatever is configured then.
        dataplane.set_config(&Default::default());
        assert_eq!(dataplane.config().flags & config_flags::ASKS_CONNTRACK != 0, is_there);
        // The next agent leaves it to the programs that run, until its own take their place.
        drop(dataplane);
        let mut dataplane = place.open();
        let asks = |dataplane: &Dataplane| {
            let in_map = dataplane.maps().config.get(0).unwrap().flags & config_flags::ASKS_CONNTRACK;
            assert_eq!(in_map, dataplane.config().flags & config_flags::ASKS_CONNTRACK);
            in_map != 0
        };
        assert_eq!(asks(&dataplane), is_there);
        dataplane.bump_next_hops();
        assert_eq!(asks(&dataplane), is_there);
        dataplane.conntrack.failures = MOST_FAILURES;
        assert!(dataplane.take_over().is_empty());
        assert!(!asks(&dataplane), "its own programs could not be had");
    }

    #[test]
    fn what_fails_once_is_tried_again_but_not_for_ever() {
        let types = |code| ConntrackError::Types { subject: MODULE, cause: io::Error::from_raw_os_error(code) };
        for (error, is_for_good) in [
            (types(libc::ENOENT), false),
            (types(libc::EPERM), true),
            (ConntrackError::Program { cause: io::Error::from_raw_os_error(libc::EAGAIN) }, false),
            (ConntrackError::TooOld, true),
        ] {
            let mut conntrack = Conntrack::default();
            conntrack.note(Err(error));
            assert_eq!(conntrack.failures == MOST_FAILURES, is_for_good, "{conntrack:?}");
        }
        let mut conntrack = Conntrack::default();
        for _ in 0..MOST_FAILURES {
            assert!(conntrack.failures < MOST_FAILURES);
            conntrack.note(Err(types(libc::ENOENT)));
        }
        assert_eq!(conntrack.failures, MOST_FAILURES);
    }
}
