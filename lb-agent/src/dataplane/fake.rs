// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps in memory, for tests: they take the same operations, refuse the same ones, and print themselves as text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
};

use lb_common::{
    address::Address,
    config::{Interface, role},
    frontend::{Backend, Frontend, FrontendKey, SourceRangeKey, Target, backend_flags, backend_state, frontend_flags},
    maps::{self, ServiceName},
};
use nix::libc;

use crate::diff::{Capacities, Dump, Filter, FrontendText, Operation, ProtocolText, WriteError, Writer};

/// The maps that operations write.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    capacities: Capacities,
    names: BTreeMap<u32, ServiceName>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    source_ranges: BTreeMap<SourceRangeKey, ()>,
    backends: Vec<Backend>,
    tables: Vec<u32>,
    filter: Filter,
    node_addresses: BTreeSet<Address>,
    interfaces: BTreeMap<u32, Interface>,
    /// Refuses the write after this many.
    fails_after: Option<usize>,
}

impl Fake {
    /// Empty maps.
    #[must_use]
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            backends: vec![Backend::default(); capacities.backends as usize],
            tables: vec![0; capacities.table_slots as usize],
            ..Self::default()
        }
    }

    /// How much they can hold.
    #[must_use]
    pub const fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// Refuses one write, after `writes` more that succeed.
    pub fn fail_after(&mut self, writes: usize) {
        self.fails_after = Some(writes);
    }

    /// What the kernel's maps would say at an agent's start.
    #[must_use]
    pub fn dump(&self) -> Dump {
        let targets = self.frontends.values().flat_map(|frontend| frontend.targets).filter(|target| target.slots > 0);
        Dump {
            names: self.names.clone(),
            frontends: self.frontends.clone(),
            source_ranges: self.source_ranges.keys().copied().collect(),
            backends: self.backends.clone(),
            tables: targets.map(|target| (target.offset, self.table(target).to_vec())).collect(),
            filter: self.filter.clone(),
            node_addresses: self.node_addresses.iter().copied().collect(),
            interfaces: self.interfaces.clone(),
            ..Dump::default()
        }
    }

    /// The slots of a frontend's table.
    #[must_use]
    pub fn table(&self, target: Target) -> &[u32] {
        let start = target.offset as usize;
        &self.tables[start..start + target.slots as usize]
    }

    /// Whether the maps hold what an operation writes.
    #[must_use]
    pub fn holds(&self, operation: &Operation) -> bool {
        match operation {
            Operation::SetBackend { index, backend } => self.backends.get(*index as usize) == Some(backend),
            Operation::FillTable { offset, slots } | Operation::ChangeTable { offset, slots } => {
                let start = *offset as usize;
                self.tables.get(start..start + slots.len()) == Some(slots)
            }
            Operation::Pass(concern) => self.filter.contains(*concern),
            Operation::SetName { service, name } => self.names.get(service) == Some(&**name),
            Operation::RemoveName { service } => !self.names.contains_key(service),
            Operation::UpsertFrontend { key, frontend } => self.frontends.get(key) == Some(frontend),
            Operation::RemoveFrontend { key } => !self.frontends.contains_key(key),
            Operation::UpsertSourceRange(key) => self.source_ranges.contains_key(key),
            Operation::RemoveSourceRange(key) => !self.source_ranges.contains_key(key),
            Operation::UpsertNodeAddress(address) => self.node_addresses.contains(address),
            Operation::RemoveNodeAddress(address) => !self.node_addresses.contains(address),
            Operation::UpsertInterface { ifindex, interface } => self.interfaces.get(ifindex) == Some(interface),
            Operation::RemoveInterface { ifindex } => !self.interfaces.contains_key(ifindex),
        }
    }

    fn fail_if_due(&mut self) -> Result<(), WriteError> {
        match self.fails_after {
            Some(0) => {
                self.fails_after = None;
                Err(WriteError::Refused { map: "FAKE", cause: io::ErrorKind::Other.into() })
            }
            Some(left) => {
                self.fails_after = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn insert<K: Ord, V>(
        map: &'static str,
        capacity: u32,
        entries: &mut BTreeMap<K, V>,
        entry: (K, V),
    ) -> Result<(), WriteError> {
        if entries.len() >= capacity as usize && !entries.contains_key(&entry.0) {
            return Err(WriteError::Refused { map, cause: io::Error::from_raw_os_error(libc::E2BIG) });
        }
        entries.insert(entry.0, entry.1);
        Ok(())
    }
}

impl Writer for Fake {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        self.fail_if_due()?;
        match operation {
            Operation::SetBackend { index, backend } => {
                let capacity = self.capacities.backends;
                let out_of_range = WriteError::OutOfRange { map: maps::BACKENDS, index: *index, capacity };
                *self.backends.get_mut(*index as usize).ok_or(out_of_range)? = *backend;
            }
            Operation::FillTable { offset, slots } | Operation::ChangeTable { offset, slots } => {
                let (start, capacity) = (*offset as usize, self.capacities.table_slots);
                let out_of_range = WriteError::OutOfRange { map: maps::TABLES, index: *offset, capacity };
                self.tables.get_mut(start..start + slots.len()).ok_or(out_of_range)?.copy_from_slice(slots);
            }
            Operation::Pass(concern) => self.filter.insert(*concern),
            Operation::SetName { service, name } => {
                Self::insert(maps::SERVICE_NAMES, self.capacities.services, &mut self.names, (*service, **name))?;
            }
            Operation::UpsertFrontend { key, frontend } => {
                Self::insert(maps::FRONTENDS, self.capacities.frontends, &mut self.frontends, (*key, *frontend))?;
            }
            Operation::UpsertSourceRange(key) => {
                Self::insert(maps::SOURCE_RANGES, self.capacities.source_ranges, &mut self.source_ranges, (*key, ()))?;
            }
            Operation::RemoveSourceRange(key) => drop(self.source_ranges.remove(key)),
            Operation::RemoveFrontend { key } => drop(self.frontends.remove(key)),
            Operation::RemoveName { service } => drop(self.names.remove(service)),
            Operation::UpsertNodeAddress(address) => drop(self.node_addresses.insert(*address)),
            Operation::RemoveNodeAddress(address) => drop(self.node_addresses.remove(address)),
            Operation::UpsertInterface { ifindex, interface } => {
                Self::insert(
                    maps::INTERFACES,
                    self.capacities.interfaces,
                    &mut self.interfaces,
                    (*ifindex, *interface),
                )?;
            }
            Operation::RemoveInterface { ifindex } => drop(self.interfaces.remove(ifindex)),
        }
        Ok(())
    }
}

/// One line per entry, in a stable order, without free backends: for comparison with a golden file.
impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (service, name) in &self.names {
            let text = String::from_utf8_lossy(&name.text);
            let (text, protocol) = (text.trim_end_matches('\0'), ProtocolText(name.protocol));
            writeln!(f, "service {service} {text} {protocol} IPv{}", name.ip_version)?;
        }
        for (key, frontend) in &self.frontends {
            write!(f, "frontend {} -> service {}", FrontendText(key), frontend.service)?;
            for (scope, target) in ["internal", "external"].into_iter().zip(frontend.targets) {
                write!(f, ", {scope} {}", Shares(self.table(target)))?;
            }
            if frontend.affinity_timeout != 0 {
                write!(f, ", affinity {} ticks", frontend.affinity_timeout)?;
            }
            writeln!(f, "{}", FrontendFlags(frontend.flags))?;
        }
        for SourceRangeKey { prefix_len, range } in self.source_ranges.keys() {
            let prefix_len = prefix_len - if range.address.is_v4() { 128 } else { 32 };
            writeln!(f, "source range {}/{prefix_len} of service {}", range.address, range.service)?;
        }
        let live = self.backends.iter().enumerate().filter(|(_, backend)| backend.state != backend_state::FREE);
        for (index, backend) in live {
            let state = if backend.state == backend_state::ACTIVE { "active" } else { "draining" };
            let socket = std::net::SocketAddr::new(backend.address.into(), u16::from_be(backend.port_be));
            let place = BackendFlags(backend.flags);
            let (service, generation) = (backend.service, backend.generation);
            writeln!(f, "backend {index} {socket} service {service} {state}{place} generation {generation}")?;
        }
        for address in &self.node_addresses {
            writeln!(f, "node address {address}")?;
        }
        for (ifindex, interface) in &self.interfaces {
            write!(f, "interface {ifindex}")?;
            let roles = [
                (role::POD, "pod"),
                (role::UPLINK, "uplink"),
                (role::XDP, "xdp"),
                (role::RETURN, "return"),
                (role::NET, "net"),
            ];
            for (_, name) in roles.into_iter().filter(|(bit, _)| interface.role & bit != 0) {
                write!(f, " {name}")?;
            }
            for address in interface.addresses.iter().filter(|address| !address.is_unspecified()) {
                write!(f, " {}", IpAddr::from(*address))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// `401 slots (1: 201, 2: 200)`, or `nothing`.
struct Shares<'a>(&'a [u32]);

impl fmt::Display for Shares<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shares = BTreeMap::<u32, u32>::new();
        self.0.iter().for_each(|&slot| *shares.entry(slot).or_default() += 1);
        if shares.is_empty() {
            return f.write_str("nothing");
        }
        let shares: Vec<_> = shares.iter().map(|(backend, slots)| format!("{backend}: {slots}")).collect();
        write!(f, "{} slots ({})", self.0.len(), shares.join(", "))
    }
}

/// The names of the flags that are set, each after a comma.
struct FrontendFlags(u32);

impl fmt::Display for FrontendFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (frontend_flags::INTERNAL_DROP, "internal-drop"),
            (frontend_flags::EXTERNAL_DROP, "external-drop"),
            (frontend_flags::INTERNAL_LOCAL, "internal-local"),
            (frontend_flags::EXTERNAL_LOCAL, "external-local"),
            (frontend_flags::SOURCE_RANGES, "source-ranges"),
            (frontend_flags::RESET_ON_REMOVAL, "reset-on-removal"),
            (frontend_flags::EXTERNAL_PASS, "external-pass"),
        ];
        names.into_iter().filter(|(bit, _)| self.0 & bit != 0).try_for_each(|(_, name)| write!(f, ", {name}"))
    }
}

/// The names of the flags that are set, each after a space.
struct BackendFlags(u8);

impl fmt::Display for BackendFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (backend_flags::LOCAL, "local"),
            (backend_flags::IN_CLUSTER, "in-cluster-list"),
            (backend_flags::IN_LOCAL, "in-local-list"),
        ];
        names.into_iter().filter(|(bit, _)| self.0 & bit != 0).try_for_each(|(_, name)| write!(f, " {name}"))
    }
}
