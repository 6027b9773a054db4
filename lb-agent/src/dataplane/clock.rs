// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's clock as the programs read it: jiffies, and ticks of about a second.
//!
//! No system call tells the jiffies; a test run of the program `shunt_clock` does.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use lb_common::{clock::Clock, flow::table::Now, maps::programs};
use nix::time::{ClockId, clock_getres};

use super::{maps::MapError, pins::Pins, sys};

/// How many jiffies a second has (`CONFIG_HZ`).
///
/// The resolution of the coarse clock is a jiffy: `KTIME_LOW_RES`, which is `TICK_NSEC` (the kernel's `include/linux/hrtimer.h`).
///
/// # Errors
/// Where the kernel has no such clock.
pub fn kernel_clock() -> io::Result<Clock> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(clock_of(std::time::Duration::from(resolution).as_nanos()))
}

/// From the length of a jiffy in nanoseconds, to the nearest whole number of them in a second.
fn clock_of(jiffy_ns: u128) -> Clock {
    let hz = (1_000_000_000 + jiffy_ns / 2).checked_div(jiffy_ns).unwrap_or(0);
    Clock::new(u32::try_from(hz).unwrap_or(u32::MAX))
}

/// Tells the time.
#[derive(Debug)]
pub struct Ticker {
    program: OwnedFd,
    clock: Clock,
}

impl Ticker {
    /// Of the pinned program.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn open(pins: &Pins) -> Result<Self, MapError> {
        let path = pins.program(programs::CLOCK);
        let program = sys::open_pin(&path);
        let program = program.map_err(|cause| MapError::Open { path: path.display().to_string(), cause })?;
        Ok(Self { program, clock: kernel_clock().map_err(|cause| MapError::Clock { cause })? })
    }

    /// How long jiffies and ticks are.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// The time now.
    ///
    /// # Errors
    /// Where the program can't be run.
    pub fn now(&self) -> Result<Now, MapError> {
        /// The shortest frame that a test run takes has a header of Ethernet.
        const FRAME: [u8; 64] = [0; 64];
        let output = sys::test_run(self.program.as_fd(), &FRAME, &[]).map_err(|cause| MapError::Clock { cause })?;
        let jiffies = output.first_chunk().copied().map(u64::from_ne_bytes);
        let jiffies = jiffies.ok_or_else(|| MapError::Clock { cause: io::ErrorKind::UnexpectedEof.into() })?;
        Ok(now_of(jiffies, self.clock))
    }
}

/// As the programs count: of both, the lower 32 bits.
const fn now_of(jiffies: u64, clock: Clock) -> Now {
    Now { tick: (jiffies >> clock.shift()) as u32, jiffy: jiffies as u32, second: clock.hz() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_kernels_are_known_by_the_length_of_a_jiffy() {
        let lengths = [10_000_000, 4_000_000, 3_333_333, 1_000_000];
        assert_eq!(lengths.map(|length| clock_of(length).hz()), [100, 250, 300, 1_000]);
        assert_eq!(clock_of(0).hz(), 1, "no clock, but no division by zero either");
        assert!((100..=1_000).contains(&kernel_clock().unwrap().hz()));
    }

    /// Jiffies begin five minutes before they overflow 32 bits.
    #[test]
    fn ticks_go_on_where_jiffies_overflow() {
        let clock = Clock::new(250);
        let at = |jiffies| now_of(jiffies, clock);
        let (before, after) = (at((1 << 32) - 1), at(1 << 32));
        assert_eq!((before.jiffy, after.jiffy), (u32::MAX, 0));
        assert_eq!(after.tick - before.tick, 1);
    }
}
