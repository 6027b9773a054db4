// SPDX-License-Identifier: MIT OR Apache-2.0
//! The writes that the agent makes to maps, and who carries them out.

use std::{fmt, io};

use lb_common::{
    address::Address,
    config::Interface,
    filter::Concern,
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey},
    maps::{self, ServiceName},
};
use nix::libc;

use super::{FrontendText, filter::ConcernText};

/// One write to one map.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Writes an element of the backend array. A backend that was free starts with counters of zero.
    SetBackend {
        /// Its index.
        index: u32,
        /// The new value.
        backend: Backend,
    },
    /// Writes a lookup table that no frontend refers to yet.
    FillTable {
        /// Its first slot.
        offset: u32,
        /// Backend indices.
        slots: Vec<u32>,
    },
    /// Changes a lookup table that frontends may refer to: what they get changes slot by slot.
    ChangeTable {
        /// Its first slot.
        offset: u32,
        /// Backend indices, as many as before.
        slots: Vec<u32>,
    },
    /// Lets packets pass the filter.
    Pass(Concern),
    /// Names a Service port, whose counters start at zero.
    SetName {
        /// Its index.
        service: u32,
        /// The name.
        name: Box<ServiceName>,
    },
    /// Admits a range of sources to a Service port.
    UpsertSourceRange(SourceRangeKey),
    /// Admits it no longer.
    RemoveSourceRange(SourceRangeKey),
    /// Makes a frontend, or switches it to other tables.
    UpsertFrontend {
        /// Where it is reached.
        key: FrontendKey,
        /// What new flows get.
        frontend: Frontend,
    },
    /// Removes a frontend; packets to it are no Service's then.
    RemoveFrontend {
        /// Where it was reached.
        key: FrontendKey,
    },
    /// Forgets the name of a Service port.
    RemoveName {
        /// Its index.
        service: u32,
    },
    /// Lets an address of this node answer NodePorts.
    UpsertNodeAddress(Address),
    /// Stops an address from answering NodePorts.
    RemoveNodeAddress(Address),
    /// Describes a device.
    UpsertInterface {
        /// Index of the device.
        ifindex: u32,
        /// Its addresses and role.
        interface: Interface,
    },
    /// Forgets a device.
    RemoveInterface {
        /// Index of the device.
        ifindex: u32,
    },
}

/// What it is about, for people.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetBackend { index, .. } => write!(f, "backend {index}"),
            Self::FillTable { offset, .. } | Self::ChangeTable { offset, .. } => write!(f, "lookup table at {offset}"),
            Self::Pass(concern) => write!(f, "filter bits of {}", ConcernText(concern)),
            Self::SetName { service, .. } | Self::RemoveName { service } => write!(f, "name of Service port {service}"),
            Self::UpsertSourceRange(key) | Self::RemoveSourceRange(key) => {
                write!(f, "source range of Service port {}", key.range.service)
            }
            Self::UpsertFrontend { key, .. } | Self::RemoveFrontend { key } => {
                write!(f, "frontend {}", FrontendText(key))
            }
            Self::UpsertNodeAddress(address) | Self::RemoveNodeAddress(address) => write!(f, "node address {address}"),
            Self::UpsertInterface { ifindex, .. } | Self::RemoveInterface { ifindex } => {
                write!(f, "interface {ifindex}")
            }
        }
    }
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The kernel refused it.
    #[error("writing map {map}: {cause}")]
    Refused {
        /// Name of the map.
        map: &'static str,
        /// What it said.
        cause: io::Error,
    },
    /// The map has no such element.
    #[error("writing map {map}: element {index} is outside its {capacity} elements")]
    OutOfRange {
        /// Name of the map.
        map: &'static str,
        /// The element.
        index: u32,
        /// How many there are.
        capacity: u32,
    },
}

impl WriteError {
    /// Whether the map has no room or place for it, so that the same write fails until something else changes.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            // What hash maps and tries say.
            Self::Refused { cause, .. } => matches!(cause.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)),
            Self::OutOfRange { .. } => true,
        }
    }

    /// What can be done about a device or an address that could not be written.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            // A hash map has no room.
            Self::Refused { map, cause } if cause.raw_os_error() == Some(libc::E2BIG) => match *map {
                maps::INTERFACES => "raise --max-interfaces and restart the agent",
                maps::NODE_ADDRESSES => "raise --max-node-addresses and restart the agent",
                _ => "it is tried again with the next change",
            },
            _ => "it is tried again with the next change",
        }
    }
}

/// Carries out operations: the kernel's maps, or a fake.
pub trait Writer {
    /// Carries out one.
    ///
    /// # Errors
    /// When the map refuses it. The map is as before then.
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError>;
}
