// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use lb_common::maps::capacity;
use serde::Serialize;
use shunt_tests::bench::{Bar, Chart, Shall};

use crate::flood::SHALL;

/// All results of a run.
#[derive(Serialize)]
pub struct Report {
    pub flows: u32,
    pub syns: u32,
    pub rows: Vec<Row>,
}

/// One flood.
#[derive(Serialize)]
pub struct Row {
    /// What was different.
    pub name: &'static str,
    /// That lived before.
    pub flows: usize,
    /// Share of them that have both their entries after the flood.
    pub with_entries: f64,
    /// Share of them whose next packet goes to the same backend from the same source port.
    pub kept: f64,
    /// Entries after the flood, of both families: of established flows and of pending ones.
    pub established_entries: usize,
    pub pending_entries: usize,
    /// Share of the SYNs that were dropped because no source port was free.
    pub refused: f64,
    /// Of a SYN in the second half of the flood, net, in nanoseconds of CPU time.
    pub syn_ns: f64,
}

impl Report {
    /// Whether every flood has left enough.
    pub fn is_met(&self) -> bool {
        self.rows.iter().all(|row| row.with_entries >= SHALL && row.kept >= SHALL)
    }
}

impl shunt_tests::bench::Report for Report {
    const TITLE: &'static str = "bench flood";

    fn charts(&self) -> Vec<Chart> {
        let shall = Some(Shall::AtLeast(100.0 * SHALL));
        let bar = |row: &Row| Bar { shall, ..Bar::new(row.name, 100.0 * row.kept) };
        let time = |row: &Row| Bar::new(row.name, row.syn_ns);
        let title = format!("{} established flows after {} SYNs of each family", self.flows, self.syns);
        vec![
            Chart { title, unit: "%".into(), bars: self.rows.iter().map(bar).collect() },
            Chart { title: "A SYN of the flood".into(), unit: "ns".into(), bars: self.rows.iter().map(time).collect() },
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let shall = Shall::AtLeast(100.0 * SHALL);
        table.set_header([
            "flood",
            "flows",
            "with their entries",
            "backend and port as before",
            "shall",
            "established entries",
            "pending entries",
            "SYNs without a port",
            "ns a SYN",
        ]);
        for row in &self.rows {
            table.add_row([
                row.name.to_owned(),
                row.flows.to_string(),
                format!("{:.2} %", 100.0 * row.with_entries),
                format!("{:.2} %", 100.0 * row.kept),
                format!("{shall} %"),
                row.established_entries.to_string(),
                row.pending_entries.to_string(),
                format!("{:.1} %", 100.0 * row.refused),
                format!("{:.0}", row.syn_ns),
            ]);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        write!(
            f,
            "{table}\n{} established flows, half TCP and half UDP, to backends on other nodes; then {} SYNs of each family, no two \
             of one flow; in their midst all backends are exchanged for others. Maps of the default sizes: {} entries \
             of each family. A node has 4,536 source \
             ports where it is told nothing else: each backend takes as many flows at a time, half-open ones included. CPU time \
             of a SYN is net of a program that does nothing.",
            self.flows,
            self.syns,
            capacity::FLOWS
        )
    }
}
