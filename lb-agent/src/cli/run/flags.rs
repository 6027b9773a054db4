// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flags that are in force, as text: those that were typed, those that `--config` adds, and the defaults.

use clap::{ArgMatches, Command};

/// Whoever knows it can aim at a backend.
const SECRET: &str = "hash-seed";

/// Names and values of all flags of a subcommand, in the order of `--help`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// Those of a parsed subcommand. A secret is not shown, only whether it was given.
    #[must_use]
    pub fn new(command: &Command, matches: &ArgMatches) -> Self {
        let flag = |argument: &clap::Arg| {
            let name = argument.get_long()?;
            let raw = matches.try_get_raw(argument.get_id().as_str()).ok()?;
            let values: Vec<_> = raw.into_iter().flatten().map(|value| value.to_string_lossy()).collect();
            let is_hidden = name == SECRET && !values.is_empty();
            Some((name.to_owned(), if is_hidden { "(given)".to_owned() } else { values.join(",") }))
        };
        Self(command.get_arguments().filter_map(flag).collect())
    }

    /// Sets what is known better than the command line says.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.iter_mut().filter(|(own, _)| own == name).for_each(|(_, own)| value.clone_into(own));
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}
