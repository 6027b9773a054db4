// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Frontends and backends: what the agent writes so that the slow path can decide where a new flow goes.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;

/// Where a Service is reached: an address, port and protocol.
///
/// A NodePort stands once, under the unspecified address of its family ([`FrontendKey::node_port`]); which local
/// addresses answer it is the map of node addresses' business, so that an address that comes or goes is one write.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FrontendKey {
    /// ClusterIP, external IP or load-balancer IP.
    pub address: Address,
    /// Port, network byte order.
    pub port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl FrontendKey {
    /// A frontend at an address of its own.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port_be: u16, protocol: u8) -> Self {
        Self { address, port_be, protocol, pad: 0 }
    }

    /// A NodePort of a family: `0.0.0.0` (in its v4-mapped form) or `::`.
    #[inline(always)]
    #[must_use]
    pub const fn node_port(is_v4: bool, port_be: u16, protocol: u8) -> Self {
        Self::new(Self::any_address(is_v4), port_be, protocol)
    }

    /// The entry that makes undefined ports of a ClusterIP refused (rule 44): port and protocol 0.
    #[inline(always)]
    #[must_use]
    pub const fn any_port(address: Address) -> Self {
        Self::new(address, 0, 0)
    }

    /// What an element under this key bears in its value ([`Frontend::tagged`]): all of the key in 16 bits.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u16 {
        let words = self.address.words_be();
        let mixed = words[0] ^ words[1] ^ words[2] ^ words[3] ^ (self.port_be as u32) << 8 ^ self.protocol as u32;
        (mixed ^ mixed >> 16) as u16
    }

    /// Whether this is a NodePort.
    #[must_use]
    pub fn is_node_port(&self) -> bool {
        [true, false].iter().any(|&is_v4| self.address == Self::any_address(is_v4))
    }

    /// The NodePort that a packet for this frontend is for where its address is one of the node's.
    #[must_use]
    pub fn to_node_port(&self) -> Self {
        Self::node_port(self.address.is_v4(), self.port_be, self.protocol)
    }

    /// The address under which NodePorts of a family stand.
    #[inline(always)]
    #[must_use]
    pub const fn any_address(is_v4: bool) -> Address {
        if is_v4 { Address::from_v4_be(0) } else { Address::UNSPECIFIED }
    }
}

/// Where a packet for a Service comes from; chooses the [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A pod or a process of this node.
    Internal,
    /// From outside, through an uplink.
    External,
}

/// The lookup table that new flows of one scope use: a Maglev table in the array of all tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Target {
    /// Index of the table's first slot; a multiple of [`crate::maps::SLOTS_PER_CHUNK`].
    pub offset: u32,
    /// Number of slots; 0 where no backend may be used.
    pub slots: u32,
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// Internal clients without a usable backend are dropped, not rejected: there are backends, but not for them.
    pub const INTERNAL_DROP: u32 = 1;
    /// The same for external clients.
    pub const EXTERNAL_DROP: u32 = 2;
    /// Internal clients are served by the local list, else by the cluster list.
    pub const INTERNAL_LOCAL: u32 = 4;
    /// The same for external clients.
    pub const EXTERNAL_LOCAL: u32 = 8;
    /// Only sources within the Service's ranges are admitted (rule 35).
    pub const SOURCE_RANGES: u32 = 16;
    /// Established TCP flows are reset when their backend goes (`shunt.dev/on-backend-removal: reset`).
    pub const RESET_ON_REMOVAL: u32 = 32;
    /// External clients without a usable backend are no business of ours: their packets go on as if there were no frontend
    /// (`spec.externalFailoverPolicy: Passthrough`, KEP-6272).
    pub const EXTERNAL_PASS: u32 = 64;
    /// Above these bits stands the tag of the element's key.
    pub const TAG_SHIFT: u32 = 16;
}

/// What a new flow to a frontend gets. One update of this value switches a Service to its new backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Frontend {
    /// Index of the Service port, for its counters and name.
    pub service: u32,
    /// [`frontend_flags`], and in the map's value the tag of its key.
    pub flags: u32,
    /// Idle time in ticks for which a client stays with its backend (session affinity); 0 for none.
    pub affinity_timeout: u32,
    /// The tables, for internal and external clients; the two are often the same one.
    pub targets: [Target; 2],
}

impl Frontend {
    /// As it stands in the map under a key. Who copies it must see that key's tag afterwards: the kernel uses an element's memory again
    /// for another key, while programs still read it (since Linux 6.1).
    #[inline(always)]
    #[must_use]
    pub const fn tagged(self, key: &FrontendKey) -> Self {
        let flags = self.untagged().flags | (key.tag() as u32) << frontend_flags::TAG_SHIFT;
        Self { flags, ..self }
    }

    /// The same without a tag.
    #[inline(always)]
    #[must_use]
    pub const fn untagged(self) -> Self {
        Self { flags: self.flags & ((1 << frontend_flags::TAG_SHIFT) - 1), ..self }
    }

    /// The table for clients of a scope.
    #[inline(always)]
    #[must_use]
    pub const fn target(&self, scope: Scope) -> Target {
        match scope {
            Scope::Internal => self.targets[0],
            Scope::External => self.targets[1],
        }
    }

