// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--config FILE`: kube-proxy's own configuration file, for a cluster that comes from it (rule 76).
//!
//! In: the file, and the command line that named it. Out: the flags as if the file's settings had been typed too; a flag
//! that was really typed wins. What each field means here is [`fields`]' business. Every field that is set and means
//! nothing here is named in the log, so that nobody relies on it.

mod fields;
mod value;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, parser::ValueSource};
use serde_json::Value;
use tokio::{sync::mpsc, time};
use tracing::{info, warn};

use self::fields::{Meaning, Setting};
use super::{Flags, RunArgs};
use crate::{
    cli::{Cli, Command},
    node::addresses::NodePortAddresses,
    notice,
};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// The subcommand with the flags.
const RUN: &str = "run";
/// How long a change can stay unnoticed where the kernel doesn't tell.
const POLL: Duration = Duration::from_secs(10);

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It can't be read.
    #[error("can't read --config {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is no YAML.
    #[error("--config {path}: {cause}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the place.
        cause: Box<serde_saphyr::Error>,
    },
    /// It is something else.
    #[error("--config {path}: {field} is {found}; it must be {wanted}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's path in it.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What would do.
        wanted: &'static str,
    },
    /// Flags and file together make no sense.
    #[error("--config {path}: {cause}")]
    Flags {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: clap::Error,
    },
}

/// What is in force.
#[derive(Clone, Debug)]
pub struct Completed {
    /// For the agent.
    pub args: RunArgs,
    /// For people.
    pub flags: Flags,
    /// The file, if one was named.
    pub file: Option<File>,
}

/// A configuration file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    path: PathBuf,
    text: String,
}

/// The flags with what `--config` adds to them. `arguments` is the whole command line that they are from.
///
/// # Errors
/// When the file can't be read or holds a value that means nothing, with the field that is at fault.
pub fn complete(args: &RunArgs, arguments: impl IntoIterator<Item = OsString>) -> Result<Completed, ConfigFileError> {
    let mut findings = Findings::default();
    let mut file = None;
    if let Some(path) = args.config.clone() {
        let text =
            fs::read_to_string(&path).map_err(|cause| ConfigFileError::Unreadable { path: path.clone(), cause })?;
        findings = read(&path, &text)?;
        findings.tell(&path);
        if findings.means_all_addresses && args.nodeport_addresses == NodePortAddresses::default() {
            warn!(
                "--config {}: nodePortAddresses is not set, which means all addresses to kube-proxy in this mode; here NodePorts are \
                 answered at the node's own addresses of its Node object: set nodePortAddresses to [0.0.0.0/0, '::/0'] for all",
                path.display()
            );
        }
        file = Some(File { path, text });
    }
    let path = args.config.clone().unwrap_or_default();
    let (args, flags) = add(findings.settings, arguments.into_iter().collect())
        .map_err(|cause| ConfigFileError::Flags { path, cause })?
        .unwrap_or_else(|| (args.clone(), Flags::default()));
    Ok(Completed { args, flags, file })
}

impl File {
    /// Returns when the file holds something else than what was read, and never before; while it can't be read, as when it
    /// is being replaced, it may still be the same one.
    pub async fn change(&self) {
        let (notifier, mut notices) = mpsc::channel(1);
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Where the kernel gives no notices the poll must do; it also sees what a link leads to in another directory.
        let _watcher = notice::watch(directory, notifier.clone());
        loop {
            if tokio::fs::read_to_string(&self.path).await.is_ok_and(|text| text != self.text) {
                return;
            }
            let _ = time::timeout(POLL, notices.recv()).await;
        }
    }
}

/// What a file says.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    settings: Vec<Setting>,
    /// Fields that are set, and why they do nothing.
    ignored: BTreeMap<String, &'static str>,
    /// Fields that kube-proxy has not got.
    unknown: Vec<String>,
    /// Whether kube-proxy would answer NodePorts at all addresses of the node, because the file does not say at which.
    means_all_addresses: bool,
}

impl Findings {
    /// In the log, once: the file is read once.
    fn tell(&self, path: &Path) {
        let path = path.display();
        for Setting { field, flag, value } in &self.settings {
            info!("--config {path}: {field} is taken as --{flag} {}", value.as_deref().unwrap_or_default());
        }
        for (field, reason) in &self.ignored {
            warn!("--config {path}: {field} is ignored: {reason}");
        }
        for field in &self.unknown {
            warn!("--config {path}: {field} is no field of {KIND}; it is ignored: check its spelling");
        }
    }
}

