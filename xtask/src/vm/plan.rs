// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which tests run on another kernel, and why the others don't. Emulated, a processor is some twenty times slower: what
//! measures time, or wants a fast machine, has no place there.

use std::path::PathBuf;

use super::kernel::Kernel;

/// Test programs, and which of their tests are wanted: those with this in their names.
const PROGRAMS: [(&str, &str); 10] = [
    ("lb_agent", "dataplane::"),
    ("lifecycle", ""),
    ("clusterip", ""),
    ("nodeport", ""),
    ("reject", ""),
    ("changes", ""),
    ("tools", ""),
    ("world", ""),
    ("sockets", "rule_30_"),
    ("packets", ""),
];

/// Those that run where time is short: whether the kernel takes the programs, what they do there with single packets, and how
/// the agent attaches, adopts and replaces them.
const QUICK: [(&str, &str); 3] =
    [("packets", "sizes::"), ("packets", "translate::"), ("lb_agent", "dataplane::filters::")];

/// A test, by its program and name; the kernels that it can't run on, or none for all; and why.
type Skip = (&'static str, &'static str, &'static [Kernel], &'static str);

/// Without TC links (before Linux 6.6).
const FILTERS: &[Kernel] = &[Kernel::V5_10, Kernel::V6_1];

const SKIPPED: [Skip; 8] = [
    ("lb_agent", "dataplane::tests::a_device_that_comes_back_under_its_old_index_is_attached_anew", FILTERS, LINKS),
    ("lb_agent", "dataplane::tests::a_link_that_takes_no_new_program_runs_until_there_is_another", FILTERS, LINKS),
    ("lb_agent", "dataplane::tests::cleanup_removes_all_that_was_made", FILTERS, LINKS),
    ("lb_agent", "dataplane::tests::links_outlive_the_agent_and_get_its_successor_s_programs", FILTERS, LINKS),
    ("lb_agent", "dataplane::tests::programs_of_another_layout_run_on_until_they_are_taken_over", FILTERS, LINKS),
    ("packets", "adversarial::", &[], "tens of thousands of packets: more than an emulated processor gets done"),
    ("sockets", "rule_30_", &[Kernel::V5_10], NAMESPACES),
    ("reject", "rules_6_44_addresses_of_a_service_cidr_that_nobody_has_are_dropped", &[Kernel::V5_10], NAMESPACES),
];
const NAMESPACES: &str = "before 5.14 an agent learns of its network namespace only where that is the initial one, and nodes here are others";
const LINKS: &str = "of TC links, which this kernel has not; filters::tests have its filters";

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

/// The runs for a kernel, with programs as `find` gives them; `filter` narrows them down, and so does `is_quick`.
pub fn runs(kernel: Kernel, filter: Option<&str>, is_quick: bool, find: impl Fn(&str) -> Option<PathBuf>) -> Vec<Run> {
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
    let programs: &[_] = if is_quick { &QUICK } else { &PROGRAMS };
    programs.iter().copied().filter_map(run).collect()
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
