// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Programs for `cargo xtask bench packet`; nothing of this runs on a node.
//!
//! The kernel does not restore the packet between the repeats of a test run, so a wrapper writes a fresh frame, makes it
//! that of the next flow, and tail-calls the program that is measured. It finds the packet as that program has left it the last
//! time: so it knows from where to where an answer goes.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "a program has no API: doc comments here are for whoever reads the code")]

#[expect(dead_code, reason = "the programs of a node use all of it")]
#[path = "packet/wire.rs"]
mod wire;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, map, xdp},
    maps::{Array, ProgramArray},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    bench::{
        BARE_BACKEND, BARE_MACS, BARE_PORT, BARE_SETS, BareEntry, BareSet, FRAME_LEN_V4, FRAME_LEN_V6, PORTS_LOG2,
        STEPS, Script, bare_set,
    },
    checksum::{self, Delta},
};

use crate::wire::Wire;

const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
static SCRIPT: Array<Script> = Array::with_max_entries(1, 0);
#[map]
static XDP_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TC_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map]
static BARE: Array<BareSet> = Array::with_max_entries(BARE_SETS, BPF_F_MMAPABLE);

const ETHERNET_LEN: usize = 14;
/// Offsets in an IPv4 header.
const CHECK_V4: usize = 10;
const PROTOCOL_V4: usize = 9;
/// Where layer 4 begins.
const L4_V4: usize = ETHERNET_LEN + 20;
/// Offset of a TCP checksum.
const TCP_CHECK: usize = 16;

