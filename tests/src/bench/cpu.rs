// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a measurement runs.

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The calling thread, to the kernel.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Does something on one CPU, always the same, and so do the threads that it starts, for as long as they live.
///
/// Two that wait for each other in turns are as fast as the way between them only if they share a CPU: where the scheduler
/// puts them otherwise, and what it costs to wake the other CPU, weighs more than any way.
///
/// # Errors
/// When the kernel refuses.
pub fn on_one_cpu<T>(work: impl FnOnce() -> T) -> Result<T> {
    let allowed = sched_getaffinity(THIS_THREAD).context("can't tell on which CPUs this may run")?;
    let last = (0..CpuSet::count()).rfind(|&cpu| allowed.is_set(cpu).unwrap_or(false)).context("no CPU")?;
    let mut only = CpuSet::new();
    only.set(last).context("a CPU too many")?;
    let stay_on = |cpus| sched_setaffinity(THIS_THREAD, cpus).context("can't choose the CPU");
    stay_on(&only)?;
    let result = work();
    stay_on(&allowed)?;
    Ok(result)
}
