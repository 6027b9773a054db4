// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real servers in pods: nginx that answers with its pod's name and the client's address, dnsmasq, iperf3.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Namespace, wait_until};
use crate::load::{
    dns::{self, ADDRESS_V4, ADDRESS_V6, NAME},
    http,
};

const WEB_PORT: u16 = 8080;
const DNS_PORT: u16 = 5353;
const START_LIMIT: Duration = Duration::from_secs(10);
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// For transfers of many packets, so that segmentation offload takes part.
const LARGE_FILE_BYTES: usize = 4 << 20;

/// The port on which web servers listen: another than their Service's.
#[must_use]
pub const fn http_port() -> u16 {
    WEB_PORT
}

/// The port on which DNS servers listen.
#[must_use]
pub const fn dns_port() -> u16 {
    DNS_PORT
}

/// A process that ends when this is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command; what it prints goes to a file.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("can't create {}", log.display()))?;
        let err = file.try_clone().context("can't share a file")?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(err).spawn();
        Ok(Self { child: child.with_context(|| format!("can't start {command:?}"))? })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nginx on port 8080 of both families. `/` answers `<pod> <client address> <client port>`, `/large` with 4 MiB.
pub(super) fn nginx(pod: &str, namespace: &Namespace, directory: &Path) -> Result<Process> {
    let home = directory.join(pod);
    let write = |name: &str, bytes: &[u8]| {
        let path = home.join(name);
        fs::write(&path, bytes).with_context(|| format!("can't write {}", path.display()))
    };
    fs::create_dir_all(home.join("files")).with_context(|| format!("can't create {}", home.display()))?;
    write("files/large", &vec![b'.'; LARGE_FILE_BYTES])?;
    write("nginx.conf", nginx_configuration(pod, &home).as_bytes())?;
    let mut command = namespace.command("nginx");
    command.arg("-p").arg(&home).arg("-e").arg(home.join("error.log")).arg("-c").arg(home.join("nginx.conf"));
    Process::start(command, &home.join("output.log"))
}

fn nginx_configuration(pod: &str, home: &Path) -> String {
    let home = home.display();
    format!(
        "daemon off;\n\
         master_process off;\n\
         pid {home}/nginx.pid;\n\
         error_log {home}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           log_format client '$remote_addr $remote_port $request_uri $status';\n\
           access_log {home}/access.log client;\n\
           client_body_temp_path {home}/body;\n\
           proxy_temp_path {home}/proxy;\n\
           fastcgi_temp_path {home}/fastcgi;\n\
           uwsgi_temp_path {home}/uwsgi;\n\
           scgi_temp_path {home}/scgi;\n\
           keepalive_requests 1000000;\n\
           server {{\n\
             listen 0.0.0.0:{WEB_PORT} backlog=4096;\n\
             listen [::]:{WEB_PORT} ipv6only=on backlog=4096;\n\
             default_type text/plain;\n\
             location = / {{ return 200 '{pod} $remote_addr $remote_port\\n'; }}\n\
             location = /large {{ root {home}/files; }}\n\
           }}\n\
         }}\n"
    )
}

/// Waits until a web server answers with its name.
pub(super) fn wait_for_web(client: &Namespace, address: IpAddr, name: &str) -> Result<()> {
    let address = SocketAddr::new(address, WEB_PORT);
    client.enter(|| {
        wait_until(&format!("an answer of {name} at {address}"), START_LIMIT, || {
            let response = http::get(address, "/", PROBE_LIMIT);
            Ok(response.is_ok_and(|response| response.server() == Some(name)))
        })
    })?
}

/// Waits until a DNS server answers.
pub(super) fn wait_for_dns(client: &Namespace, address: IpAddr) -> Result<()> {
    let address = SocketAddr::new(address, DNS_PORT);
    client.enter(|| {
        wait_until(&format!("a DNS answer from {address}"), START_LIMIT, || {
            Ok(dns::query(address, 1, PROBE_LIMIT).is_ok())
        })
    })?
}

/// dnsmasq on port 5353 of both families and protocols; it knows one name, [`NAME`].
pub(super) fn dnsmasq(pod: &str, namespace: &Namespace, directory: &Path) -> Result<Process> {
    let mut command = namespace.command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--pid-file=", "--log-facility=-", "--cache-size=0"]).arg(format!("--port={DNS_PORT}"));
    command.arg(format!("--host-record={NAME},{ADDRESS_V4},{ADDRESS_V6}"));
    Process::start(command, &directory.join(format!("dnsmasq-{pod}.log")))
}
