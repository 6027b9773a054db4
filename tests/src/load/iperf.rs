// SPDX-License-Identifier: MIT OR Apache-2.0
//! iperf3, whose server serves one client at a time, and listens anew after each.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::world::{Namespace, Process, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

/// A server's log.
#[derive(Clone, Debug)]
pub struct Log(PathBuf);

/// Starts a server.
///
/// # Errors
/// When there is no iperf3.
pub fn serve(namespace: &Namespace, port: u16, log: &Path) -> Result<(Process, Log)> {
    let mut server = namespace.command("iperf3");
    server.args(["-s", "--forceflush", "-p", &port.to_string()]);
    Ok((Process::start(server, log)?, Log(log.to_owned())))
}

impl Log {
    /// How many clients have come.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn clients(&self) -> Result<usize> {
        Ok(self.read()?.matches("Accepted connection").count())
    }

    /// Waits until the server says that it listens: a client that comes before is turned away, or reset.
    fn wait_until_idle(&self) -> Result<()> {
        wait_until("iperf3 listening", LIMIT, || {
            let log = self.read()?;
            Ok(log.rfind("Server listening") > log.rfind("Accepted connection"))
        })
    }

    fn read(&self) -> Result<String> {
        fs::read_to_string(&self.0).with_context(|| format!("can't read {}", self.0.display()))
    }
}

/// One run of a client, once the server has time; what it reports.
///
/// # Errors
/// What it reports as such.
pub fn run(server: &Log, client: &Namespace, to: SocketAddr, more: &[&str]) -> Result<Value> {
    server.wait_until_idle()?;
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let arguments = [&["-c", &address, "-p", &port, "-J", "--connect-timeout", "5000"], more].concat();
    let mut report = Value::Null;
    // By its log it may have time before it has.
    wait_until("iperf3 having time", LIMIT, || {
        report = serde_json::from_str(&client.run("iperf3", &arguments)?)?;
        Ok(!report["error"].as_str().is_some_and(|error| error.contains("busy")))
    })?;
    ensure!(report["error"].is_null(), "{to} {more:?}: {}", report["error"]);
    Ok(report)
}
