// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Programs for `cargo xtask bench packet`; nothing of this runs on a node.
//!
//! The kernel does not restore the packet between the repeats of a test run, so a wrapper writes a fresh frame, makes it
//! that of the next flow, and tail-calls the program that is measured.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "a program has no API: doc comments here are for whoever reads the code")]

#[path = "packet/wire.rs"]
mod wire;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, LruHashMap, ProgramArray},
    programs::XdpContext,
};
use lb_common::{
    address::V4,
    bench::{FLOWS, FRAME_LEN_V4, FRAME_LEN_V6, PORTS_LOG2, Template},
    checksum,
    flow::{Flow, FlowKey, protocol},
};

use crate::wire::Wire;

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[map]
static LOOKUP: LruHashMap<FlowKey<V4>, Flow<V4>> = LruHashMap::with_max_entries(FLOWS, 0);

const ETHERNET_LEN: usize = 14;
/// Offset of IPv4's header checksum.
const CHECK_V4: usize = ETHERNET_LEN + 10;
/// Offset of the TCP checksum in its header.
const TCP_CHECK: usize = 16;

/// The floor: what the kernel, the wrapper and the tail call cost by themselves.
#[xdp]
pub fn bench_floor(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What one look-up costs by itself: with many flows, that of a line of memory that is not in the cache.
#[xdp]
pub fn bench_lookup(context: XdpContext) -> u32 {
    let (start, end) = (context.data(), context.data_end());
    if start + FRAME_LEN_V4 > end {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the frame was checked to be that long.
    let key = unsafe {
        let (ip, l4) = (start + ETHERNET_LEN, start + ETHERNET_LEN + 20);
        FlowKey::new(u32::load(ip + 12), u32::load(ip + 16), u16::load(l4), u16::load(l4 + 2), protocol::TCP)
    };
    if LOOKUP.get_ptr(key).is_some() { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

#[xdp]
pub fn bench_wrapper_v4(context: XdpContext) -> u32 {
    wrap::<{ FRAME_LEN_V4 / 8 }>(&context, ETHERNET_LEN + 20, Some(CHECK_V4))
}

#[xdp]
pub fn bench_wrapper_v6(context: XdpContext) -> u32 {
    wrap::<{ FRAME_LEN_V6 / 8 }>(&context, ETHERNET_LEN + 40, None)
}

/// Adds a flow's number to source address and port, and to the checksums: where the template has zeroes, no carry goes
/// beyond a field, and a sum changes by just what is added.
#[inline(always)]
fn wrap<const WORDS: usize>(context: &XdpContext, l4: usize, ip_check: Option<usize>) -> u32 {
    let Some(template) = TEMPLATE.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    let start = context.data();
    if start + 8 * WORDS > context.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // The end of the source address: the destination's length before layer 4.
    let src = l4 - if ip_check.is_some() { 4 } else { 16 } - 2;
    // SAFETY: the element exists, and one test run at a time uses it; the frame was checked to have WORDS words.
    unsafe {
        let template = &mut *template;
        let flow = template.counter.wrapping_mul(template.stride) & template.mask;
        template.counter = template.counter.wrapping_add(1);
        let mut index = 0;
        while index < WORDS {
            template.frame[index].store(start + 8 * index);
            index += 1;
        }
        let address = ((flow >> PORTS_LOG2) as u16).to_be();
        let port = ((flow & ((1 << PORTS_LOG2) - 1)) as u16).to_be();
        fill(start + src, address);
        fill(start + l4, port);
        add_to_check(start + l4 + TCP_CHECK, u64::from(address) + u64::from(port));
        if let Some(check) = ip_check {
            add_to_check(start + check, u64::from(address));
        }
        // It returns only when there is no program.
        PROGRAMS.tail_call(context, 0);
    }
    xdp_action::XDP_ABORTED
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