#[xdp]
pub fn bench_xdp_floor(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn bench_tc_floor(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[xdp]
pub fn bench_xdp_v4(context: XdpContext) -> u32 {
    wrap_xdp::<{ FRAME_LEN_V4 / 8 }, 1>(&context)
}

#[xdp]
pub fn bench_xdp_v6(context: XdpContext) -> u32 {
    wrap_xdp::<{ FRAME_LEN_V6 / 8 }, 4>(&context)
}

#[classifier]
pub fn bench_tc_v4(context: TcContext) -> i32 {
    wrap_tc::<{ FRAME_LEN_V4 / 8 }, 1>(&context)
}

#[classifier]
pub fn bench_tc_v6(context: TcContext) -> i32 {
    wrap_tc::<{ FRAME_LEN_V6 / 8 }, 4>(&context)
}

#[inline(always)]
fn wrap_xdp<const WORDS: usize, const ADDRESS: usize>(context: &XdpContext) -> u32 {
    if write_next::<WORDS, ADDRESS>(context.data(), context.data_end()).is_some() {
        // SAFETY: the array holds XDP programs. It returns only when there is none.
        unsafe { XDP_PROGRAMS.tail_call(context, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn wrap_tc<const WORDS: usize, const ADDRESS: usize>(context: &TcContext) -> i32 {
    if let Some(program) = write_next::<WORDS, ADDRESS>(context.data(), context.data_end()) {
        // SAFETY: the array holds TC programs. It returns only when there is none.
        unsafe { TC_PROGRAMS.tail_call(context, program) };
    }
    TC_ACT_SHOT
}

/// Writes the script's next packet, of so many 8-byte words and with addresses of so many 4-byte words. Gives the number of
/// the program that it is for.
#[inline(always)]
fn write_next<const WORDS: usize, const ADDRESS: usize>(start: usize, end: usize) -> Option<u32> {
    let script = SCRIPT.get_ptr_mut(0)?;
    if start + 8 * WORDS > end {
        return None;
    }
    // SAFETY: the element exists, and one test run at a time uses it; the frame was checked to have WORDS words, and the headers of
    // its family lie within them.
    unsafe {
        let script = &mut *script;
        let next = script.next as usize;
        if next >= STEPS {
            return None;
        }
        let step = &script.steps[next];
        let flow = script.counter.wrapping_mul(script.stride) & script.mask;
        let l4 = start + ETHERNET_LEN + if ADDRESS == 1 { 20 } else { 40 };
        let src = l4 - 8 * ADDRESS;
        let before = Ends::<ADDRESS>::load(src, l4);
        let mut index = 0;
        while index < WORDS {
            step.frame[index].store(start + 8 * index);
            index += 1;
        }
        let (sum, ip_sum) = if step.is_answer != 0 {
            before.turned().store(src, l4);
            (before.sum(), before.sum_of_addresses())
        } else {
            let address = ((flow >> PORTS_LOG2) as u16).to_be();
            let port = ((flow & ((1 << PORTS_LOG2) - 1)) as u16).to_be();
            fill(l4 - 4 * ADDRESS - 2, address);
            fill(l4, port);
            (u64::from(address) + u64::from(port), u64::from(address))
        };
        // verifier: two stores, as an offset that it does not know is one that it does not allow.
        if step.check_offset() == TCP_CHECK {
            add_to_check(l4 + TCP_CHECK, sum);
        } else {
            add_to_check(l4 + 6, sum);
        }
        if ADDRESS == 1 {
            add_to_check(start + ETHERNET_LEN + CHECK_V4, ip_sum);
        }
        let program = step.program;
        script.counter = script.counter.wrapping_add(step.ends_flow);
        script.next = if script.next + 1 < script.count { script.next + 1 } else { 0 };
        Some(program)
    }
}

/// From where to where a packet goes.
struct Ends<const ADDRESS: usize> {
    src: [u32; ADDRESS],
    dst: [u32; ADDRESS],
    sport: u16,
    dport: u16,
}

impl<const ADDRESS: usize> Ends<ADDRESS> {
    /// # Safety
    /// Both addresses must stand at `src`, and both ports at `l4`.
    #[inline(always)]
    unsafe fn load(src: usize, l4: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                src: <[u32; ADDRESS]>::load(src),
                dst: <[u32; ADDRESS]>::load(src + 4 * ADDRESS),
                sport: u16::load(l4),
                dport: u16::load(l4 + 2),
            }
        }
    }

    /// # Safety
    /// As [`Ends::load`].
    #[inline(always)]
    unsafe fn store(&self, src: usize, l4: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.src.store(src);
            self.dst.store(src + 4 * ADDRESS);
            self.sport.store(l4);
            self.dport.store(l4 + 2);
        }
    }

    #[inline(always)]
    fn turned(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        self.sum_of_addresses() + u64::from(self.sport) + u64::from(self.dport)
    }

    #[inline(always)]
    fn sum_of_addresses(&self) -> u64 {
        let (mut sum, mut index) = (0, 0);
        while index < ADDRESS {
            sum += u64::from(self.src[index]) + u64::from(self.dst[index]);
            index += 1;
        }
        sum
    }
}

#[xdp]
pub fn bench_xdp_fill(context: XdpContext) -> u32 {
    let Some(packet) = BarePacket::of(context.data(), context.data_end()) else { return xdp_action::XDP_ABORTED };
    if enter(&packet).is_some() { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

#[xdp]
pub fn bench_xdp_bare(context: XdpContext) -> u32 {
    match rewrite_bare(context.data(), context.data_end()) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

#[classifier]
pub fn bench_tc_bare(context: TcContext) -> i32 {
    match rewrite_bare(context.data(), context.data_end()) {
        Some(()) => TC_ACT_UNSPEC,
        None => TC_ACT_SHOT,
    }
}

/// What the bare table must know of a packet.
struct BarePacket {
    addresses: [u32; 2],
    ports: u32,
    protocol: u32,
}

impl BarePacket {
    #[inline(always)]
    fn of(start: usize, end: usize) -> Option<Self> {
        if start + FRAME_LEN_V4 > end {
            return None;
        }
        // SAFETY: the frame was checked to be that long.
        unsafe {
            Some(Self {
                addresses: <[u32; 2]>::load(start + L4_V4 - 8),
                ports: u32::load(start + L4_V4),
                protocol: u32::from(u8::load(start + ETHERNET_LEN + PROTOCOL_V4)),
            })
        }
    }

    #[inline(always)]
    fn set(&self) -> Option<*mut BareSet> {
        BARE.get_ptr_mut(bare_set(self.addresses, self.ports, self.protocol))
    }

    #[inline(always)]
    fn is_of(&self, entry: &BareEntry) -> bool {
        entry.addresses[0] == self.addresses[0]
            && entry.addresses[1] == self.addresses[1]
            && entry.ports == self.ports
            && entry.protocol == self.protocol
    }
}

/// Enters a packet's flow: as of one to the node's port that goes on to a backend elsewhere, and keeps its port.
#[inline(always)]
fn enter(packet: &BarePacket) -> Option<()> {
    // SAFETY: the element exists, and nothing else writes it while a test run fills the table.
    let set = unsafe { &mut *packet.set()? };
    for entry in set {
        if entry.protocol != 0 && !packet.is_of(entry) {
            continue;
        }
        let [src, dst] = packet.addresses;
        let new_addresses = [dst, u32::from_ne_bytes(BARE_BACKEND)];
        let new_ports = packet.ports & 0xffff | u32::from(BARE_PORT.to_be()) << 16;
        let ip_delta = Delta::ZERO.replace(src, new_addresses[0]).replace(dst, new_addresses[1]);
        let l4_delta = ip_delta.replace(packet.ports, new_ports);
        *entry = BareEntry {
            addresses: packet.addresses,
            ports: packet.ports,
            protocol: packet.protocol,
            new_addresses,
            new_ports,
            macs: BARE_MACS,
            ip_delta: ip_delta.fold().into(),
            l4_delta: l4_delta.fold().into(),
            pad: [0; 4],
        };
        return Some(());
    }
    None
}

/// The physical limit: one look-up in a table of lines of memory, and the stores that an established packet needs.
#[inline(always)]
fn rewrite_bare(start: usize, end: usize) -> Option<()> {
    let packet = BarePacket::of(start, end)?;
    // SAFETY: the element exists, and nothing writes it once the table is filled.
    let set = unsafe { &*packet.set()? };
    let entry = set.iter().find(|entry| packet.is_of(entry))?;
    // SAFETY: the frame was checked to be that long.
    unsafe {
        entry.macs.store(start);
        entry.new_addresses.store(start + L4_V4 - 8);
        entry.new_ports.store(start + L4_V4);
        add_to_check(start + ETHERNET_LEN + CHECK_V4, entry.ip_delta.into());
        add_to_check(start + L4_V4 + TCP_CHECK, entry.l4_delta.into());
    }
    Some(())
}

/// # Safety
/// There must be two bytes of the frame at `address`.
#[inline(always)]
unsafe fn fill(address: usize, number: u16) {
    // SAFETY: the caller's promise.
    unsafe { (u16::load(address) | number).store(address) };
}

/// # Safety
/// There must be two bytes of the frame at `address`.
#[inline(always)]
unsafe fn add_to_check(address: usize, number: u64) {
    // SAFETY: the caller's promise.
    unsafe { checksum::finish(u64::from(!u16::load(address)) + number).store(address) };
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
