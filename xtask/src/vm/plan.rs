// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which tests run on another kernel, and why the others don't. Emulated, a processor is some twenty times slower: what
//! measures time, or wants a fast machine, has no place there.

use std::path::PathBuf;

use super::kernel::Kernel;

/// Test programs, and which of their tests are wanted: those with one of these in their names, or all.
type Wanted = (&'static str, &'static [&'static str]);

const PROGRAMS: [Wanted; 20] = [
    ("lb_agent", &["dataplane::"]),
    ("packets", &[]),
    ("world", &[]),
    ("lifecycle", &[]),
    ("clusterip", &[]),
    ("nodeport", &[]),
    ("reject", &[]),
    ("changes", &[]),
    ("tools", &[]),
    ("sockets", &[]),
    ("parents", &[]),
    ("overlay", &[]),
    ("errors", &[]),
    ("packet_sizes", &[]),
    ("affinity", &[]),
    ("policies", &[]),
    ("frontends", &[]),
    ("sources", &[]),
    ("progress", &[]),
    ("probes", &[]),
];

/// Those that run where time is short: whether the kernel takes the programs, what they do there with single packets, how the
/// agent attaches, adopts and replaces them, and a world for each of what it then does for clients.
const QUICK: [Wanted; 5] = [
    ("packets", &["sizes::", "translate::", "fragments::", "vlan::", "pending::a2_", "pending::a_fin_"]),
    ("lb_agent", &["dataplane::filters::"]),
    ("clusterip", &["dns_by_udp_and_tcp_by_tc"]),
    ("nodeport", &["both_nodes_serve_every_backend_by_tc"]),
    ("sockets", &["recvmsg_shows_the_service_to_sockets_without_a_connection"]),
];

/// A test, by its program and name; the kernels that it can't run on, or none for all; and why.
type Skip = (&'static str, &'static str, &'static [Kernel], &'static str);

/// Without TC links (before Linux 6.6).
const FILTERS: &[Kernel] = &[Kernel::V6_1];

const SKIPPED: [Skip; 10] = [
    (
        "lb_agent",
        "dataplane::tests::links::a_device_that_comes_back_under_its_old_index_is_attached_anew",
        FILTERS,
        LINKS,
    ),
    (
        "lb_agent",
        "dataplane::tests::links::a_link_that_takes_no_new_program_runs_until_there_is_another",
        FILTERS,
        LINKS,
    ),
    ("lb_agent", "dataplane::tests::cleanup_removes_all_that_was_made", FILTERS, LINKS),
    ("lb_agent", "dataplane::tests::links::links_outlive_the_agent_and_get_its_successor_s_programs", FILTERS, LINKS),
    (
        "lb_agent",
        "dataplane::tests::links::programs_of_another_layout_run_on_until_they_are_taken_over",
        FILTERS,
        LINKS,
    ),
    ("probes", "scans_find_the_open_port_and_harm_nothing", &[], "the machine's disk has no nmap"),
    ("packets", "adversarial::", &[], MANY_PACKETS),
    ("packets", "captured_frames_damaged_at_random", &[], MANY_PACKETS),
    ("packets", "race::", &[], MANY_PACKETS),
    ("packets", "pending::b4_", &[], "a handshake there outlasts the second that it is spared for"),
];
const LINKS: &str = "of TC links, which this kernel has not; filters::tests have its filters";
const MANY_PACKETS: &str = "tens of thousands of packets: more than an emulated processor gets done";

/// One run of a test program.
pub struct Run {
    /// The program's short name.
    pub name: &'static str,
    /// Where it is, here and in the machine.
    pub path: PathBuf,
    wanted: Vec<String>,
    /// Tests that don't run, and why.
    pub skipped: Vec<(&'static str, &'static str)>,
}

/// The runs for a kernel, with programs as `find` gives them; `filter`, a program or a part of tests' names, narrows them down,
/// and so does `is_quick`.
pub fn runs(kernel: Kernel, filter: Option<&str>, is_quick: bool, find: impl Fn(&str) -> Option<PathBuf>) -> Vec<Run> {
    let programs: &[Wanted] = if is_quick { &QUICK } else { &PROGRAMS };
    let whole = programs.iter().find(|(name, _)| Some(*name) == filter);
    let (programs, filter) = whole.map_or((programs, filter), |program| (std::slice::from_ref(program), None));
    let found = programs.iter().filter_map(|wanted| Some((*wanted, find(wanted.0)?)));
    found.map(|(wanted, path)| run(kernel, wanted, filter, path)).collect()
}

fn run(kernel: Kernel, (name, wanted): Wanted, filter: Option<&str>, path: PathBuf) -> Run {
    let skipped = SKIPPED
        .iter()
        .filter(|(program, _, kernels, _)| *program == name && (kernels.is_empty() || kernels.contains(&kernel)));
    // A test that is not wanted is not skipped either.
    let is_wanted = |test: &str| wanted.is_empty() || wanted.iter().any(|wanted| test.contains(wanted));
    let skipped = skipped.filter(|(_, test, ..)| is_wanted(test) && filter.is_none_or(|filter| test.contains(filter)));
    // libtest takes any of several names: where both are given, the narrower one stands for both.
    let wanted = match filter {
        Some(filter) => vec![filter.to_owned()],
        None => wanted.iter().map(|&name| name.to_owned()).collect(),
    };
    Run { name, path, wanted, skipped: skipped.map(|(_, test, _, why)| (*test, *why)).collect() }
}

impl Run {
    /// The line of the init script that does it.
    pub fn command(&self) -> String {
        let mut words = vec!["run".to_owned(), self.name.to_owned()];
        words.push(quoted(&self.path.display().to_string()));
        words.extend(self.wanted.iter().map(|name| quoted(name)));
        // There are all devices that tests may want.
        words.extend(["--include-ignored", "--test-threads", "1", "--color", "never"].map(str::to_owned));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(kernel: Kernel, filter: Option<&str>, is_quick: bool) -> Vec<String> {
        let find = |name: &str| Some(PathBuf::from(format!("/{name}")));
        runs(kernel, filter, is_quick, find).iter().map(Run::command).collect()
    }

    #[test]
    fn a_filter_is_a_program_or_a_part_of_names() {
        assert_eq!(commands(Kernel::V6_12, None, false).len(), PROGRAMS.len());
        let whole = commands(Kernel::V6_12, Some("sockets"), false);
        assert_eq!(whole, ["run sockets '/sockets' --include-ignored --test-threads 1 --color never\n"]);
        let part = commands(Kernel::V6_12, Some("rule_30_"), false);
        assert!(part.iter().all(|command| command.contains(" 'rule_30_' ")), "{part:?}");
    }

    #[test]
    fn where_time_is_short_few_tests_run() {
        let quick = commands(Kernel::V6_1, None, true).concat();
        assert!(quick.contains("'/sockets' 'recvmsg_shows"), "{quick}");
    }
}
