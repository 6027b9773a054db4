// SPDX-License-Identifier: MIT OR Apache-2.0
//! A part of the measurement: rows that take turns on the same programs and maps.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{flood::Flood, measure::Rows, report::Turns};

/// Which part.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Kind {
    /// Rows whose tables have room.
    Rows,
    /// A flood, in full tables.
    Flood,
}

/// How much is done.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Effort {
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// SYNs of the flood, each of another flow.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(1000..=1 << 22))]
    pub syns: u32,
}

impl Effort {
    /// Turns of every row: the first warms up.
    pub const fn turns(&self) -> u32 {
        self.rounds + 1
    }
}

/// What a row took in one turn, in nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Turn {
    /// The programs that do nothing.
    pub floor_ns: f64,
    /// Those that are measured, the floor included.
    pub gross_ns: f64,
}

impl Turn {
    /// From the time of all, and how often a thing was done.
    pub fn new(floor: Duration, gross: Duration, times: u32) -> Self {
        let [floor_ns, gross_ns] = [floor, gross].map(|time| time.as_nanos() as f64 / f64::from(times));
        Self { floor_ns, gross_ns }
    }

    /// Less the floor.
    pub const fn net_ns(&self) -> f64 {
        self.gross_ns - self.floor_ns
    }
}

/// What is seen beside the times.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Aside {
    pub programs: Vec<Program>,
    pub maps: Vec<MapMemory>,
    pub shares: Vec<Share>,
}

impl Aside {
    /// What another part has seen.
    pub fn extend(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.shares.extend(other.shares);
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub instructions: u32,
    pub jitted_bytes: u32,
    /// 0 where the kernel does not count.
    pub verified: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct MapMemory {
    pub name: String,
    pub entries: u32,
    pub bytes: u64,
}

/// How many of some fared well.
#[derive(Debug, Serialize, Deserialize)]
pub struct Share {
    pub name: String,
    pub good: u32,
    pub of: u32,
    /// The share that shall fare well.
    pub shall: f64,
}

/// The part in progress.
pub trait Stage {
    /// Its rows, which have taken no turns yet.
    fn rows(&self) -> Vec<Turns>;
    /// Lets a row take its turn.
    fn turn(&mut self, row: usize) -> Result<Turn>;
    /// Checks after all turns that packets fare as before, and says what else is to be seen.
    fn finish(&mut self) -> Result<Aside>;
}

/// Prepares a part and does something with it.
pub fn with_stage<T: Send>(
    kind: Kind,
    effort: Effort,
    work: impl FnOnce(&mut dyn Stage) -> Result<T> + Send,
) -> Result<T> {
    match kind {
        Kind::Rows => crate::node::with_room(|rig| work(&mut Rows::prepare(rig, effort)?)),
        Kind::Flood => crate::node::with_default_room(|rig| work(&mut Flood::prepare(rig, effort)?)),
    }
}
