// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a bench's figures go: to the terminal, and on request to files.

use std::{fmt, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use serde::Serialize;

use super::chart::{Chart, page};

/// All figures of a bench. `Display` is for people, `Serialize` for programs.
pub trait Report: fmt::Display + Serialize {
    /// The bench's name.
    const TITLE: &'static str;

    /// Drawings of the figures that matter most.
    fn charts(&self) -> Vec<Chart>;
}

/// The flags of all benches.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write them as a page of HTML, with drawings.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Output {
    /// Prints the report and writes the files.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write<R: Report>(&self, report: &R) -> Result<()> {
        let text = report.to_string();
        println!("{text}");
        let write = |path: &PathBuf, text: String| {
            fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
        };
        if let Some(path) = &self.json {
            write(path, serde_json::to_string_pretty(report)? + "\n")?;
        }
        self.html.as_ref().map_or(Ok(()), |path| write(path, page(R::TITLE, &report.charts(), &text)))
    }
}

/// How a bench ends: with an error as its last word, if there is one.
#[must_use]
pub fn conclude(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
