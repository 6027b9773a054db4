// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine's tests print, as one line per test and sums: lines of libtest's, and the init script's (`vm: ...`).

use std::time::Instant;

use crate::summary::Summary;

use super::{kernel::Kernel, plan::Run};

/// Reads lines, prints what became of the tests, and sums up.
pub struct Report {
    kernel: Kernel,
    summary: Summary,
    /// The test program that runs.
    program: String,
    /// A test that has begun: the kernel's words come after it if it never ends.
    unfinished: Option<String>,
    /// Whether lines tell what failed.
    in_failures: bool,
    is_done: bool,
    /// When the last test ended: where time is short one must know who takes it.
    since: Instant,
}

impl Report {
    pub fn new(kernel: Kernel) -> Self {
        let program = "start".to_owned();
        let summary = Summary::default();
        Self { kernel, summary, program, unfinished: None, in_failures: false, is_done: false, since: Instant::now() }
    }

    /// Reads a line.
    pub fn read(&mut self, line: &str) {
        if let Some(words) = line.strip_prefix("vm: ") {
            self.read_own(words);
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            self.read_test(name, outcome);
        } else if line == "failures:" {
            self.in_failures = true;
        } else if line.starts_with("test result: ") {
            self.in_failures = false;
        } else if self.in_failures {
            println!("    {line}");
        }
    }

    fn read_own(&mut self, words: &str) {
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        match word {
            "linux" => println!("--- {}: {rest} has started", self.kernel),
            "program" => rest.clone_into(&mut self.program),
            "said" | "note" => println!("        {rest}"),
            // 101: libtest's, where tests have failed.
            "exit" if rest == "0" || rest == "101" => {}
            "exit" => self.fail(&format!("the program has ended with {rest}")),
            "done" => self.is_done = true,
            _ => println!("        {words}"),
        }
    }

    fn read_test(&mut self, name: &str, outcome: &str) {
        self.unfinished = None;
        let Self { kernel, program, since, .. } = self;
        match outcome.split_once(", ").map_or((outcome, None), |(word, why)| (word, Some(why))) {
            ("ok", _) => {
                println!("ok      {program} {name} ({:.0} s)", since.elapsed().as_secs_f32());
                self.summary.passed += 1;
            }
            ("ignored", why) => {
                let why = why.unwrap_or("ignored");
                println!("skipped {program} {name}: {why}");
                self.summary.skipped.push(format!("{program} {name} on {kernel}: {why}"));
            }
            ("FAILED", _) => self.fail(name),
            _ => self.unfinished = Some(name.to_owned()),
        }
        self.since = Instant::now();
    }

    fn fail(&mut self, what: &str) {
        println!("FAILED  {} {what}", self.program);
        self.summary.failed += 1;
    }

    /// Prints what is left to say: what was left out, and why a machine has not come to the end of its tests; `last_words`
    /// are the kernel's.
    pub fn conclude(mut self, runs: &[Run], is_late: bool, last_words: impl FnOnce() -> String) -> Summary {
        for (run, (test, why)) in runs.iter().flat_map(|run| run.skipped.iter().map(move |skip| (run, skip))) {
            println!("skipped {} {test}: {why}", run.name);
            self.summary.skipped.push(format!("{} {test} on {}: {why}", run.name, self.kernel));
        }
        if !self.is_done {
            let why = if is_late { "its time was up" } else { "it has crashed" };
            let test = self.unfinished.clone().unwrap_or_default();
            self.fail(&format!("{test}: the machine has not come to its end: {why}; the kernel's last words:"));
            last_words().lines().for_each(|line| println!("    {line}"));
        }
        self.summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Report {
        let mut report = Report::new(Kernel::V6_1);
        lines.lines().for_each(|line| report.read(line));
        report
    }

    #[test]
    fn tests_are_counted_by_their_lines() {
        let report = read(
            "vm: linux 6.1.0\nvm: program packets\nrunning 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\
             test d ... ignored, takes long\nfailures:\n---- a::c stdout ----\nError: x\nfailures:\n    a::c\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored\nvm: exit 101\nvm: done",
        );
        let summary = report.conclude(&[], false, || unreachable!("it came to its end"));
        assert_eq!((summary.passed, summary.failed), (1, 1));
        assert_eq!(summary.skipped, ["packets d on Linux 6.1: takes long"]);
    }

    #[test]
    fn a_machine_that_stops_early_has_failed() {
        let summary = read("vm: program packets\ntest a::b ... ok\ntest a::c ... ").conclude(&[], false, String::new);
        assert_eq!((summary.passed, summary.failed), (1, 1));
        let summary = read("vm: program packets\nvm: exit 139\nvm: done").conclude(&[], false, String::new);
        assert_eq!(summary.failed, 1, "a program that crashes");
    }
}
