// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent cleanup`: removes everything that Shunt ever made here, and says what.

use std::path::PathBuf;

use super::{answer, told_to_stop};
use crate::{
    dataplane::{DEFAULT_BPFFS, remove_all},
    node::net,
};

/// Flags of `cleanup`.
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Directory of the pinned maps and programs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Stay until told to stop, as the containers of a DaemonSet must
    #[arg(long)]
    pub stay: bool,
}

/// Removes, or says what would be removed. An agent must not run on that directory.
///
/// # Errors
/// When an agent still runs, or something can't be removed.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let verb = if args.dry_run { "would remove" } else { "removed" };
    let mut printed = Ok(());
    let mut count = 0;
    remove_all(&args.bpffs, args.dry_run, &mut |item| {
        count += 1;
        // What is removed does not depend on whether it can be told.
        let result = answer::print(&format!("{verb} {item}"));
        printed = std::mem::replace(&mut printed, Ok(())).and(result);
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for item in runtime.block_on(net::remove_all(args.dry_run))? {
        count += 1;
        let result = answer::print(&format!("{verb} {item}"));
        printed = std::mem::replace(&mut printed, Ok(())).and(result);
    }
    if count == 0 {
        printed = answer::print(&format!("nothing of Shunt's at {}", args.bpffs.display()));
    }
    printed?;
    if args.stay {
        runtime.block_on(async {
            told_to_stop()?.await;
            anyhow::Ok(())
        })?;
    }
    Ok(())
}
