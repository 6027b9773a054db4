// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was found missing or changed in the kernel although the agent had not done it, and was put back. Pure: each part of
//! the data plane looks after its own things (its `audit`), and is told here how to judge what it sees.

use std::{collections::BTreeMap, fmt};

/// A kind of thing that the agent has put into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The bpffs, or a directory on it.
    Directory,
    /// The pin of a map, program or link.
    Pin,
    /// A program on a device, by a link.
    Link,
    /// A program on a device, by a TC filter.
    Filter,
    /// A program on the cgroup.
    SocketLink,
    /// An element of a map.
    Map,
    /// A device of our own.
    Device,
    /// A route to that device, or a rule that leads to those routes.
    Route,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Directory, Self::Pin, Self::Link, Self::Filter, Self::SocketLink, Self::Map, Self::Device, Self::Route];

    /// Its name as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Pin => "pin",
            Self::Link => "link",
            Self::Filter => "filter",
            Self::SocketLink => "socket-link",
            Self::Map => "map",
            Self::Device => "device",
            Self::Route => "route",
        }
    }

    /// Several of them, for people.
    const fn text(self) -> &'static str {
        match self {
            Self::Directory => "directories of pins",
            Self::Pin => "pins",
            Self::Link => "programs on devices",
            Self::Filter => "TC filters",
            Self::SocketLink => "programs on the cgroup",
            Self::Map => "map elements",
            Self::Device => "devices",
            Self::Route => "routes",
        }
    }
}

/// Something that was found lost or changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repair {
    /// What kind of thing it is.
    pub part: Part,
    /// Which one.
    pub name: String,
}

/// Something that was found lost, and could not be put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of thing it is.
    pub part: Part,
    /// Which one.
    pub name: String,
    /// Why not.
    pub cause: String,
}

/// What came of a look at everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// What has been put back.
    pub repairs: Vec<Repair>,
    /// What has not.
    pub failures: Vec<Failure>,
}

impl Audit {
    /// Something was lost; `outcome` is what came of putting it back.
    pub fn note(&mut self, part: Part, name: impl Into<String>, outcome: Result<(), impl fmt::Display>) {
        let name = name.into();
        match outcome {
            Ok(()) => self.repairs.push(Repair { part, name }),
            Err(cause) => self.failures.push(Failure { part, name, cause: cause.to_string() }),
        }
    }
}

/// Repairs for people, a clause for each kind: `pins (CONFIG, FRONTENDS and 12 more), programs on devices (TC ingress on eth0)`.
pub struct RepairsText<'a>(pub &'a [Repair]);

impl fmt::Display for RepairsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Names of each kind, before the rest is only counted.
        const NAMED: usize = 4;
        let mut kinds: BTreeMap<Part, Vec<&str>> = BTreeMap::new();
        self.0.iter().for_each(|repair| kinds.entry(repair.part).or_default().push(&repair.name));
        for (index, (part, names)) in kinds.iter().enumerate() {
            let (separator, named) = (if index == 0 { "" } else { ", " }, names.len().min(NAMED));
            write!(f, "{separator}{} ({}", part.text(), names[..named].join(", "))?;
            match names.len() - named {
                0 => f.write_str(")")?,
                more => write!(f, " and {more} more)")?,
            }
        }
        Ok(())
    }
}

/// A link as the kernel describes it, or as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The device's index or the cgroup's number; the kernel says 0 for a link that was detached.
    pub target: u64,
    /// The program that it runs.
    pub program: u32,
}

/// What has become of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFate {
    /// Nothing.
    Whole,
    /// It is on no device or cgroup any more, or on another one: a new link has to be made.
    Detached,
    /// Somebody has given it another program.
    OtherProgram,
}

/// Judges a link by what the kernel says of it; `None` where it says nothing. `program` is the one that it should run, if that
/// is known: a link of an earlier agent runs that one's.
pub fn judge(found: Option<LinkState>, target: u64, program: Option<u32>) -> LinkFate {
    match found {
        Some(found) if found.target != target => LinkFate::Detached,
        Some(found) if program.is_some_and(|program| program != found.program) => LinkFate::OtherProgram,
        Some(_) => LinkFate::Whole,
        None => LinkFate::Detached,
    }
}

#[cfg(test)]
mod on_kernel;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_judged_by_its_target_first() {
        let found = |target, program| Some(LinkState { target, program });
        assert_eq!(judge(found(7, 3), 7, Some(3)), LinkFate::Whole);
        assert_eq!(judge(found(7, 4), 7, None), LinkFate::Whole, "an earlier agent's");
        assert_eq!(judge(found(7, 4), 7, Some(3)), LinkFate::OtherProgram);
        for lost in [found(0, 3), found(8, 3), found(0, 4), None] {
            assert_eq!(judge(lost, 7, Some(3)), LinkFate::Detached, "{lost:?}");
        }
    }

    #[test]
    fn many_repairs_make_a_short_text() {
        let repair = |part, name: &str| Repair { part, name: name.into() };
        let mut repairs: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(|name| repair(Part::Pin, name)).into();
        repairs.push(repair(Part::Link, "TC ingress on eth0"));
        let text = RepairsText(&repairs).to_string();
        assert_eq!(text, "pins (a, b, c, d and 2 more), programs on devices (TC ingress on eth0)");
    }

    #[test]
    fn what_is_put_back_and_what_is_not_are_told_apart() {
        let mut audit = Audit::default();
        audit.note(Part::Pin, "CONFIG", Ok::<_, &str>(()));
        audit.note(Part::Link, "TC ingress on eth0", Err("busy"));
        assert_eq!(audit.repairs, [Repair { part: Part::Pin, name: "CONFIG".into() }]);
        let failure = Failure { part: Part::Link, name: "TC ingress on eth0".into(), cause: "busy".into() };
        assert_eq!(audit.failures, [failure]);
    }
}
