// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of rules (`RULES.md`) names only tests that exist, and leaves out no rule.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

const TABLE: &str = include_str!("../RULES.md");
/// Rules that are numbered.
const RULES: u32 = 83;
/// Lines about what Shunt decides for itself.
const DECISIONS: usize = 18;
/// Lines about where others hurt their users.
const PITFALLS: u32 = 26;

/// A line of the table.
struct Row<'a> {
    rule: &'a str,
    tests: Vec<&'a str>,
    remark: &'a str,
}

impl Row<'_> {
    /// Numbered rules begin with their numbers.
    fn number(&self) -> Option<u32> {
        self.rule.split(' ').next()?.parse().ok()
    }

    /// Those of pitfalls after that word.
    fn pitfall(&self) -> Option<u32> {
        self.rule.strip_prefix("pitfall ")?.split(':').next()?.parse().ok()
    }

    /// What its tests show is not all of it.
    fn is_partly_shown(&self) -> bool {
        self.remark.starts_with("partly: ")
    }

    fn is_missing(&self) -> bool {
        self.remark.starts_with("missing")
    }

    fn is_not_applicable(&self) -> bool {
        self.remark.starts_with("not applicable")
    }
}

fn rows() -> Vec<Row<'static>> {
    let lines =
        TABLE.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| rule ") && !line.contains("---"));
    let row = |line: &'static str| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let (rule, tests) = (cells.next()?, cells.next()?);
        let tests = tests.split('`').skip(1).step_by(2).collect();
        Some(Row { rule, tests, remark: cells.next()? })
    };
    lines.filter_map(row).collect()
}

/// Names of all test functions in the repository.
fn tests() -> Result<BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut names = BTreeSet::new();
    for room in ["lb-common", "lb-agent", "lb-ebpf", "tests", "xtask"] {
        for file in sources(&root.join(room))? {
            names.extend(tests_in(&fs::read_to_string(file)?));
        }
    }
    Ok(names)
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The first function after each attribute that makes a test.
fn tests_in(source: &str) -> Vec<String> {
    let mut lines = source.lines().map(str::trim);
    let mut names = Vec::new();
    while lines.any(|line| line == "#[test]" || line.starts_with("#[tokio::test")) {
        let function = lines.find_map(|line| line.trim_start_matches("async ").strip_prefix("fn "));
        names.extend(function.and_then(|rest| rest.split('(').next()).map(str::to_owned));
    }
    names
}

fn exists(tests: &BTreeSet<String>, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(prefix) => tests.range(prefix.to_owned()..).next().is_some_and(|name| name.starts_with(prefix)),
        None => tests.contains(name),
    }
}

#[test]
fn the_table_of_rules_names_only_tests_that_exist() -> Result<()> {
    let tests = tests()?;
    let rows = rows();
    let named = rows.iter().flat_map(|row| row.tests.iter().map(|test| (row.rule, *test)));
    let unknown: Vec<_> = named.filter(|(_, test)| !exists(&tests, test)).collect();
    ensure!(unknown.is_empty(), "no such tests: {unknown:#?}");
    Ok(())
}

#[test]
fn the_table_of_rules_leaves_out_none() -> Result<()> {
    let rows = rows();
    let numbers: Vec<u32> = rows.iter().filter_map(Row::number).collect();
    ensure!(numbers == (1..=RULES).collect::<Vec<_>>(), "rules of the table: {numbers:?}");
    let pitfalls: Vec<u32> = rows.iter().filter_map(Row::pitfall).collect();
    ensure!(pitfalls == (1..=PITFALLS).collect::<Vec<_>>(), "pitfalls of the table: {pitfalls:?}");
    let decisions = rows.len() - numbers.len() - pitfalls.len();
    ensure!(decisions == DECISIONS, "{decisions} decisions of Shunt");
    for row in rows.iter().filter(|row| row.is_partly_shown()) {
        eprintln!("{}: {}", row.rule, row.remark);
    }
    for row in &rows {
        let is_excused = row.is_missing() || row.is_not_applicable();
        ensure!(!row.tests.is_empty() || is_excused, "nothing shows {}", row.rule);
    }
    let count = |is: fn(&&Row<'_>) -> bool| rows.iter().filter(is).count();
    eprintln!(
        "{} lines: {} shown by tests, {} partly, {} with something missing, {} not applicable",
        rows.len(),
        count(|row| !row.is_partly_shown() && !row.is_missing() && !row.is_not_applicable()),
        count(|row| row.is_partly_shown()),
        count(|row| row.is_missing()),
        count(|row| row.is_not_applicable()),
    );
    Ok(())
}
