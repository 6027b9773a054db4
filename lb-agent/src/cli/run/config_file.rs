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
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, parser::ValueSource};
use serde_json::Value;
use tracing::{info, warn};

use self::fields::{Meaning, Setting};
use super::RunArgs;
use crate::cli::{Cli, Command};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

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

/// The flags with what `--config` adds to them. `arguments` is the whole command line that they are from.
///
/// # Errors
/// When the file can't be read or holds a value that means nothing, with the field that is at fault.
pub fn complete(args: RunArgs, arguments: impl IntoIterator<Item = OsString>) -> Result<RunArgs, ConfigFileError> {
    let Some(path) = args.config.clone() else { return Ok(args) };
    let text = fs::read_to_string(&path).map_err(|cause| ConfigFileError::Unreadable { path: path.clone(), cause })?;
    let findings = read(&path, &text)?;
    findings.tell(&path);
    add(findings.settings, arguments.into_iter().collect())
        .map_err(|cause| ConfigFileError::Flags { path, cause })
        .map(|merged| merged.unwrap_or(args))
}

/// What a file says.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    settings: Vec<Setting>,
    /// Fields that are set, and why they do nothing.
    ignored: BTreeMap<String, &'static str>,
    /// Fields that kube-proxy has not got.
    unknown: Vec<String>,
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
    let mut findings = Findings::default();
    for (field, value) in leaves(&root) {
        match fields::meaning(&field, mode) {
            None => findings.unknown.push(field),
            Some(Meaning::Header) => {}
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
fn add(settings: Vec<Setting>, mut arguments: Vec<OsString>) -> Result<Option<RunArgs>, clap::Error> {
    let matches = Cli::command().try_get_matches_from(&arguments)?;
    for Setting { flag, value, .. } in settings {
        if !is_typed(&matches, flag) {
            let argument = value.map_or_else(|| format!("--{flag}"), |value| format!("--{flag}={value}"));
            arguments.push(argument.into());
        }
    }
    let matches = Cli::command().try_get_matches_from(arguments)?;
    match Cli::from_arg_matches(&matches)?.command {
        Command::Run(args) => Ok(Some(*args)),
        Command::Get(_) | Command::Trace(_) | Command::Cleanup(_) => Ok(None),
    }
}

/// Whether a flag of `run` stands on the command line or in the environment.
fn is_typed(matches: &ArgMatches, flag: &str) -> bool {
    let source = matches.subcommand_matches("run").and_then(|run| run.value_source(&flag.replace('-', "_")));
    source.is_some_and(|source| source != ValueSource::DefaultValue)
}

#[cfg(test)]
mod tests;
