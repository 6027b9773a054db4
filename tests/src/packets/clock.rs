// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's clock, as the programs count it.

use std::sync::LazyLock;

use lb_common::clock::Clock;
use nix::time::{ClockId, clock_getres};

/// How long this kernel's jiffies and ticks are: its coarse clocks go by jiffies.
///
/// # Panics
/// When the kernel has no such clock.
#[must_use]
pub fn clock() -> Clock {
    static CLOCK: LazyLock<Clock> = LazyLock::new(|| {
        let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).expect("a coarse clock");
        let nanoseconds = jiffy.tv_sec() * 1_000_000_000 + jiffy.tv_nsec();
        Clock::new(u32::try_from(1_000_000_000 / nanoseconds.max(1)).expect("a small number"))
    });
    *CLOCK
}
