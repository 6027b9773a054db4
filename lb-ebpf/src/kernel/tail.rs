// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Tail calls: packets with which a program does not finish go on in another one.
//!
//! What is rare stands in programs of its own, so that it costs plain packets nothing and the verifier little. Only entry
//! functions call: Linux wants no more than 256 bytes of stack above a tail call. No data travels but the packet and
//! its control block, because for a moment during an upgrade the next program may be another agent's, with scratch space
//! of its own.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::{TcContext, XdpContext},
};
use lb_common::{maps::tail, verdict::Reason};

use super::maps;

/// In place of an action: the door's program for packets that are not plain goes on.
pub const RARE: i32 = 0x100;
/// In place of an action: the program that answers goes on. TC only.
pub const ANSWER: i32 = 0x101;
/// In place of an action: the program that asks conntrack goes on, and then perhaps the one for packets that are not plain.
pub const CONNTRACK: i32 = 0x102;

/// The action, or the other program's.
#[inline(always)]
pub fn go_on_xdp(context: &XdpContext, next: i32) -> i32 {
    let index = match next {
        RARE => tail::XDP_RARE,
        CONNTRACK => tail::XDP_CONNTRACK,
        action => return action,
    };
    // SAFETY: the array holds XDP programs; a failed call returns.
    unsafe { maps::XDP_PROGRAMS.tail_call(context, index) };
    maps::count_reason(Reason::MapMissing as u32);
    xdp_action::XDP_PASS as i32
}

/// The action, or another program's; `rare` is the index of this hook's.
#[inline(always)]
pub fn go_on_tc(context: &TcContext, next: i32, rare: u32) -> i32 {
    let (index, otherwise) = match next {
        RARE => (rare, TC_ACT_UNSPEC),
        ANSWER => (tail::TC_ANSWER, TC_ACT_SHOT),
        CONNTRACK => (tail::TC_CONNTRACK, TC_ACT_UNSPEC),
        action => return action,
    };
    // SAFETY: the array holds TC programs; a failed call returns.
    unsafe { maps::TC_PROGRAMS.tail_call(context, index) };
    maps::count_reason(Reason::MapMissing as u32);
    otherwise
}