fn read(path: &Path, text: &str) -> Result<Findings, ConfigFileError> {
    let wrong = |field: &str, found: &Value, wanted| ConfigFileError::Field {
        path: path.to_owned(),
        field: field.to_owned(),
        found: found.to_string(),
        wanted,
    };
    let root: Value = serde_saphyr::from_str(text)
        .map_err(|cause| ConfigFileError::Syntax { path: path.to_owned(), cause: Box::new(cause) })?;
    for (field, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let found = &root[field];
        if found != wanted {
            return Err(wrong(field, found, wanted));
        }
    }
    let mode = root["mode"].as_str().unwrap_or_default();
    let means_all_addresses = mode != "nftables" && value::is_unset(&root["nodePortAddresses"]);
    let mut findings = Findings { means_all_addresses, ..Findings::default() };
    for (field, value) in leaves(&root) {
        match fields::meaning(&field, mode) {
            None => findings.unknown.push(field),
            Some(Meaning::Header) => {}
            Some(Meaning::Switch(flag)) => match value::either(value) {
                Err(wanted) => return Err(wrong(&field, value, wanted)),
                Ok(value) => findings.settings.push(Setting { field, flag, value }),
            },
            Some(Meaning::Restriction(forbids)) if value.as_bool() == Some(forbids) => {
                let wanted = "absent: Shunt does not know this gate, and would go on doing what it forbids";
                return Err(wrong(&field, value, wanted));
            }
            Some(Meaning::Restriction(_)) => drop(findings.ignored.insert(field, "it forbids nothing")),
            // Tools write all fields out: those that say nothing are not worth a word.
            Some(_) if value::is_unset(value) => {}
            Some(Meaning::Ignored(reason)) => drop(findings.ignored.insert(field, reason)),
            Some(Meaning::Flag(flag, read)) => match read(value) {
                Err(wanted) => return Err(wrong(&field, value, wanted)),
                Ok(value) => findings.settings.push(Setting { field, flag, value }),
            },
        }
    }
    Ok(findings)
}

/// All values that are no maps, and empty maps, by their path: `iptables.masqueradeAll`.
fn leaves(root: &Value) -> Vec<(String, &Value)> {
    let mut leaves = Vec::new();
    let mut rest = vec![(String::new(), root)];
    while let Some((path, value)) = rest.pop() {
        match value.as_object().filter(|members| !members.is_empty()) {
            None => leaves.push((path, value)),
            Some(members) => {
                let prefix = if path.is_empty() { path } else { format!("{path}.") };
                // The last one pushed is the first one popped.
                rest.extend(members.iter().rev().map(|(name, member)| (format!("{prefix}{name}"), member)));
            }
        }
    }
    leaves
}

/// Parses the command line again with the file's settings behind it, but for those that it holds itself.
fn add(settings: Vec<Setting>, mut arguments: Vec<OsString>) -> Result<Option<(RunArgs, Flags)>, clap::Error> {
    let matches = Cli::command().try_get_matches_from(&arguments)?;
    for Setting { flag, value, .. } in settings {
        if !is_typed(&matches, flag) {
            let argument = value.map_or_else(|| format!("--{flag}"), |value| format!("--{flag}={value}"));
            arguments.push(argument.into());
        }
    }
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(arguments)?;
    let own = command.find_subcommand(RUN).zip(matches.subcommand_matches(RUN));
    let flags = own.map(|(command, matches)| Flags::new(command, matches)).unwrap_or_default();
    match Cli::from_arg_matches(&matches)?.command {
        Command::Run(args) => Ok(Some((*args, flags))),
        Command::Get(_) | Command::Trace(_) | Command::Cleanup(_) => Ok(None),
    }
}

/// Whether a flag of `run` stands on the command line or in the environment.
fn is_typed(matches: &ArgMatches, flag: &str) -> bool {
    let source = matches.subcommand_matches(RUN).and_then(|run| run.value_source(&flag.replace('-', "_")));
    source.is_some_and(|source| source != ValueSource::DefaultValue)
}

#[cfg(test)]
mod tests;
