// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the checks found, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use shunt_tests::load::Tally;

/// What one check found.
pub struct Check {
    /// As the JSON calls it.
    pub name: &'static str,
    /// All of its requests.
    pub tally: Tally,
    /// Those before and after the change, where there is one.
    pub change: Option<(Tally, Tally)>,
    /// What is wrong although no request failed: a backend that should have answered and did not.
    pub problems: Vec<String>,
    /// Something worth knowing.
    pub note: Option<String>,
}

/// All checks, in order.
#[derive(Default)]
pub struct Report {
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    checks: Vec<CheckJson<'a>>,
}

#[derive(Serialize)]
struct CheckJson<'a> {
    name: &'a str,
    requests: u64,
    failed: u64,
    backends: &'a BTreeMap<String, u64>,
    p50_us: u64,
    p99_us: u64,
}

impl Report {
    pub fn add(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.tally.failed() == 0 && check.problems.is_empty())
    }

    /// What failed, a line each.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.checks.iter().flat_map(|check| {
            let errors = check.tally.errors.iter().map(|(error, count)| format!("{count} requests failed: {error}"));
            errors.chain(check.problems.iter().cloned()).map(|problem| format!("{}: {problem}", check.name))
        })
    }

    /// What other tools rely on: `{"checks":[..]}` on one line.
    pub fn to_json(&self) -> String {
        let checks = self.checks.iter().map(|check| CheckJson {
            name: check.name,
            requests: check.tally.requests(),
            failed: check.tally.failed(),
            backends: &check.tally.backends,
            p50_us: check.tally.latency_micros(0.5),
            p99_us: check.tally.latency_micros(0.99),
        });
        let report = ReportJson { checks: checks.collect() };
        serde_json::to_string(&report).expect("strings and numbers")
    }

    /// A table, and below it what is worth knowing.
    pub fn to_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["check", "requests", "failed", "share per backend", "p50", "p99"]);
        for check in &self.checks {
            table.add_row([
                Cell::new(check.name),
                number(check.tally.requests()),
                number(check.tally.failed()),
                Cell::new(shares(check)),
                latency(&check.tally, 0.5),
                latency(&check.tally, 0.99),
            ]);
        }
        let notes = self.checks.iter().filter_map(|check| Some(format!("{}: {}", check.name, check.note.as_ref()?)));
        [table.to_string()].into_iter().chain(notes).collect::<Vec<_>>().join("\n")
    }
}

fn number(count: u64) -> Cell {
    Cell::new(count).set_alignment(CellAlignment::Right)
}

fn latency(tally: &Tally, share: f64) -> Cell {
    Cell::new(format!("{} µs", tally.latency_micros(share))).set_alignment(CellAlignment::Right)
}

/// `web-1 34 %`, or `web-1 34 → 51 %` where something changed: each of its Service's requests.
fn shares(check: &Check) -> String {
    let names: BTreeSet<&String> = check.tally.backends.keys().collect();
    let texts = names.into_iter().map(|name| match &check.change {
        None => format!("{name} {:.0} %", share(&check.tally.backends, name)),
        Some((before, after)) => {
            format!("{name} {:.0} → {:.0} %", share(&before.backends, name), share(&after.backends, name))
        }
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// The percentage of its Service's requests that a backend answered. Backends are called `<service>-<number>`.
fn share(backends: &BTreeMap<String, u64>, name: &str) -> f64 {
    let service = |name: &str| name.rsplit_once('-').map(|(service, _)| service.to_owned());
    let all: u64 = backends.iter().filter(|(other, _)| service(other) == service(name)).map(|(_, count)| count).sum();
    let own = backends.get(name).copied().unwrap_or_default();
    if all == 0 { 0.0 } else { 100.0 * own as f64 / all as f64 }
}
