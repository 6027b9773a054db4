// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results.

use std::{fmt, time::Duration};

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use shunt_tests::bench::{Bar, Chart, Shall};

use crate::client::Done;

/// All results of a run.
#[derive(Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
}

/// One crowd.
#[derive(Serialize)]
pub struct Row {
    /// Of what, and by which door.
    pub name: String,
    /// Clients that asked.
    pub asked: usize,
    /// Clients that were answered.
    pub answered: usize,
    /// Of them in a second; none where all are open at once.
    pub rate: Option<f64>,
}

impl Row {
    pub fn exchanges(door: &str, done: Done, took: Duration) -> Self {
        let rate = Some(done.asked as f64 / took.as_secs_f64());
        Self { name: format!("{door}: UDP exchanges"), asked: done.asked, answered: done.answered, rate }
    }

    pub fn connections(door: &str, done: Done) -> Self {
        Self { name: format!("{door}: TCP connections"), asked: done.asked, answered: done.answered, rate: None }
    }
}

impl Report {
    /// Whether all were answered.
    pub fn is_met(&self) -> bool {
        self.rows.iter().all(|row| row.answered == row.asked)
    }
}

impl shunt_tests::bench::Report for Report {
    const TITLE: &'static str = "bench crowd";

    fn charts(&self) -> Vec<Chart> {
        let bar = |row: &Row| Bar {
            shall: Some(Shall::AtLeast(100.0)),
            ..Bar::new(&row.name, 100.0 * row.answered as f64 / row.asked as f64)
        };
        let bars = self.rows.iter().map(bar).collect();
        vec![Chart { title: "Clients that were answered".into(), unit: "%".into(), bars }]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["from outside to three backends elsewhere", "asked", "answered", "lost", "a second"]);
        for row in &self.rows {
            table.add_row([
                row.name.clone(),
                row.asked.to_string(),
                row.answered.to_string(),
                (row.asked - row.answered).to_string(),
                row.rate.map_or_else(|| "all at once".to_owned(), |rate| format!("{rate:.0}")),
            ]);
        }
        write!(f, "{table}")
    }
}
