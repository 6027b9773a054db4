// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results, as a table and as JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use shunt_tests::bench::{self, Bar, Chart, median};

use crate::stage::{Aside, MapMemory, Program, Share, Turn};

/// What a row shall take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shall {
    /// Another row; `None` for the same one of the other revision.
    pub of: Option<&'static str>,
    /// Of its net time, no more than this share.
    pub share: f64,
}

/// All results of a run.
#[derive(Serialize)]
pub struct Report {
    rounds: u32,
    rows: Vec<Row>,
    #[serde(flatten)]
    aside: Aside,
    against: Option<Other>,
}

/// The other revision.
#[derive(Serialize)]
pub struct Other {
    pub revision: String,
    #[serde(flatten)]
    pub aside: Aside,
}

/// The turns of a row.
pub struct Turns {
    pub name: &'static str,
    /// The row that is its physical limit, if that is another one.
    pub bare: Option<&'static str>,
    pub shall: Option<Shall>,
    pub ours: Vec<Turn>,
    /// The other revision's in the same rounds; `None` where it has no such row.
    pub theirs: Option<Vec<Turn>>,
}

impl Turns {
    /// Of a row before its first turn.
    pub const fn of(name: &'static str) -> Self {
        Self { name, bare: None, shall: None, ours: Vec::new(), theirs: None }
    }
}

/// A row over all rounds. Nanoseconds are CPU time; net is less what the wrapper takes with a program that does nothing.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Median.
    net_ns: f64,
    /// The other revision's.
    against_net_ns: Option<f64>,
    /// Median of the rounds' ratios of the one to the other.
    ratio: Option<f64>,
    /// Least of these ratios.
    min: Option<f64>,
    /// Most of them.
    max: Option<f64>,
    /// Least and most of the net times.
    net_min_ns: f64,
    net_max_ns: f64,
    /// Median, the floor included, and of the floor.
    gross_ns: f64,
    floor_ns: f64,
    /// Median of the rounds' ratios to the row that does one look-up and the stores, and nothing else.
    bare_ratio: Option<f64>,
    shall: Option<Shall>,
    /// Whether it takes no more; `None` where there is nothing to compare with.
    is_met: Option<bool>,
}

impl Report {
    /// Of all rows.
    pub fn new(turns: &[Turns], aside: Aside, against: Option<Other>) -> Self {
        let mut rows: Vec<Row> = turns.iter().map(|row| Row::new(row, turns)).collect();
        for row in 0..rows.len() {
            rows[row].is_met = rows[row].shall.and_then(|shall| match shall.of {
                None => rows[row].ratio.map(|ratio| ratio <= shall.share),
                Some(name) => {
                    let other = rows.iter().find(|row| row.name == name)?;
                    Some(rows[row].net_ns <= shall.share * other.net_ns)
                }
            });
        }
        let rounds = turns.first().map_or(0, |row| row.ours.len()) as u32;
        Self { rounds, rows, aside, against }
    }
}

impl Row {
    fn new(turns: &Turns, all: &[Turns]) -> Self {
        let of = |turns: &[Turn], number: fn(&Turn) -> f64| turns.iter().map(number).collect::<Vec<_>>();
        let net = of(&turns.ours, Turn::net_ns);
        let theirs = turns.theirs.as_ref().map(|theirs| of(theirs, Turn::net_ns));
        let ratios = theirs.as_ref().map(|theirs| ratios(&net, theirs));
        let bare = turns.bare.and_then(|bare| all.iter().find(|row| row.name == bare));
        Self {
            name: turns.name,
            net_ns: median(net.clone()),
            against_net_ns: theirs.map(median),
            ratio: ratios.clone().map(median),
            min: ratios.as_deref().map(least),
            max: ratios.as_deref().map(most),
            net_min_ns: least(&net),
            net_max_ns: most(&net),
            gross_ns: median(of(&turns.ours, |turn| turn.gross_ns)),
            floor_ns: median(of(&turns.ours, |turn| turn.floor_ns)),
            bare_ratio: bare.map(|bare| median(self::ratios(&net, &of(&bare.ours, Turn::net_ns)))),
            shall: turns.shall,
            is_met: None,
        }
    }

