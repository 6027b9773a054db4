// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C: whatever builds or waits ends with an error, and so the world is dropped, and removed, as usual.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM end this process by way of errors instead of at once.
///
/// # Errors
/// When the kernel refuses.
pub fn catch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic, which is safe whatever it interrupts.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("can't catch {signal}"))?;
    }
    Ok(())
}

/// Whether one of them has come.
pub(super) fn has_come() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
