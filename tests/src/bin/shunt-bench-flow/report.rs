// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results, as a table and as JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use shunt_tests::bench::{self, Bar, Chart, Comparison, Shall};

/// All results.
#[derive(Serialize)]
pub struct Report {
    pub rounds: u32,
    pub services: u32,
    pub rows: Vec<Row>,
}

/// A test, by one way.
#[derive(Serialize)]
pub struct Row {
    pub test: String,
    pub unit: &'static str,
    pub way: &'static str,
    pub rate: Comparison,
    /// What its ratio to the direct way shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shall: Option<Shall>,
}

impl bench::Report for Report {
    const TITLE: &'static str = "bench flow";

    /// One for each test, of ratios to the direct way.
    fn charts(&self) -> Vec<Chart> {
        Chart::group(self.rows.iter().map(|Row { test, way, rate, shall, .. }| {
            let bar = Bar { shall: *shall, ..Bar::new(*way, rate.ratio) };
            (test.clone(), "of direct".to_owned(), bar)
        }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["test", "way", "unit", "median", "min", "max", "to direct", "shall"]);
        for Row { test, unit, way, rate, shall } in &self.rows {
            let figures = [rate.median, rate.min, rate.max, rate.ratio].map(|figure| format!("{figure:.2}"));
            table.add_row(
                [test.clone(), (*way).to_owned(), (*unit).to_owned()]
                    .into_iter()
                    .chain(figures)
                    .chain([Shall::text(*shall)]),
            );
        }
        table.column_iter_mut().skip(3).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        writeln!(
            f,
            "{table}\nMedians of {} rounds taken in turns, with {} other Services; ratios are medians of the rounds' own. The \
             nftables rules are generated in the manner of kube-proxy, on a node of their own.",
            self.rounds, self.services
        )
    }
}
