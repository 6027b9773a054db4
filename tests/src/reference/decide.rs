// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path: what a packet of no flow gets.

use std::{
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use lb_common::verdict::Reason;
use siphasher::sip::SipHasher13;

use super::{
    flow::{Entry, Flows, NextHop, Tuple, first_state},
    frame::Packet,
    route::Way,
    setup::{Frontend, Place, Policy, Setup, Version},
    verdict::{Door, End},
};

/// Source ports that are tried.
const PROBES: u32 = 16;
/// From one to the next: 2^32 divided by the golden ratio.
const PROBE_STEP: u32 = 0x9e37_79b9;

/// A packet of no flow.
pub(super) struct Question<'a> {
    pub packet: &'a Packet,
    pub door: Door,
    pub ifindex: u32,
    pub now: u32,
}

/// The answer.
pub(super) struct Decision {
    /// The backend, if it came so far.
    pub backend: Option<u32>,
    /// The original direction's entry.
    pub result: Result<Entry, End>,
}

/// The Service's own address, or a NodePort on one of the node's.
pub(super) fn find_frontend(setup: &Setup, key: Tuple) -> Option<&Frontend> {
    let find = |place| setup.frontends.get(&(place, key.dst.port(), key.protocol));
    let address = key.dst.ip();
    find(Place::Address(address)).or_else(|| {
        let is_node_port = setup.node_port_addresses.contains(&address);
        is_node_port.then(|| find(Place::Node(Version::of(address)))).flatten()
    })
}

/// Whether the client is behind a pod's device.
pub(super) fn is_internal(setup: &Setup, ifindex: u32) -> bool {
    setup.interfaces.get(&ifindex).is_some_and(|interface| interface.is_pod)
}

/// Chooses backend and source.
pub(super) fn decide(setup: &Setup, flows: &Flows, frontend: &Frontend, question: &Question<'_>) -> Decision {
    let mut backend = None;
    let result = choose_backend(setup, frontend, question).and_then(|(index, mut entry)| {
        if entry.is_snat {
            translate_source(setup, &mut entry, question.door)?;
        }
        backend = Some(index);
        let hash = flow_hash(setup.seed, question.packet.key);
        claim_port(setup, flows, &mut entry, question, hash)?;
        Ok(entry)
    });
    Decision { backend, result }
}

fn choose_backend(setup: &Setup, frontend: &Frontend, question: &Question<'_>) -> Result<(u32, Entry), End> {
    let Question { packet, .. } = question;
    let is_internal = is_internal(setup, question.ifindex);
    let scope = usize::from(!is_internal);
    let slots = &frontend.tables[scope];
    if slots.is_empty() {
        return Err(match (frontend.policies[scope], question.door) {
            (Policy::Drop, _) => End::Drop(Reason::NoLocalEndpoints),
            (Policy::Reject, _) => End::Reject,
        });
    }
    let hash = flow_hash(setup.seed, packet.key);
    let slot = ((hash >> 32) * slots.len() as u64) >> 32;
    let index = slots[usize::try_from(slot).expect("below the number of slots")];
    let backend = setup.backend(index).ok_or(End::Drop(Reason::TableCorrupt))?;
    let (address, port) = backend.address.ok_or(End::Drop(Reason::TableCorrupt))?;

    let is_hairpin = address == packet.key.src.ip();
    let is_elsewhere = !is_internal && !backend.is_local;
    let to = Tuple { dst: SocketAddr::new(address, port), ..packet.key };
    let entry = Entry {
        to,
        backend: index,
        generation: backend.generation,
        next_hop: NextHop::default(),
        last_seen: question.now,
        state: first_state(packet.key.protocol, packet.flags),
        is_reply: false,
        is_snat: is_hairpin || is_elsewhere,
    };
    Ok((index, entry))
}

/// SipHash-1-3 of the tuple as it stands in a packet, ports after addresses, then the protocol and zeroes to 8 bytes.
fn flow_hash(seed: [u64; 2], key: Tuple) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
    for end in [key.src, key.dst] {
        match end.ip() {
            IpAddr::V4(v4) => hasher.write(&v4.octets()),
            IpAddr::V6(v6) => hasher.write(&v6.octets()),
        }
    }
    for end in [key.src, key.dst] {
        hasher.write(&end.port().to_be_bytes());
    }
    hasher.write(&[key.protocol, 0, 0, 0]);
    hasher.finish()
}

/// Takes the address of the device that leads to the backend, else the node's.
fn translate_source(setup: &Setup, entry: &mut Entry, door: Door) -> Result<(), End> {
    look_up(setup, entry, door == Door::Xdp)?;
    let version = Version::of(entry.to.src.ip());
    let device = setup.interfaces.get(&entry.next_hop.ifindex);
    let address = device.and_then(|device| device.addresses.get(&version)).or_else(|| setup.node.get(&version));
    entry.to.src.set_ip(*address.ok_or(End::Drop(Reason::NoSourceAddress))?);
    Ok(())
}

/// Finds the next hop of an entry. One whose neighbour is not known keeps the old addresses, marked as unknown.
pub(super) fn look_up(setup: &Setup, entry: &mut Entry, is_xdp: bool) -> Result<(), End> {
    entry.next_hop.generation = 0;
    match setup.way_to(entry.to.dst.ip()) {
        Way::Known { ifindex, neighbour } => {
            let own = setup.devices[&ifindex];
            let addresses = [neighbour, own].concat().try_into().expect("twice six bytes");
            entry.next_hop = NextHop { ifindex, generation: setup.next_hop_generation, addresses };
            Ok(())
        }
        Way::Unresolved { ifindex } => {
            entry.next_hop.ifindex = ifindex;
            Ok(())
        }
        Way::Nowhere if is_xdp => Err(End::LeaveToTc),
        Way::Nowhere => Err(End::Drop(Reason::NoRoute)),
    }
}

/// Sees to it that the reply's tuple is this flow's own: the client's port where the client's address is kept and nobody
/// is in the way, else one of the reserved range.
fn claim_port(setup: &Setup, flows: &Flows, entry: &mut Entry, question: &Question<'_>, hash: u64) -> Result<(), End> {
    let key = question.packet.key;
    let is_free = |entry: &Entry| flows.is_free(entry.to.reversed(), key, setup, question.now);
    if !entry.is_snat && is_free(entry) {
        return Ok(());
    }
    let (first, last) = (u64::from(*setup.source_ports.start()), u64::from(*setup.source_ports.end()));
    for probe in 0..PROBES {
        let point = (hash as u32).wrapping_add(probe.wrapping_mul(PROBE_STEP));
        let port = first + ((u64::from(point) * (last - first + 1)) >> 32);
        entry.to.src.set_port(u16::try_from(port).expect("a port of the range"));
        if is_free(entry) {
            return Ok(());
        }
    }
    Err(End::Drop(Reason::NoSourcePort))
}
