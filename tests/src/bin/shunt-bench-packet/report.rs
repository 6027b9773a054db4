// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results, as a table and as JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use shunt_tests::{
    bench::{self, Bar, Chart, Shall, median},
    packets::Size,
    reference::Version,
};

use crate::case::Case;

/// All results of a run; the first two rows are the floors.
#[derive(Serialize)]
pub struct Report {
    rounds: usize,
    rows: Vec<Row>,
    programs: Vec<Program>,
    maps: Vec<MapMemory>,
}

/// A case over the rounds. Nanoseconds are CPU time per packet.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Median, the floor included.
    gross_ns: f64,
    /// Median less the median of the floor.
    net_ns: f64,
    /// Least of the rounds' differences to their floors.
    net_min_ns: f64,
    /// Most of them.
    net_max_ns: f64,
    /// Median of the rounds' ratios to their floors.
    ratio: f64,
    /// Net time that it shall reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    shall_ns: Option<f64>,
}

#[derive(Serialize)]
struct Program {
    name: String,
    instructions: u32,
    jitted_bytes: u32,
    /// 0 where the kernel does not count.
    verified: u32,
}

#[derive(Serialize)]
struct MapMemory {
    name: &'static str,
    bytes: u64,
}

impl Report {
    /// From nanoseconds by case and round; the first two cases are the floors of IPv4 and IPv6.
    pub fn new(cases: &[Case], times: &[Vec<f64>], sizes: Vec<Size>, memory: Vec<(&'static str, u64)>) -> Self {
        let rows = cases.iter().zip(times).map(|(case, times_of_case)| {
            let floor = &times[usize::from(case.version == Version::V6)];
            Row::new(case, times_of_case, floor)
        });
        let programs = sizes.into_iter().map(|size| Program {
            name: size.name,
            instructions: size.instructions,
            jitted_bytes: size.jitted,
            verified: size.verified.unwrap_or_default(),
        });
        Self {
            rounds: times[0].len(),
            rows: rows.collect(),
            programs: programs.collect(),
            maps: memory.into_iter().map(|(name, bytes)| MapMemory { name, bytes }).collect(),
        }
    }
}

impl Row {
    fn new(case: &Case, times: &[f64], floor: &[f64]) -> Self {
        let pairs = || times.iter().zip(floor);
        let differences: Vec<f64> = pairs().map(|(time, floor)| time - floor).collect();
        Self {
            name: case.name,
            gross_ns: median(times.to_vec()),
            net_ns: median(times.to_vec()) - median(floor.to_vec()),
            net_min_ns: differences.iter().copied().fold(f64::INFINITY, f64::min),
            net_max_ns: differences.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ratio: median(pairs().map(|(time, floor)| time / floor).collect()),
            shall_ns: case.shall,
        }
    }
}

impl bench::Report for Report {
    const TITLE: &'static str = "bench packet";

    fn charts(&self) -> Vec<Chart> {
        let bar = |row: &Row| Bar {
            label: row.name.into(),
            value: row.net_ns,
            range: Some((row.net_min_ns, row.net_max_ns)),
            shall: row.shall_ns.map(Shall::AtMost),
        };
        let bars = self.rows.iter().skip(2).map(bar).collect();
        vec![Chart { title: "CPU time of a packet in the XDP door, net of the floor".into(), unit: "ns".into(), bars }]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["XDP door, per packet", "gross ns", "net ns", "min", "max", "ratio to floor", "shall"]);
        for row in &self.rows {
            let shall = row.shall_ns.map(|shall| format!("{shall:.0}")).unwrap_or_default();
            let numbers = [row.gross_ns, row.net_ns, row.net_min_ns, row.net_max_ns, row.ratio];
            let cells = [row.name.to_owned()].into_iter().chain(numbers.map(|number| format!("{number:.1}")));
            table.add_row(cells.chain([shall]));
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        writeln!(
            f,
            "{table}\nCPU time on one core, medians of {} rounds taken in turns; net of the floor.",
            self.rounds
        )?;
        for Program { name, instructions, jitted_bytes, verified } in &self.programs {
            writeln!(
                f,
                "{name:<17} {instructions:>6} instructions {jitted_bytes:>6} bytes of code {verified:>7} verified"
            )?;
        }
        for MapMemory { name, bytes } in &self.maps {
            writeln!(f, "{name:<17} {:>6} MiB for {} entries", bytes >> 20, lb_common::bench::FLOWS)?;
        }
        Ok(())
    }
}
