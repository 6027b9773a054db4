// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs here, for people who look at a node: `/configz`, `/flagz` and `/statusz` (rule 72).

use std::{fmt::Write as _, time::Instant};

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::cli::run::Flags;

/// Under this name the configuration stands in `/configz`, where kube-proxy has `kubeproxy.config.k8s.io`.
const CONFIG_NAME: &str = "shunt.dev/lb-agent";
const TEXT: &str = "text/plain; charset=utf-8";

/// What is to be told.
#[derive(Clone, Debug)]
pub struct About {
    flags: Flags,
    started: Timestamp,
    since: Instant,
}

impl About {
    /// An agent that starts now.
    #[must_use]
    pub fn new(flags: Flags) -> Self {
        Self { flags, started: Timestamp::now(), since: Instant::now() }
    }

    /// What is in force, wherever it is from: the command line, `--config`, or a default.
    fn configz(&self) -> Value {
        let flags: Map<String, Value> = self.flags.iter().map(|(name, value)| (name.into(), value.into())).collect();
        json!({ CONFIG_NAME: flags })
    }

    /// The same, as one would type it.
    fn flagz(&self) -> String {
        let mut text = "lb-agent flags\n\n".to_owned();
        for (name, value) in self.flags.iter() {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name}={value}");
        }
        text
    }

    fn statusz(&self, now: Instant) -> String {
        let up = now.duration_since(self.since).as_secs();
        format!(
            "lb-agent status\nFor people: nothing here keeps its form from one version to the next.\n\nStarted: {:.0}\n\
             Up: {} h {:02} min {:02} s\nVersion: {}\nMode: shunt\nPages: /metrics /proxyMode /healthz /configz /flagz /statusz\n",
            self.started,
            up / 3600,
            up / 60 % 60,
            up % 60,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// The pages.
pub fn router(about: About) -> Router {
    let configz = |State(about): State<About>| async move { page("application/json", about.configz().to_string()) };
    let flagz = |State(about): State<About>| async move { page(TEXT, about.flagz()) };
    let statusz = |State(about): State<About>| async move { page(TEXT, about.statusz(Instant::now())) };
    let router = Router::new().route("/configz", get(configz)).route("/flagz", get(flagz));
    router.route("/statusz", get(statusz)).with_state(about)
}

fn page(content_type: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn about(line: &str) -> About {
        let matches = Cli::command().try_get_matches_from(line.split_whitespace()).unwrap();
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        About::new(Flags::new(run, matches.subcommand_matches("run").unwrap()))
    }

    #[test]
    fn rule_72_the_flags_in_force_are_shown_but_no_secret() {
        let seed = "0000000000000001000000000000000a";
        let about =
            about(&format!("lb-agent run --source kube --uplink eth0,eth1 --masquerade-all --hash-seed {seed}"));
        let text = about.flagz();
        for line in
            ["source=kube", "uplink=eth0,eth1", "masquerade-all=true", "hash-seed=(given)", "max-map-memory=2048"]
        {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in {text}");
        }
        let config = about.configz();
        assert_eq!(config[CONFIG_NAME]["healthz-bind-address"], "0.0.0.0:10256");
        assert_eq!(config[CONFIG_NAME]["kubeconfig"], "");
        assert!(!text.contains(seed) && !config.to_string().contains(seed));
    }

    #[test]
    fn rule_72_the_status_says_what_runs_and_how_long() {
        let about = about("lb-agent run --source kube");
        let text = about.statusz(about.since + Duration::from_secs(3 * 3600 + 61));
        assert!(text.contains("\nUp: 3 h 01 min 01 s\n"), "{text}");
        assert!(text.contains(&format!("\nVersion: {}\n", env!("CARGO_PKG_VERSION"))), "{text}");
    }
}
