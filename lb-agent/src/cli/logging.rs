// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is logged, and in which form. Logs go to standard error: standard output is for answers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The netlink library reports as errors what is handled here, or is merely unknown to it; the Kubernetes client and its watcher
/// report each attempt that fails, where the source tells of an outage once; aya tells at length that a kernel dislikes the
/// debug information, which nothing needs.
const QUIET: &str = "aya=error,kube_client::client=off,kube_client::client::tls=warn,kube_runtime::watcher=off,\
                     netlink_proto=off,netlink_packet_route=off";

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The flags.
#[derive(Clone, Debug, clap::Args)]
pub struct LoggingArgs {
    /// Form of the log on standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl LoggingArgs {
    /// Starts logging. To be called once, first of all.
    pub fn start(&self) {
        let filter = match self.verbose {
            0 => format!("info,{QUIET}"),
            1 => format!("info,lb_agent=debug,{QUIET}"),
            _ => "debug,lb_agent=trace".to_owned(),
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
            LogFormat::Json => builder.json().init(),
        }
    }
}
