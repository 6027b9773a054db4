// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rows as columns for people, as kubectl prints them.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use comfy_table::{ContentArrangement, Table, presets};

use super::rows::{BackendRow, FlowRow, FrontendRow, MaglevRow, MapRow, ServiceRef, ServiceRow, SocketRow};

/// Frontends and shares shown in a narrow table.
const FEW: usize = 3;

/// A row of an answer, as cells.
pub trait Columns {
    /// Headings of the narrow table, and those that the wide one adds.
    const HEADINGS: (&'static [&'static str], &'static [&'static str]);

    /// The cells under all headings.
    fn cells(&self, is_wide: bool) -> Vec<String>;
}

/// The table.
pub fn text<R: Columns>(rows: &[R], is_wide: bool) -> String {
    if rows.is_empty() {
        return "none".to_owned();
    }
    let (narrow, wide) = R::HEADINGS;
    let headings: Vec<_> = narrow.iter().chain(if is_wide { wide } else { &[] }).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(&headings);
    for row in rows {
        table.add_row(row.cells(is_wide).into_iter().take(headings.len()));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Columns of a table that is written row by row, as [`text`] would write it: first told of all rows, then given them again.
pub struct Widths {
    headings: Vec<&'static str>,
    widths: Vec<usize>,
    is_wide: bool,
}

impl Widths {
    /// Of the headings alone.
    pub fn new<R: Columns>(is_wide: bool) -> Self {
        let (narrow, wide) = R::HEADINGS;
        let headings: Vec<_> = narrow.iter().chain(if is_wide { wide } else { &[] }).copied().collect();
        let widths = headings.iter().map(|heading| heading.len()).collect();
        Self { headings, widths, is_wide }
    }

    /// Makes room for a row.
    pub fn add<R: Columns>(&mut self, row: &R) {
        let cells = row.cells(self.is_wide);
        self.widths.iter_mut().zip(cells).for_each(|(width, cell)| *width = cell.len().max(*width));
    }

    /// Writes the table.
    pub fn write<R: Columns>(&self, rows: impl Iterator<Item = R>, out: &mut dyn Write) -> io::Result<()> {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return writeln!(out, "none");
        }
        self.write_line(self.headings.iter().copied(), out)?;
        for row in rows {
            self.write_line(row.cells(self.is_wide).iter().map(String::as_str), out)?;
        }
        Ok(())
    }

    fn write_line<'a>(&self, cells: impl Iterator<Item = &'a str>, out: &mut dyn Write) -> io::Result<()> {
        let mut line = String::new();
        for (cell, &width) in cells.zip(&self.widths) {
            // A `write!` to a string can't fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        writeln!(out, "{}", line.trim_end())
    }
}

/// Namespace, name, port (a dash where it has no name) and protocol.
fn service_cells(service: &ServiceRef) -> [String; 4] {
    let port = if service.port.is_empty() { "-" } else { &service.port };
    let protocol = format!("{}/IPv{}", service.protocol, service.ip_version);
    [service.namespace.clone(), service.name.clone(), port.to_owned(), protocol]
}

/// `namespace/name:port` in one cell.
fn service_cell(service: Option<&ServiceRef>) -> String {
    let Some(ServiceRef { namespace, name, port, .. }) = service else { return "-".to_owned() };
    format!("{namespace}/{name}:{port}").trim_end_matches(':').to_owned()
}

fn yes_no(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn list(items: impl ExactSizeIterator<Item = String>, is_wide: bool) -> String {
    let count = items.len();
    let shown: Vec<_> = items.take(if is_wide { usize::MAX } else { FEW }).collect();
    match count - shown.len() {
        _ if count == 0 => "-".to_owned(),
        0 => shown.join(","),
        more => format!("{} +{more}", shown.join(",")),
    }
}

fn frontend(frontend: &FrontendRow) -> String {
    match frontend.address {
        Some(address) => std::net::SocketAddr::new(address, frontend.port).to_string(),
        None => format!("node:{}", frontend.port),
    }
}

/// Whole units, as people read traffic and memory.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        10_485_760..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

impl Columns for ServiceRow {
    const HEADINGS: (&'static [&'static str], &'static [&'static str]) = (
        &["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS", "FLOWS", "REJECTED", "DROPPED"],
        &["DRAINING", "PACKETS", "BYTES", "INDEX"],
    );

    fn cells(&self, is_wide: bool) -> Vec<String> {
        let mut cells = service_cells(&self.service).to_vec();
        cells.push(list(self.frontends.iter().map(frontend), is_wide));
        let counts = [self.backends, self.flows, self.rejected_packets, self.dropped_packets, self.draining_backends];
        cells.extend(counts.into_iter().chain([self.packets]).map(|count| count.to_string()));
        cells.extend([bytes(self.bytes), self.index.to_string()]);
        cells
    }
}

