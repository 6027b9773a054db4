// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The programs' debug log, through aya-log to the agent's: compiled in by feature `log`, else nothing at all.

#[cfg(feature = "log")]
use core::ffi::c_void;

/// A hook's context as aya-log wants it.
#[cfg(feature = "log")]
pub struct LogContext(pub *mut c_void);

#[cfg(feature = "log")]
impl aya_ebpf::EbpfContext for LogContext {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

/// Logs at debug level: `debug!(packet, "format", arguments)`.
#[cfg(feature = "log")]
macro_rules! debug {
    ($packet:expr, $($arguments:tt)+) => {
        aya_log_ebpf::debug!(&$crate::kernel::log::LogContext($packet.context()), $($arguments)+)
    };
}

/// Compiled out. The arguments are still type-checked.
#[cfg(not(feature = "log"))]
macro_rules! debug {
    ($packet:expr, $format:literal $(, $arguments:expr)*) => {
        if false {
            let _ = ($packet.context(), $($arguments),*);
        }
    };
}

pub(crate) use debug;
