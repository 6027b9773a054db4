// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of the node's own processes whose backend has gone: they are closed, so that their applications connect anew. So
//! are those of UDP whose address is no longer that Service's (rule 85), or that had nobody to be connected to, once there is
//! somebody.
//!
//! No packet door sees these sockets' packets. A pod's sockets that need this are left to the packet doors (`lb-ebpf`'s
//! `socket`), which is why this network namespace alone is looked at.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use lb_common::{
    flow::protocol,
    frontend::{Backend, Frontend, Scope, backend_state, frontend_flags},
};
use nix::libc;
use tracing::{debug, warn};

use super::{
    maps::{MapError, Maps},
    sock_diag::SockDiag,
    sys,
};
use crate::diff::{GRACE, Operation};

/// What is to be closed, and when.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Service ports whose TCP connections are reset when their backend goes.
    resetting: BTreeSet<u32>,
    /// Whether a backend has gone since the last look.
    is_due: bool,
    /// Whether one of them had TCP connections to be reset.
    has_tcp: bool,
    /// The second look: a process may have read its table just before the change, and be in the map only after the first; and
    /// further ones as long as a socket can't be closed.
    again_at: Option<Instant>,
    /// How often in a row a look has left a socket open.
    failures: u32,
}

/// Longest pause before a socket is tried again that can't be closed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A look at the sockets failed.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// The sockets can't be listed or closed.
    #[error("sockets by netlink: {0}")]
    Netlink(#[from] io::Error),
    /// The map of sockets can't be read.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl Orphans {
    /// With the frontends as they are; the first look is due, for what happened while no agent ran.
    pub fn new<'a>(frontends: impl IntoIterator<Item = &'a Frontend>) -> Self {
        let mut orphans = Self { is_due: true, has_tcp: true, ..Self::default() };
        frontends.into_iter().for_each(|frontend| orphans.note_frontend(frontend));
        orphans
    }

    /// Takes note of a write that may make orphans.
    pub fn note(&mut self, operation: &Operation) {
        match operation {
            Operation::UpsertFrontend { key, frontend } => {
                self.note_frontend(frontend);
                self.is_due |= key.protocol == protocol::UDP && frontend.target(Scope::Internal).slots != 0;
            }
            Operation::RemoveFrontend { key } => self.is_due |= key.protocol == protocol::UDP,
            Operation::SetBackend { backend, .. } => self.note_backend(backend),
            _ => {}
        }
    }

    fn note_frontend(&mut self, frontend: &Frontend) {
        if frontend.flags & frontend_flags::RESET_ON_REMOVAL != 0 {
            self.resetting.insert(frontend.service);
        } else {
            self.resetting.remove(&frontend.service);
        }
    }

    fn note_backend(&mut self, backend: &Backend) {
        if backend.state == backend_state::FREE {
            self.is_due = true;
            self.has_tcp |= self.resetting.contains(&backend.service);
        }
    }

    /// Closes what is due. Returns when to come back.
    pub fn close(&mut self, maps: &Maps, now: Instant) -> Option<Instant> {
        let is_second = self.again_at.is_some_and(|at| at <= now);
        if !self.is_due && !is_second {
            return self.again_at;
        }
        let was_due = std::mem::take(&mut self.is_due);
        match close(maps, self.has_tcp) {
            Ok(()) => self.failures = 0,
            Err(error) => {
                if self.failures == 0 {
                    warn!("sockets of backends that have gone stay open for now: {error}");
                }
                self.failures += 1;
            }
        }
        self.again_at = match self.failures {
            0 if was_due => Some(now + GRACE),
            0 => None,
            failures => Some(now + (GRACE * 2_u32.saturating_pow(failures - 1)).min(LONGEST_PAUSE)),
        };
        self.has_tcp &= self.again_at.is_some();
        self.again_at
    }
}

/// Looks at all sockets once. One that can't be closed stops no other; the first such error is returned.
fn close(maps: &Maps, with_tcp: bool) -> Result<(), OrphanError> {
    let diag = SockDiag::open()?;
    let mut sockets = diag.connected(protocol::UDP)?;
    if with_tcp {
        sockets.extend(diag.connected(protocol::TCP)?);
    }
    let mut outcome = Ok(());
    for socket in sockets {
        let Some(entry) = maps.sockets.get(&socket.cookie())? else { continue };
        let is_there = socket.peer() == (entry.backend_address, entry.backend_port_be);
        let is_udp = entry.protocol == protocol::UDP;
        let is_stale = if entry.is_refused() {
            maps.would_serve(&entry)?
        } else {
            entry.is_closed_with_backend() && maps.has_gone(entry.backend, entry.generation)
                || is_udp && maps.has_lost_frontend(&entry)?
        };
        if !is_there || !is_stale {
            continue;
        }
        let address = IpAddr::from(entry.address);
        debug!(
            cookie = socket.cookie(),
            "a socket to {address} is closed: its backend or frontend has gone, or there is one now"
        );
        match diag.destroy(&socket) {
            Ok(()) => {}
            // Closed by its application meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if outcome.is_ok() => outcome = Err(error.into()),
            Err(_) => {}
        }
    }
    outcome
}

/// Whether the kernel lets us close sockets, tried on one of our own.
pub fn can_close() -> bool {
    let tried = || -> io::Result<bool> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect("127.0.0.1:9")?;
        let cookie = sys::socket_cookie(socket.as_fd())?;
        let diag = SockDiag::open()?;
        let own = diag.connected(protocol::UDP)?.into_iter().find(|other| other.cookie() == cookie);
        Ok(own.is_some_and(|own| diag.destroy(&own).is_ok()))
    };
    tried().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use lb_common::{
        address::Address,
        frontend::{FrontendKey, Target},
    };

    use super::*;

    fn frontend(service: u32, flags: u32) -> Frontend {
        Frontend { service, flags, ..Frontend::default() }
    }

    fn freed(service: u32) -> Operation {
        let backend = Backend { service, state: backend_state::FREE, ..Backend::default() };
        Operation::SetBackend { index: 1, backend }
    }

    #[test]
    fn udp_that_is_served_now_concerns_sockets_that_were_refused() {
        let target = Target { offset: 16, slots: 16 };
        for (protocol, targets, is_due) in [
            (protocol::UDP, [target; 2], true),
            (protocol::UDP, [Target::default(); 2], false),
            (protocol::TCP, [target; 2], false),
        ] {
            let mut orphans = Orphans { is_due: false, ..Orphans::default() };
            let key = FrontendKey::new(Address::UNSPECIFIED, 53, protocol);
            orphans.note(&Operation::UpsertFrontend { key, frontend: Frontend { targets, ..frontend(1, 0) } });
            assert_eq!(orphans.is_due, is_due);
        }
    }

    #[test]
    fn only_backends_of_services_that_reset_concern_tcp() {
        let mut orphans = Orphans { is_due: false, has_tcp: false, ..Orphans::new(&[frontend(1, 0), frontend(2, 32)]) };
        orphans.note(&freed(1));
        assert!(orphans.is_due && !orphans.has_tcp);
        orphans.note(&freed(2));
        assert!(orphans.has_tcp);
    }
}
