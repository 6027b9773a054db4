// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a person sees while it runs: a bar on a terminal, a line per step elsewhere.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use shunt_tests::world::check_interrupt;

const TICK: Duration = Duration::from_millis(50);

/// The bar, on standard error.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub fn new() -> Self {
        Self { bar: ProgressBar::new_spinner() }
    }

    /// Begins a step of so many parts, or of unknown length.
    pub fn step(&self, name: &str, parts: Option<u64>) {
        let template = match parts {
            Some(_) => "{prefix:20} {bar:40.green} {percent:>3} %  {msg}",
            None => "{prefix:20} {spinner}",
        };
        self.bar.set_style(ProgressStyle::with_template(template).expect("a template that indicatif knows"));
        self.bar.set_prefix(name.to_owned());
        self.bar.set_message("");
        self.bar.set_position(0);
        self.bar.set_length(parts.unwrap_or_default());
        self.bar.enable_steady_tick(TICK);
        if self.bar.is_hidden() {
            eprintln!("{name} ...");
        }
    }

    /// One part is done.
    pub fn advance(&self) {
        self.bar.inc(1);
    }

    /// Says what is happening within the step.
    pub fn say(&self, what: &'static str) {
        self.bar.set_message(what);
        if self.bar.is_hidden() {
            eprintln!("    {what}");
        }
    }

    /// Lets time pass; a part is a millisecond.
    ///
    /// # Errors
    /// On Ctrl-C.
    pub fn pass(&self, time: Duration) -> Result<()> {
        let (start, position) = (Instant::now(), self.bar.position());
        while start.elapsed() < time {
            check_interrupt()?;
            sleep(TICK.min(time.saturating_sub(start.elapsed())));
            self.bar.set_position(position + millis(start.elapsed().min(time)));
        }
        Ok(())
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A duration as parts of a step.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
