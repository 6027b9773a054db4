// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent get`: what the maps hold. It reads only pinned maps, so it works with the agent dead.

mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use self::table::Columns;
use crate::dataplane::{DEFAULT_BPFFS, MapError, Maps, Pins};

/// Flags of `get`.
#[derive(Clone, Debug, clap::Args)]
pub struct GetArgs {
    /// What to show
    pub what: What,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Directory of the pinned maps and programs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

/// What `get` can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Service ports, their frontends, and what was decided for them
    Services,
    /// Endpoints of the Service ports, and their traffic
    Backends,
    /// Flows: how their packets arrive, and how they go on
    Flows,
    /// Sockets that are connected to a backend, and those that have sent datagrams to one without a connection; of these, ended
    /// ones are remembered until others need the room
    Sockets,
    /// Lookup tables, and the share of each backend
    Maglev,
    /// The maps themselves, and their memory
    Maps,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Columns for people
    Table,
    /// More columns, and long lists in full
    Wide,
    /// One JSON array, whose field names stay
    Json,
}

/// Prints the answer.
///
/// # Errors
/// When the maps can't be read.
pub fn run(args: &GetArgs) -> anyhow::Result<()> {
    Ok(super::answer::print(&answer(args)?)?)
}

fn answer(args: &GetArgs) -> anyhow::Result<String> {
    let pins = Pins::new(&args.bpffs);
    pins.check_serving()?;
    let maps = Maps::open(&pins)?;
    match args.what {
        What::Services => print(&rows::services(&maps.dump()?, &maps.counters()?), args.output),
        What::Backends => print(&rows::backends(&maps.dump()?, &maps.counters()?), args.output),
        What::Flows => print(&flows(&maps)?, args.output),
        What::Sockets => print(&rows::sockets(&maps.socket_uses()?, &maps.dump()?), args.output),
        What::Maglev => print(&rows::maglev(&maps.dump()?), args.output),
        What::Maps => print(&rows::maps(&pins, &maps)?, args.output),
    }
}

fn flows(maps: &Maps) -> Result<Vec<rows::FlowRow>, MapError> {
    let mut flows = Vec::new();
    maps.for_each_flow(|flow| flows.push(flow))?;
    Ok(rows::flows(&flows, &maps.dump()?, now_ticks()))
}

fn print<R: Columns + Serialize>(rows: &[R], output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => serde_json::to_string_pretty(rows).context("writing JSON"),
        Output::Table => Ok(table::text(rows, false)),
        Output::Wide => Ok(table::text(rows, true)),
    }
}

/// The programs' clock, see [`lb_common::config`].
fn now_ticks() -> u32 {
    // The monotonic clock exists on every kernel; without it no age would be right.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    (now.as_nanos() >> lb_common::config::TICK_SHIFT) as u32
}
