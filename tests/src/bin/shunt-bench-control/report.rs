// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures beside what they shall reach, for people and for programs.

use std::fmt;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use shunt_tests::bench::{self, Bar, Chart, Shall};

/// One figure.
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// At most this; `None` where nothing is demanded.
    pub target: Option<f64>,
}

/// All figures, in order.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure of which nothing is demanded.
    pub fn show(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { name: name.into(), value, unit, target: None });
    }

    /// Adds a figure that shall be at most `target`.
    pub fn demand(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: f64) {
        self.figures.push(Figure { name: name.into(), value, unit, target: Some(target) });
    }

    /// The shape that other tools rely on.
    fn to_json(&self) -> Value {
        let figure = |figure: &Figure| {
            let Figure { name, value, unit, target } = figure;
            json!({ "name": name, "value": value, "unit": unit, "target": target, "met": figure.is_met() })
        };
        json!({ "bench": "control", "figures": self.figures.iter().map(figure).collect::<Vec<_>>() })
    }
}

impl Figure {
    fn is_met(&self) -> Option<bool> {
        self.target.map(|target| self.value <= target)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl bench::Report for Report {
    const TITLE: &'static str = "bench control";

    /// One for each unit.
    fn charts(&self) -> Vec<Chart> {
        Chart::group(self.figures.iter().map(|Figure { name, value, unit, target }| {
            let bar = Bar { shall: target.map(Shall::AtMost), ..Bar::new(name.clone(), *value) };
            (format!("Figures in {unit}"), (*unit).to_owned(), bar)
        }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["figure", "measured", "shall be at most", ""]);
        let number = |value: f64, unit: &str| {
            let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
            Cell::new(format!("{value:.decimals$} {unit}")).set_alignment(CellAlignment::Right)
        };
        for figure in &self.figures {
            table.add_row([
                Cell::new(&figure.name),
                number(figure.value, figure.unit),
                figure.target.map_or(Cell::new(""), |target| number(target, figure.unit)),
                Cell::new(match figure.is_met() {
                    Some(true) => "met",
                    Some(false) => "MISSED",
                    None => "",
                }),
            ]);
        }
        table.fmt(f)
    }
}
