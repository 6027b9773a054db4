// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which tests run on another kernel, and why the others don't. Emulated, a processor is some twenty times slower: what
//! measures time, or wants a fast machine, has no place there.

use std::path::PathBuf;

use super::kernel::Kernel;

/// Test programs, and which of their tests are wanted: those with this in their names.
const PROGRAMS: [(&str, &str); 10] = [
    ("lb_agent", "dataplane::"),
    ("packets", ""),
    ("world", ""),
    ("lifecycle", ""),
    ("clusterip", ""),
    ("nodeport", ""),
    ("reject", ""),
    ("changes", ""),
    ("tools", ""),
    ("sockets", "rule_30_"),
];

/// A test, by its program and name; the kernels that it can't run on, or none for all; and why.
type Skip = (&'static str, &'static str, &'static [Kernel], &'static str);

const SKIPPED: [Skip; 1] = [(
    "sockets",
    "rule_30_",
    &[Kernel::V5_10],
    "before 5.14 an agent learns of its network namespace only where that is the initial one, and nodes here are others",
)];

/// One run of a test program.
pub struct Run {
    /// The program's short name.
    pub name: &'static str,
    /// Where it is, here and in the machine.
    pub path: PathBuf,
    wanted: &'static str,
    filter: Option<String>,
    /// Tests that don't run, and why.
    pub skipped: Vec<(&'static str, &'static str)>,
}

/// The runs for a kernel, with programs as `find` gives them; `filter` narrows them down.
pub fn runs(kernel: Kernel, filter: Option<&str>, find: impl Fn(&str) -> Option<PathBuf>) -> Vec<Run> {
    let run = |(name, wanted): (&'static str, &'static str)| {
        let skipped = SKIPPED
            .iter()
            .filter(|(program, _, kernels, _)| *program == name && (kernels.is_empty() || kernels.contains(&kernel)));
        let skipped = skipped.filter(|(_, test, ..)| filter.is_none_or(|filter| test.contains(filter)));
        Some(Run {
            name,
            path: find(name)?,
            wanted,
            filter: filter.map(str::to_owned),
            skipped: skipped.map(|(_, test, _, why)| (*test, *why)).collect(),
        })
    };
    PROGRAMS.into_iter().filter_map(run).collect()
}

impl Run {
    /// The line of the init script that does it.
    pub fn command(&self) -> String {
        let mut words = vec!["run".to_owned(), self.name.to_owned(), quoted(&self.path.display().to_string())];
        // libtest takes any of several names: where both are given, the narrower one stands for both.
        let filter = self.filter.as_deref().unwrap_or(self.wanted);
        if !filter.is_empty() {
            words.push(quoted(filter));
        }
        words.extend(["--test-threads", "1", "--color", "never"].map(str::to_owned));
        for (test, _) in &self.skipped {
            words.extend(["--skip".to_owned(), quoted(test)]);
        }
        words.join(" ") + "\n"
    }
}

/// A word as a shell takes it literally.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
