// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent get`: what the maps hold. It reads only pinned maps, so it works with the agent dead.

mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use anyhow::Context as _;
use serde::{Serialize, Serializer as _, ser::SerializeSeq as _};

use self::table::Columns;
use crate::dataplane::{DEFAULT_BPFFS, Maps, Pins};

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
    /// Endpoints of the Service ports, their traffic, and their open flows
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
    let pins = Pins::new(&args.bpffs);
    pins.check_serving()?;
    let maps = Maps::open(&pins)?;
    super::answer::stream(|out| {
        let answer = match args.what {
            What::Services => print(&rows::services(&maps.dump()?, &maps.counters()?), args.output),
            What::Backends => print(&rows::backends(&maps.dump()?, &maps.counters()?, &maps.census()?), args.output),
            What::Flows => return flows(&maps, args.output, out),
            What::Sockets => print(&rows::sockets(&maps.socket_uses()?, &maps.dump()?), args.output),
            What::Maglev => print(&rows::maglev(&maps.dump()?), args.output),
            What::Maps => print(&rows::maps(&pins, &maps)?, args.output),
        };
        Ok(writeln!(out, "{}", answer?)?)
    })
}

/// A node may have a million flows: what is shown of them is not held in memory. For columns of one width the tables are read
/// twice; a flow that came in between may stand out.
fn flows(maps: &Maps, output: Output, out: &mut dyn io::Write) -> anyhow::Result<()> {
    let dump = maps.dump()?;
    let rows = rows::FlowRows::new(&dump);
    if output == Output::Json {
        return Ok(write_json(maps.flows()?.map(|flow| rows.row(&flow)), out)?);
    }
    let is_wide = output == Output::Wide;
    let mut widths = table::Widths::new::<rows::FlowRow>(is_wide);
    maps.flows()?.for_each(|flow| widths.add(&rows.row(&flow)));
    widths.write(maps.flows()?.map(|flow| rows.row(&flow)), out)?;
    Ok(())
}

/// The rows as one JSON array, in the form of [`print`].
fn write_json<R: Serialize>(rows: impl Iterator<Item = R>, mut out: &mut dyn io::Write) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::pretty(&mut out);
    let mut array = serializer.serialize_seq(None)?;
    for row in rows {
        array.serialize_element(&row)?;
    }
    array.end()?;
    writeln!(out)
}

fn print<R: Columns + Serialize>(rows: &[R], output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => serde_json::to_string_pretty(rows).context("writing JSON"),
        Output::Table => Ok(table::text(rows, false)),
        Output::Wide => Ok(table::text(rows, true)),
    }
}
