// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting, with an end.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::interrupt;

const PAUSE: Duration = Duration::from_millis(20);

/// An error once Ctrl-C has been pressed.
///
/// # Errors
/// Then.
pub fn check_interrupt() -> Result<()> {
    if interrupt::has_come() {
        bail!("interrupted");
    }
    Ok(())
}

/// Asks again and again until the answer is yes. `what` completes "... did not happen in time".
///
/// # Errors
/// When it takes longer than `limit`, or when asking fails.
pub fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        check_interrupt()?;
        if start.elapsed() > limit {
            bail!("{what} did not happen within {limit:?}");
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// Does something that must take less than `limit`. A busy machine may stop for longer than that: if it is slow, it must be quick
/// twice after that.
///
/// # Errors
/// That of `step`, or when it was too slow twice.
pub fn is_quick(limit: Duration, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    let mut time = || -> Result<Duration> {
        let start = Instant::now();
        step()?;
        Ok(start.elapsed())
    };
    let first = time()?;
    if first < limit {
        return Ok(());
    }
    for again in [time()?, time()?] {
        if again >= limit {
            bail!("took {first:?}, then {again:?}, and not less than {limit:?}");
        }
    }
    Ok(())
}
