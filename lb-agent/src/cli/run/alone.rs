// SPDX-License-Identifier: MIT OR Apache-2.0
//! One agent in a network namespace: two would translate every packet twice, whatever directories their pins are in.
//!
//! The mark is a socket with an abstract name. Such names belong to the network namespace, and go with the process.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::warn;

const NAME: &[u8] = b"shunt.dev/lb-agent";

/// This process is the one agent of its network namespace, as long as it holds this.
#[derive(Debug)]
pub struct Alone {
    /// Held, not used. `None` where somebody who may not run an agent has taken the name.
    _mark: Option<UnixListener>,
}

/// Becomes the one agent of this network namespace.
///
/// # Errors
/// Where there is another.
pub fn claim() -> anyhow::Result<Alone> {
    let name = SocketAddr::from_abstract_name(NAME).context("the name of the agent's mark")?;
    match UnixListener::bind_addr(&name) {
        Ok(mark) => Ok(Alone { _mark: Some(mark) }),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => refuse(&name),
        Err(error) => Err(error).context("can't mark this network namespace as that of an agent"),
    }
}

fn refuse(name: &SocketAddr) -> anyhow::Result<Alone> {
    let holder = UnixStream::connect_addr(name).ok();
    let holder = holder.and_then(|stream| getsockopt(&stream, PeerCredentials).ok());
    // Anybody may take the name: who is not root is no agent, and shall not keep one from starting.
    if let Some(holder) = holder.filter(|holder| holder.uid() != 0) {
        warn!(
            "process {} of user {} has taken the name by which agents of one network namespace know each other; it is no agent",
            holder.pid(),
            holder.uid()
        );
        return Ok(Alone { _mark: None });
    }
    // Of another PID namespace none is known.
    let process = holder.map(|holder| holder.pid()).filter(|&pid| pid > 0);
    let process = process.map_or_else(String::new, |pid| format!(" (process {pid})"));
    bail!(
        "another agent{process} runs in this network namespace, where two would translate every packet twice: stop that one first. \
         (Another --bpffs does not help; what an agent has left behind is removed by `lb-agent cleanup` with its --bpffs)"
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_second_agent_in_a_network_namespace_is_refused() {
        let test = || {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return eprintln!("skipped: a network namespace needs root");
            }
            let first = claim().unwrap();
            let refused = claim().unwrap_err().to_string();
            let process = format!("another agent (process {}) runs in this network namespace", std::process::id());
            assert!(refused.starts_with(&process), "{refused}");
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let elsewhere = claim().unwrap();
            drop((first, elsewhere));
            claim().unwrap();
        };
        thread::spawn(test).join().unwrap();
    }
}