    fn shall_text(&self) -> String {
        let Some(Shall { of, share }) = self.shall else { return String::new() };
        let mark = if self.is_met == Some(false) { " missed" } else { "" };
        of.map_or_else(|| format!("≤ {share:.2}{mark}"), |row| format!("≤ {share:.1} of `{row}`{mark}"))
    }
}

/// Round by round.
fn ratios(values: &[f64], others: &[f64]) -> Vec<f64> {
    values.iter().zip(others).map(|(value, other)| value / other).collect()
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

impl bench::Report for Report {
    const TITLE: &'static str = "bench packet";

    fn charts(&self) -> Vec<Chart> {
        let limit = |row: &Row| {
            let shall = row.shall.filter(|shall| shall.of.is_none())?;
            row.against_net_ns.map(|against| bench::Shall::AtMost((shall.share * against).round()))
        };
        let bar = |row: &Row| Bar {
            label: row.name.into(),
            value: row.net_ns,
            range: Some((row.net_min_ns, row.net_max_ns)),
            shall: limit(row),
        };
        let (tc, xdp): (Vec<_>, Vec<_>) = self.rows.iter().partition(|row| row.name.starts_with("TC"));
        let chart = |title: &str, rows: Vec<&Row>| Chart {
            title: format!("{title}, net of the floor"),
            unit: "ns".into(),
            bars: rows.into_iter().map(bar).collect(),
        };
        vec![chart("CPU time in the XDP door", xdp), chart("CPU time in the TC door", tc)]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let mut header = vec!["nanoseconds", "gross", "floor", "net", "min", "max", "of bare"];
        let against = self.against.as_ref().map(|other| other.revision.as_str());
        if let Some(revision) = against {
            header.extend([revision, "ratio", "min", "max"]);
        }
        header.push("shall");
        table.set_header(header);
        for row in &self.rows {
            let ours = [row.gross_ns, row.floor_ns, row.net_ns, row.net_min_ns, row.net_max_ns].map(Some);
            let mut cells = vec![row.name.to_owned()];
            cells.extend(ours.into_iter().chain([row.bare_ratio]).map(|number| text(number, 1)));
            if against.is_some() {
                cells.push(text(row.against_net_ns, 1));
                cells.extend([row.ratio, row.min, row.max].map(|number| text(number, 2)));
            }
            cells.push(row.shall_text());
            table.add_row(cells);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        writeln!(
            f,
            "{table}\nCPU time of all packets of a row together, medians of {} rounds taken in turns; net of a program that does \
             nothing; `of bare` beside the row of the same number of flows that does one look-up and the stores.",
            self.rounds
        )?;
        write_aside(f, "", &self.aside)?;
        self.against.as_ref().map_or(Ok(()), |other| write_aside(f, &format!("{}: ", other.revision), &other.aside))
    }
}

fn text(number: Option<f64>, digits: usize) -> String {
    number.map(|number| format!("{number:.digits$}")).unwrap_or_default()
}

fn write_aside(f: &mut fmt::Formatter<'_>, whose: &str, aside: &Aside) -> fmt::Result {
    for Share { name, good, of, shall } in &aside.shares {
        writeln!(f, "{whose}{name}: {good} of {of}, shall be {:.1} % or more", 100.0 * shall)?;
    }
    for MapMemory { name, entries, bytes } in &aside.maps {
        writeln!(f, "{whose}{name:<22} {:>6} MiB for {entries} entries", bytes >> 20)?;
    }
    for Program { name, instructions, jitted_bytes, verified } in &aside.programs {
        writeln!(
            f,
            "{whose}{name:<22} {instructions:>6} instructions {jitted_bytes:>6} bytes of code {verified:>7} verified"
        )?;
    }
    Ok(())
}