impl Columns for BackendRow {
    const HEADINGS: (&'static [&'static str], &'static [&'static str]) = (
        &[
            "NAMESPACE",
            "NAME",
            "PORT",
            "PROTOCOL",
            "BACKEND",
            "STATE",
            "LOCAL",
            "ACTIVE",
            "INACTIVE",
            "FLOWS",
            "PACKETS",
            "REPLIES",
        ],
        &["BYTES", "REPLY-BYTES", "INDEX", "GENERATION"],
    );

    fn cells(&self, _is_wide: bool) -> Vec<String> {
        let mut cells = service_cells(&self.service).to_vec();
        cells.push(std::net::SocketAddr::new(self.address, self.backend_port).to_string());
        cells.extend([self.state, if self.local { "yes" } else { "no" }].map(str::to_owned));
        let open = [self.active_flows, self.inactive_flows];
        let counts = [self.flows, self.packets_original, self.packets_reply];
        cells.extend(open.into_iter().chain(counts).map(|count| count.to_string()));
        cells.extend([self.bytes_original, self.bytes_reply].map(bytes));
        cells.extend([self.index, self.generation].map(|number| number.to_string()));
        cells
    }
}

impl Columns for FlowRow {
    const HEADINGS: (&'static [&'static str], &'static [&'static str]) = (
        &["PROTOCOL", "DIRECTION", "SOURCE", "DESTINATION", "NEW-SOURCE", "NEW-DESTINATION", "STATE", "IDLE"],
        &["SNAT", "SERVICE", "BACKEND", "STALE"],
    );

    fn cells(&self, _is_wide: bool) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.direction.to_owned(),
            self.source.to_string(),
            self.destination.to_string(),
            self.translated_source.to_string(),
            self.translated_destination.to_string(),
            self.state.to_owned(),
            format!("{}s", self.idle_secs),
            yes_no(self.source_translated),
            service_cell(self.service.as_ref()),
            self.backend_index.to_string(),
            yes_no(self.stale),
        ]
    }
}

impl Columns for SocketRow {
    const HEADINGS: (&'static [&'static str], &'static [&'static str]) =
        (&["PROTOCOL", "CONNECTED", "FRONTEND", "BACKEND", "SERVICE", "STALE"], &["INDEX", "COOKIE"]);

    fn cells(&self, _is_wide: bool) -> Vec<String> {
        vec![
            self.protocol.clone(),
            yes_no(self.connected),
            self.frontend.to_string(),
            self.backend.to_string(),
            service_cell(self.service.as_ref()),
            yes_no(self.stale),
            self.backend_index.to_string(),
            format!("{:x}", self.cookie),
        ]
    }
}

impl Columns for MaglevRow {
    const HEADINGS: (&'static [&'static str], &'static [&'static str]) =
        (&["NAMESPACE", "NAME", "PORT", "PROTOCOL", "CLIENTS", "SLOTS", "SHARES"], &["OFFSET"]);

    fn cells(&self, is_wide: bool) -> Vec<String> {
        let mut cells = service_cells(&self.service).to_vec();
        let shares = self.shares.iter().map(|share| {
            let backend = share.backend.map_or_else(|| format!("index {}", share.index), |backend| backend.to_string());
            format!("{backend}={}%", share.percent)
        });
        cells.extend([self.clients.to_owned(), self.slots.to_string(), list(shares, is_wide), self.offset.to_string()]);
        cells
    }
}

impl Columns for MapRow {
    const HEADINGS: (&'static [&'static str], &'static [&'static str]) =
        (&["NAME", "ENTRIES", "CAPACITY", "MEMORY"], &["BYTES"]);

    fn cells(&self, _is_wide: bool) -> Vec<String> {
        let entries = self.entries.map_or_else(|| "-".to_owned(), |entries| entries.to_string());
        let memory = self.memory_bytes;
        vec![self.name.to_owned(), entries, self.capacity.to_string(), bytes(memory), memory.to_string()]
    }
}
