// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Time on the packet path: jiffies, which cost a load, and ticks of about a second, which are jiffies shifted.

/// The kernel's clock: how many jiffies a second has (`CONFIG_HZ`), and so how long a tick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    hz: u32,
}

impl Clock {
    /// From the kernel's `CONFIG_HZ`; 0 counts as 1.
    #[must_use]
    pub const fn new(hz: u32) -> Self {
        Self { hz: if hz == 0 { 1 } else { hz } }
    }

    /// Jiffies in a second.
    #[must_use]
    pub const fn hz(self) -> u32 {
        self.hz
    }

    /// Jiffies to ticks: `jiffies >> shift`. The power of two that is nearest to a second, by ratio: 0.85 to 1.28 s at the
    /// usual 100, 250, 300 and 1000.
    #[must_use]
    pub const fn shift(self) -> u32 {
        let floor = self.hz.ilog2();
        // Above the square root of 2 times that power the next one is nearer.
        let square = (self.hz as u64) * (self.hz as u64);
        floor + (square > 2 << (2 * floor)) as u32
    }

    /// Nanoseconds in a tick.
    #[must_use]
    pub const fn tick_ns(self) -> u64 {
        (1_000_000_000 << self.shift()) / self.hz as u64
    }

    /// Seconds in ticks, rounded up.
    #[must_use]
    pub const fn ticks(self, seconds: u32) -> u32 {
        (seconds as u64 * self.hz as u64).div_ceil(1 << self.shift()) as u32
    }
}

/// Ticks from `then` to `now`. Negative where `then` is of another CPU, which saw a tick begin that had not begun yet when this
/// one looked at the clock.
#[inline(always)]
#[must_use]
pub const fn elapsed(now: u32, then: u32) -> i64 {
    (now.wrapping_sub(then) as i32) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_that_another_cpu_saw_earlier_is_no_age() {
        assert_eq!(elapsed(7, 5), 2);
        assert_eq!(elapsed(7, 8), -1);
        assert_eq!(elapsed(0, u32::MAX), 1);
        assert_eq!(elapsed(u32::MAX, 0), -1);
    }

    #[test]
    fn a_tick_is_about_a_second() {
        for (hz, shift, milliseconds) in [(100, 7, 1_280), (250, 8, 1_024), (300, 8, 853), (1_000, 10, 1_024)] {
            let clock = Clock::new(hz);
            assert_eq!((clock.shift(), clock.tick_ns() / 1_000_000), (shift, milliseconds), "{hz}");
        }
    }

    #[test]
    fn a_time_out_is_never_shorter_than_asked() {
        let clock = Clock::new(250);
        assert_eq!([0, 1, 10, 86_400].map(|seconds| clock.ticks(seconds)), [0, 1, 10, 84_375]);
    }
}
