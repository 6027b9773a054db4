// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bench of another revision, for `bench packet --against REVISION`: that revision in a git worktree below `target/`, measured
//! by this tree's bench.
//!
//! Both must measure the same, so the bench's sources are laid over those of the other revision. One file of it knows how a revision
//! keeps flows: that is the other revision's own, or, where it is older than the file, the file as it was first.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::shell;

const BENCH: &str = "shunt-bench-packet";
/// What is laid over another revision: files, and folders without folders in them.
const SOURCES: [&str; 5] = [
    "lb-common/src/bench.rs",
    "lb-ebpf/src/bench.rs",
    "lb-ebpf/src/packet/wire.rs",
    "tests/src/packets/wrapper.rs",
    "tests/src/bin/shunt-bench-packet",
];
/// What is not.
const OWN: &str = "tests/src/bin/shunt-bench-packet/node.rs";

/// A revision's bench.
pub struct Built {
    /// The revision as git abbreviates it.
    pub revision: String,
    /// The program.
    pub bench: PathBuf,
}

/// Builds the bench of a revision. A second time this takes as long as cargo needs to see that nothing has changed.
pub fn build(revision: &str) -> Result<Built> {
    let commit = git(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])
        .with_context(|| format!("git knows no revision {revision}"))?;
    let short = git(&["rev-parse", "--short", &commit]).context("git can't abbreviate a revision")?;
    let against = shell::root().join("target/against");
    let tree = against.join(&short);
    check_out(&tree, &commit)?;
    lay_over(&tree, &commit)?;
    // Shared by all revisions, as most of what is built is the same.
    let target = against.join("build");
    let mut cargo = shell::cargo();
    cargo.current_dir(&tree).args(["run", "--quiet", "--package", "xtask", "--target-dir"]).arg(&target);
    shell::run(cargo.args(["--", "build-ebpf"]))?;
    let mut cargo = shell::cargo();
    cargo.current_dir(&tree).args(["build", "--package", "shunt-tests", "--bin", BENCH, "--target-dir"]).arg(&target);
    shell::run(&mut cargo).with_context(|| {
        format!("this tree's bench can't be built on {short}: see `SOURCES` in xtask/src/against.rs")
    })?;
    Ok(Built { revision: short, bench: target.join("debug").join(BENCH) })
}

/// Makes the worktree, unless it is there.
fn check_out(tree: &Path, commit: &str) -> Result<()> {
    if tree.join(".git").exists() {
        return Ok(());
    }
    // Of a worktree whose folder was removed git still knows.
    shell::run(&mut command(&["worktree", "prune"]))?;
    let mut add = command(&["worktree", "add", "--quiet", "--detach"]);
    shell::run(add.arg(tree).arg(commit))
}

/// Lays the bench's sources over those of a worktree. What is the same already stays untouched, for cargo's sake.
fn lay_over(tree: &Path, commit: &str) -> Result<()> {
    for source in SOURCES {
        let path = shell::root().join(source);
        if path.is_file() {
            write(&tree.join(source), &read(&path)?)?;
            continue;
        }
        for entry in fs::read_dir(&path).with_context(|| format!("can't read {}", path.display()))? {
            let (path, file) = entry.map(|entry| (entry.path(), Path::new(source).join(entry.file_name())))?;
            if file != Path::new(OWN) {
                write(&tree.join(file), &read(&path)?)?;
            }
        }
    }
    write(&tree.join(OWN), own(commit)?.as_bytes())
}

/// The revision's own part of the bench.
fn own(commit: &str) -> Result<String> {
    let at = |commit: &str| git(&["show", &format!("{commit}:{OWN}")]);
    if let Some(own) = at(commit) {
        return Ok(own);
    }
    let added = git(&["log", "--diff-filter=A", "--format=%H", "--", OWN]).unwrap_or_default();
    let first = added.lines().last().with_context(|| format!("{OWN} is in no commit yet"))?;
    at(first).with_context(|| format!("git has no {OWN} of {first}"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let folder = path.parent().expect("a file below the worktree");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .with_context(|| format!("can't write {}", path.display()))
}

/// What git prints, or `None` when it fails.
fn git(arguments: &[&str]) -> Option<String> {
    shell::output(&mut command(arguments))
}

fn command(arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.current_dir(shell::root()).args(arguments);
    git
}
