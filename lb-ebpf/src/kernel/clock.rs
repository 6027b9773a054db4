// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The clock of the packet path: ticks of 2^30 ns (`lb_common::config`).

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use lb_common::config::TICK_SHIFT;

use super::globals;

/// The current tick.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    let nanoseconds =
        unsafe { if globals::lacks_coarse_clock() { bpf_ktime_get_ns() } else { bpf_ktime_get_coarse_ns() } };
    (nanoseconds >> TICK_SHIFT) as u32
}
