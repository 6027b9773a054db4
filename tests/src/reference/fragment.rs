// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragmented datagrams: the ports of their first fragments, for the later ones, which have none.

use std::{collections::BTreeMap, net::IpAddr};

use super::flow::{Tuple, elapsed};

/// Ticks for which the ports of a first fragment are good.
const LIFETIME: u32 = 30;

/// What all fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// Where it comes from.
    pub src: IpAddr,
    /// Where it goes.
    pub dst: IpAddr,
    /// Identification: 16 bits of IPv4, 32 of IPv6.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
}

/// What only the first one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The sender's.
    pub src: u16,
    /// The receiver's.
    pub dst: u16,
    /// Tick of the first fragment.
    pub last_seen: u32,
}

/// The table of datagrams under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragments(pub BTreeMap<Datagram, Ports>);

impl Fragments {
    /// Notes the ports of a first fragment.
    pub(super) fn note(&mut self, key: Tuple, id: u32, now: u32) {
        let datagram = Datagram { src: key.src.ip(), dst: key.dst.ip(), id, protocol: key.protocol };
        self.0.insert(datagram, Ports { src: key.src.port(), dst: key.dst.port(), last_seen: now });
    }

    /// The tuple of a datagram whose first fragment was seen not too long ago.
    pub(super) fn find(&self, datagram: Datagram, now: u32) -> Option<Tuple> {
        let ports = self.0.get(&datagram)?;
        let Datagram { src, dst, protocol, .. } = datagram;
        let tuple = Tuple { src: (src, ports.src).into(), dst: (dst, ports.dst).into(), protocol };
        (elapsed(now, ports.last_seen) < LIFETIME).then_some(tuple)
    }
}
