// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nanoseconds per packet of the programs themselves; `cargo xtask bench packet` builds and runs it. Every figure is net of a
//! floor of the same turn, and is compared with the physical limit and with another revision's in the same round.

#![deny(unsafe_code)]

mod case;
mod flood;
mod measure;
mod node;
mod peer;
mod report;
mod stage;
mod talk;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use shunt_tests::bench::{Output, conclude};

use crate::{
    peer::Peer,
    report::{Other, Report, Turns},
    stage::{Aside, Effort, Kind, Stage, with_stage},
};

#[derive(Parser)]
#[command(name = "cargo xtask bench packet", about = "Nanoseconds per packet of the programs themselves.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    effort: Effort,
    /// Another revision's bench, to take turns with.
    #[arg(long, value_name = "FILE", requires = "revision")]
    against: Option<PathBuf>,
    /// What that revision is called.
    #[arg(long)]
    revision: Option<String>,
    /// Only rows whose name contains this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Take turns with the process that has started this one, which says when.
    #[arg(long, value_name = "PART")]
    serve: Option<Kind>,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(kind) = arguments.serve {
        return peer::serve(kind, arguments.effort);
    }
    let (mut all, mut ours, mut theirs) = (Vec::new(), Aside::default(), Aside::default());
    for kind in [Kind::Rows, Kind::Flood] {
        let peer = arguments.against.as_deref().map(|bench| Peer::start(bench, kind, arguments.effort)).transpose()?;
        let Measured { turns, aside, other } =
            with_stage(kind, arguments.effort, |stage| measure(stage, peer, arguments.effort, &arguments.only))?;
        all.extend(turns);
        ours.extend(aside);
        theirs.extend(other);
    }
    let against = arguments.revision.clone().map(|revision| Other { revision, aside: theirs });
    arguments.output.write(&Report::new(&all, ours, against))
}

/// What a part has given.
struct Measured {
    turns: Vec<Turns>,
    aside: Aside,
    other: Aside,
}

/// Lets all rows whose name contains `only` take turns, ours and those of the other revision.
fn measure(stage: &mut dyn Stage, mut peer: Option<Peer>, effort: Effort, only: &str) -> Result<Measured> {
    let mut turns = stage.rows();
    for row in &mut turns {
        row.theirs = peer.as_ref().filter(|peer| peer.has(row.name)).map(|_| Vec::new());
    }
    for round in 0..effort.turns() {
        for (number, row) in turns.iter_mut().enumerate().filter(|(_, row)| row.name.contains(only)) {
            // Neither always finds the caches as the other one has left them.
            let is_first = round % 2 == 0;
            let mut ours = is_first.then(|| stage.turn(number)).transpose()?;
            let theirs = match (&mut peer, &row.theirs) {
                (Some(peer), Some(_)) => Some(peer.turn(row.name)?),
                _ => None,
            };
            if !is_first {
                ours = Some(stage.turn(number)?);
            }
            // The first round warms up.
            if round > 0 {
                row.ours.extend(ours);
                row.theirs.iter_mut().for_each(|turns| turns.extend(theirs));
            }
        }
    }
    turns.retain(|row| !row.ours.is_empty());
    let aside = stage.finish()?;
    let other = peer.map(Peer::finish).transpose()?.unwrap_or_default();
    Ok(Measured { turns, aside, other })
}
