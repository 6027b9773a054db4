// SPDX-License-Identifier: MIT OR Apache-2.0
//! Another revision's bench, in a process of its own, that takes turns with ours.
//!
//! It is started with `--serve`, says which rows it has, and then answers each line that it reads, the name of a row or
//! [`FINISH`], with a line of JSON.

use std::{
    io::{BufRead, BufReader, Write, stdin, stdout},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Serialize, de::DeserializeOwned};

use crate::stage::{Aside, Effort, Kind, Turn, with_stage};

/// In place of a row.
const FINISH: &str = "finish";
/// Names another object than that of the workspace, which is not meant for the other revision.
const OBJECT: &str = "SHUNT_EBPF_OBJECT";

/// The other process.
pub struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    rows: Vec<String>,
}

impl Peer {
    /// Starts it, and waits until it is ready.
    pub fn start(bench: &Path, kind: Kind, effort: Effort) -> Result<Self> {
        let kind = kind.to_possible_value().context("a part has a name")?;
        let mut command = Command::new(bench);
        command.args(["--serve", kind.get_name()]).env_remove(OBJECT);
        command.arg("--rounds").arg(effort.rounds.to_string()).arg("--syns").arg(effort.syns.to_string());
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = started.with_context(|| format!("can't start {}", bench.display()))?;
        let (requests, answers) = (process.stdin.take(), process.stdout.take());
        let mut peer = Self {
            process,
            requests: requests.context("a pipe")?,
            answers: BufReader::new(answers.context("a pipe")?),
            rows: Vec::new(),
        };
        peer.rows = peer.answer()?;
        Ok(peer)
    }

    /// Whether it has such a row.
    pub fn has(&self, row: &str) -> bool {
        self.rows.iter().any(|name| name == row)
    }

    /// Lets a row take its turn.
    pub fn turn(&mut self, row: &str) -> Result<Turn> {
        self.ask(row)
    }

    /// Lets it finish, and waits for its end.
    pub fn finish(mut self) -> Result<Aside> {
        let aside = self.ask(FINISH)?;
        drop(self.requests);
        let status = self.process.wait().context("can't wait for the other revision's bench")?;
        ensure!(status.success(), "the other revision's bench has failed: {status}");
        Ok(aside)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &str) -> Result<T> {
        writeln!(self.requests, "{request}").context("the other revision's bench has ended")?;
        self.answer()
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let len = self.answers.read_line(&mut line).context("can't read from the other revision's bench")?;
        ensure!(len > 0, "the other revision's bench has ended; it says above why");
        serde_json::from_str(&line).with_context(|| format!("the other revision's bench has said {line}"))
    }
}

/// Is the other process.
pub fn serve(kind: Kind, effort: Effort) -> Result<()> {
    with_stage(kind, effort, |stage| {
        let rows: Vec<_> = stage.rows().iter().map(|row| row.name).collect();
        say(&rows)?;
        for line in stdin().lines() {
            let line = line?;
            if line == FINISH {
                say(&stage.finish()?)?;
                continue;
            }
            let row = rows.iter().position(|name| *name == line).with_context(|| format!("no row `{line}`"))?;
            say(&stage.turn(row)?)?;
        }
        Ok(())
    })
}

fn say(answer: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    Ok(out.flush()?)
}
