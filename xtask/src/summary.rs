// SPDX-License-Identifier: MIT OR Apache-2.0
//! What became of tests, read from what libtest prints.

use std::fmt;

/// Sums over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub passed: u64,
    pub failed: u64,
    /// Names, with reasons where there are.
    pub skipped: Vec<String>,
}

impl Summary {
    /// Reads one line of libtest's: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, `test NAME ... ignored, REASON`, or
    /// `test NAME ... ok` of one that was ignored before.
    pub fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|test| test.split_once(" ... ignored"))
        {
            self.skipped.push(format!("{name}{}", outcome.replacen(',', ":", 1)));
        } else if let Some((name, _)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... ")) {
            let is_named = |skipped: &String| {
                skipped.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
            };
            self.skipped.retain(|skipped| !is_named(skipped));
        }
    }

    /// Adds another's sums.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }

    /// Names what was skipped; the sums are the last line. Ends the process where a test has failed.
    pub fn conclude(&self) {
        self.skipped.iter().for_each(|test| println!("skipped: {test}"));
        println!("{self}");
        if self.failed > 0 {
            std::process::exit(1);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {} skipped", skipped.len())
    }
}

/// The number before a word.
fn count(result: &str, word: &str) -> u64 {
    let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok());
    number.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn sums_over_programs_and_names_what_was_skipped() {
        let mut summary = Summary::default();
        let lines = "running 4 tests\n\
            test maglev::tests::is_even ... ok\n\
            test vm::old_kernel ... ignored, needs an image\n\
            test slow ... ignored\n\
            test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.23s";
        lines.lines().for_each(|line| summary.read(line));
        assert_eq!((summary.passed, summary.failed), (13, 1));
        assert_eq!(summary.skipped, ["vm::old_kernel: needs an image", "slow"]);
        assert_eq!(summary.to_string(), "13 passed, 1 failed, 2 skipped");
        summary.read("test slow ... ok");
        assert_eq!(summary.skipped, ["vm::old_kernel: needs an image"], "run after all");
    }
}
