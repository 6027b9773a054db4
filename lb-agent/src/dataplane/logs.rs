// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs' own debug log, where they were built with one (`--features log` of lb-ebpf).

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tracing::debug;

/// How often the log is read. By time and not by readiness, which would need an `unsafe` registration.
const PERIOD: Duration = Duration::from_millis(100);

/// Passes the log on for as long as the runtime lives. Without a runtime or a log there is nothing to do.
pub fn start(ebpf: &mut Ebpf) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    match EbpfLogger::init(ebpf) {
        Ok(mut logger) => drop(runtime.spawn(async move {
            let mut period = tokio::time::interval(PERIOD);
            loop {
                period.tick().await;
                logger.flush();
            }
        })),
        Err(error) => debug!("the programs have no log: {error}"),
    }
}
