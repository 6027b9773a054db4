// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use shunt_tests::bench::{self, Bar, Chart, Shall, quantile};

use crate::client::Kind;

/// From a change to the first connection that obeys it: milliseconds, at p99.
const SHALL: Shall = Shall::AtMost(50.0);

/// All results of a run.
#[derive(Serialize)]
pub struct Report {
    pub changes: u32,
    pub rows: Vec<Row>,
}

/// One kind of client. Milliseconds.
#[derive(Serialize)]
pub struct Row {
    name: &'static str,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    /// How often its socket was closed under it.
    reconnects: u32,
    /// What p99 shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    shall: Option<Shall>,
}

impl Row {
    /// From the time of every change.
    pub fn new(name: &'static str, kind: Kind, mut times: Vec<f64>, reconnects: u32) -> Self {
        times.sort_by(f64::total_cmp);
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| quantile(&times, share));
        Self { name, p50, p90, p99, max, reconnects, shall: (kind == Kind::Connections).then_some(SHALL) }
    }
}

impl bench::Report for Report {
    const TITLE: &'static str = "bench follow";

    fn charts(&self) -> Vec<Chart> {
        let title = "From a change to the first answer of the new endpoint: p99, and p50 to the slowest".to_owned();
        let bar = |row: &Row| Bar {
            label: row.name.into(),
            value: row.p99,
            range: Some((row.p50, row.max)),
            shall: row.shall,
        };
        vec![Chart { title, unit: "ms".into(), bars: self.rows.iter().map(bar).collect() }]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["client", "p50 ms", "p90 ms", "p99 ms", "max ms", "p99 shall", "sockets closed"]);
        for row in &self.rows {
            let times = [row.p50, row.p90, row.p99, row.max].map(|time| format!("{time:.1}"));
            let rest = [Shall::text(row.shall), row.reconnects.to_string()];
            table.add_row([row.name.to_owned()].into_iter().chain(times).chain(rest));
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        write!(
            f,
            "{table}\nFrom an EndpointSlice's change in the API server to the first answer of the new and only endpoint, {} changes \
             each, half IPv4 and half IPv6; the agents watch, and each client asks every fifth of a millisecond.",
            self.changes
        )
    }
}
