// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The clock of the packet path: jiffies, which cost a load, and ticks of about a second (`lb_common::clock::Clock`).

use aya_ebpf::helpers::generated::bpf_jiffies64;
use lb_common::flow::table::Now;

use super::globals;

/// The kernel's clock ticks since some time before the machine started.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }
}

/// The current tick.
#[inline(always)]
pub fn tick() -> u32 {
    (jiffies() >> globals::tick_shift()) as u32
}

/// The time as the flow table has it.
#[inline(always)]
pub fn now() -> Now {
    let jiffies = jiffies();
    Now { tick: (jiffies >> globals::tick_shift()) as u32, jiffy: jiffies as u32, second: globals::hz() }
}