    /// The [`backend_flags`] bit of the list that serves clients of a scope.
    #[inline(always)]
    #[must_use]
    pub const fn list(&self, scope: Scope) -> u8 {
        let bit = match scope {
            Scope::Internal => frontend_flags::INTERNAL_LOCAL,
            Scope::External => frontend_flags::EXTERNAL_LOCAL,
        };
        if self.flags & bit != 0 { backend_flags::IN_LOCAL } else { backend_flags::IN_CLUSTER }
    }

    /// Whether packets of a scope that find no backend go on untouched.
    #[inline(always)]
    #[must_use]
    pub const fn is_pass(&self, scope: Scope) -> bool {
        matches!(scope, Scope::External) && self.flags & frontend_flags::EXTERNAL_PASS != 0
    }

    /// Whether clients of a scope that find no backend are dropped in silence, not rejected.
    #[inline(always)]
    #[must_use]
    pub const fn is_drop(&self, scope: Scope) -> bool {
        let bit = match scope {
            Scope::Internal => frontend_flags::INTERNAL_DROP,
            Scope::External => frontend_flags::EXTERNAL_DROP,
        };
        self.flags & bit != 0
    }
}

/// The index that no backend has: that of flows to a backend itself, which are no Service's, and of sockets that nobody serves.
pub const NO_BACKEND: u32 = 0;

/// Life of a backend index.
pub mod backend_state {
    /// Not in use.
    pub const FREE: u8 = 0;
    /// New flows are sent here.
    pub const ACTIVE: u8 = 1;
    /// Still serving its flows; gets no new ones.
    pub const DRAINING: u8 = 2;
}

/// Bits of [`Backend::flags`].
pub mod backend_flags {
    /// On this node: outside clients keep their address.
    pub const LOCAL: u8 = 1;
    /// In the cluster list: what an affinity entry names may be used on paths that this list serves.
    pub const IN_CLUSTER: u8 = 2;
    /// In the local list.
    pub const IN_LOCAL: u8 = 4;
}

/// One endpoint of one Service port. An endpoint of two Services is two backends, so that it can leave one of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// Address of the endpoint.
    pub address: Address,
    /// Port of the endpoint, network byte order.
    pub port_be: u16,
    /// [`backend_state`].
    pub state: u8,
    /// [`backend_flags`].
    pub flags: u8,
    /// Counts how often this index was freed: a flow that remembers another value is stale.
    pub generation: u32,
    /// Index of the Service port.
    pub service: u32,
    /// Zero: elements of a memory-mapped array are multiples of 8 bytes.
    pub pad: u32,
}

/// A client of a Service port with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AffinityKey {
    /// The client's own address, before any translation (rule 57).
    pub client: Address,
    /// Index of the Service port.
    pub service: u32,
}

/// The backend that a client stays with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// Index of the backend.
    pub backend: u32,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// Tick of the client's last new flow.
    pub last_used: u32,
}

/// An admitted source range of a Service port: the data of a longest-prefix key, whose length counts the 32 bits of the
/// Service port, and for IPv4 the 96 bits of the v4-mapped prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceRange {
    /// Index of the Service port.
    pub service: u32,
    /// First address of the range.
    pub address: Address,
}

impl SourceRange {
    /// Length in bits of a key that names one address.
    pub const FULL_LEN: u32 = 32 + 128;
}

/// A key of the map of source ranges, as `struct bpf_lpm_trie_key` of the kernel's UAPI wants it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceRangeKey {
    /// Bits of `range` that count.
    pub prefix_len: u32,
    /// What they are compared with.
    pub range: SourceRange,
}

impl SourceRangeKey {
    /// The range `address/prefix_len` of a Service port, with the prefix as people write it for the address's family.
    #[must_use]
    pub const fn new(service: u32, address: Address, prefix_len: u8) -> Self {
        let before = if address.is_v4() { 32 + 96 } else { 32 };
        Self { prefix_len: before + prefix_len as u32, range: SourceRange { service, address } }
    }
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<Frontend>() == 28);
const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<Affinity>() == 12);
const _: () = assert!(size_of::<SourceRange>() == 20);
const _: () = assert!(size_of::<SourceRangeKey>() == 24);
const _: () = assert!(size_of::<Backend>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_tells_keys_apart_and_leaves_flags_as_they_are() {
        let address = |last: u8| Address::from_v4_be(u32::from_ne_bytes([10, 96, 0, last]));
        let key = FrontendKey::new(address(1), 80_u16.to_be(), 6);
        let others = [
            FrontendKey::new(address(2), 80_u16.to_be(), 6),
            FrontendKey::new(address(1), 81_u16.to_be(), 6),
            FrontendKey::new(address(1), 80_u16.to_be(), 17),
            FrontendKey::node_port(true, 80_u16.to_be(), 6),
            FrontendKey::any_port(address(1)),
        ];
        assert!(others.iter().all(|other| other.tag() != key.tag()));
        let frontend =
            Frontend { flags: frontend_flags::EXTERNAL_PASS | frontend_flags::INTERNAL_DROP, ..Frontend::default() };
        let tagged = frontend.tagged(&key);
        assert_eq!((tagged.flags >> frontend_flags::TAG_SHIFT, tagged.untagged()), (key.tag().into(), frontend));
        assert_eq!(tagged.tagged(&others[0]), frontend.tagged(&others[0]));
    }
}
