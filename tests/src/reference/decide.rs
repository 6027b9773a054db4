// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path: what a packet of no flow gets.

use std::{
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use lb_common::{flow::protocol, verdict::Reason};
use siphasher::sip::SipHasher13;

use super::{
    affinity::Affinities,
    bytes::octets,
    flow::{Age, Entry, Flows, NextHop, Tuple, Vacancy, first_state},
    packet::Segment,
    route::Way,
    setup::{Backend, Frontend, Place, Policy, Setup, Version},
    verdict::{Door, End},
};

/// Source ports that are tried.
const PROBES: u32 = 16;
/// Those of them that pass over flows without an answer.
const PATIENT_PROBES: u32 = 8;
/// From one to the next: 2^32 divided by the golden ratio.
const PROBE_STEP: u32 = 0x9e37_79b9;

/// A packet of no flow.
pub(super) struct Question<'a> {
    pub segment: &'a Segment,
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

/// The Service's own address, or a NodePort on one of the node's. Other ports of a ClusterIP are refused (rule 44).
pub(super) fn find_frontend(setup: &Setup, key: Tuple) -> Result<&Frontend, End> {
    let find = |place| setup.frontends.get(&(place, key.dst.port(), key.protocol));
    let address = key.dst.ip();
    if let Some(frontend) = find(Place::Address(address)) {
        Ok(frontend)
    } else if setup.node_port_addresses.contains(&address) {
        find(Place::Node(Version::of(address))).ok_or(End::NotOurs)
    } else if setup.guarded.contains(&address) {
        Err(End::Reject(Reason::UndefinedPort))
    } else {
        Err(End::NotOurs)
    }
}

/// Whether the client is a pod of the cluster: one of this node, or one of another by its address.
pub(super) fn is_internal(setup: &Setup, ifindex: u32, client: IpAddr) -> bool {
    let cidr = setup.cluster_cidrs.get(&Version::of(client));
    is_pod_of_ours(setup, ifindex) || cidr.is_some_and(|cidr| cidr.contains(client))
}

/// Whether the client is behind a pod's device.
fn is_pod_of_ours(setup: &Setup, ifindex: u32) -> bool {
    setup.interfaces.get(&ifindex).is_some_and(|interface| interface.is_pod)
}

/// Chooses backend and source.
pub(super) fn decide(
    setup: &Setup,
    (flows, affinities): (&Flows, &Affinities),
    frontend: &Frontend,
    question: &Question<'_>,
) -> Decision {
    let mut backend = None;
    let result = choose_backend(setup, affinities, frontend, question).and_then(|index| {
        let (chosen, to) = find_backend(setup, index, question.segment.key)?;
        backend = Some(index);
        let mut entry = begin(frontend, (index, chosen), to, question);
        entry = choose_source(setup, entry, chosen, question)?;
        let hash = flow_hash(setup.seed, question.segment.key);
        claim_port(setup, flows, &mut entry, question, hash)?;
        Ok(entry)
    });
    Decision { backend, result }
}

/// The index that the client is used to, or that of its slot in the table.
fn choose_backend(
    setup: &Setup,
    affinities: &Affinities,
    frontend: &Frontend,
    question: &Question<'_>,
) -> Result<u32, End> {
    let key = question.segment.key;
    let client = key.src.ip();
    let ranges = setup.source_ranges.get(&frontend.service);
    if frontend.is_restricted && !ranges.is_some_and(|ranges| ranges.iter().any(|range| range.contains(client))) {
        return Err(End::Drop(Reason::SourceRange));
    }
    let scope = usize::from(!is_internal(setup, question.ifindex, client));
    let slots = &frontend.tables[scope];
    if slots.is_empty() {
        return Err(match frontend.policies[scope] {
            Policy::Pass => End::NotOurs,
            Policy::Drop => End::Drop(Reason::NoLocalEndpoints),
            Policy::Reject => End::Reject(Reason::NoEndpoints),
        });
    }
    if let Some(index) = affinities.find(setup, frontend, frontend.lists[scope], client, question.now) {
        return Ok(index);
    }
    let hash = if frontend.affinity.is_some() { client_hash(setup.seed, client) } else { flow_hash(setup.seed, key) };
    let slot = ((hash >> 32) * slots.len() as u64) >> 32;
    Ok(slots[usize::try_from(slot).expect("below the number of slots")])
}

/// A backend in use, and the client's tuple sent to it.
fn find_backend(setup: &Setup, index: u32, key: Tuple) -> Result<(&Backend, Tuple), End> {
    let backend = setup.backend(index).ok_or(End::Drop(Reason::TableCorrupt))?;
    let (address, port) = backend.address.ok_or(End::Drop(Reason::TableCorrupt))?;
    Ok((backend, Tuple { dst: SocketAddr::new(address, port), ..key }))
}

/// The original direction's entry, with the client's own source.
fn begin(frontend: &Frontend, (index, backend): (u32, &Backend), to: Tuple, question: &Question<'_>) -> Entry {
    Entry {
        to,
        backend: index,
        generation: backend.generation,
        next_hop: NextHop::default(),
        last_seen: question.now,
        state: first_state(to.protocol, question.segment.flags),
        is_reply: false,
        is_snat: false,
        resets: frontend.resets && to.protocol == protocol::TCP,
        age: Age::first(),
    }
}

/// Translates the source where the reply would not come back otherwise. Where all sources are to be translated, others are
/// as well, unless there is no way to the backend but the local stack.
fn choose_source(setup: &Setup, entry: Entry, backend: &Backend, question: &Question<'_>) -> Result<Entry, End> {
    let is_hairpin = entry.to.dst.ip() == question.segment.key.src.ip();
    let is_elsewhere = !is_pod_of_ours(setup, question.ifindex) && !backend.is_local;
    if is_hairpin || is_elsewhere {
        let is_own = !is_hairpin && setup.filters_in(entry.to.dst.ip());
        let translated = translate_source(setup, entry, question.door);
        if is_own { Ok(translated.unwrap_or(entry)) } else { translated }
    } else if setup.masquerades_all {
        Ok(translate_source(setup, entry, question.door).unwrap_or(entry))
    } else {
        Ok(entry)
    }
}

/// SipHash-1-3 of the tuple as it stands in a packet, ports after addresses, then the protocol and zeroes to 8 bytes.
fn flow_hash(seed: [u64; 2], key: Tuple) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
    for end in [key.src, key.dst] {
        hasher.write(&octets(end.ip()));
    }
    for end in [key.src, key.dst] {
        hasher.write(&end.port().to_be_bytes());
    }
    hasher.write(&[key.protocol, 0, 0, 0]);
    hasher.finish()
}

/// SipHash-1-3 of an address alone, in sixteen bytes; IPv4 stands in the first four, and zeroes follow.
fn client_hash(seed: [u64; 2], client: IpAddr) -> u64 {
    let mut bytes = octets(client);
    bytes.resize(16, 0);
    let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
    hasher.write(&bytes);
    hasher.finish()
}

/// Takes the address of the device that leads to the backend, else the node's.
fn translate_source(setup: &Setup, mut entry: Entry, door: Door) -> Result<Entry, End> {
    entry.is_snat = true;
    look_up(setup, &mut entry, door == Door::Xdp)?;
    let version = Version::of(entry.to.src.ip());
    let device = setup.interfaces.get(&entry.next_hop.ifindex);
    let address = device.and_then(|device| device.addresses.get(&version)).or_else(|| setup.node.get(&version));
    entry.to.src.set_ip(*address.ok_or(End::Drop(Reason::NoSourceAddress))?);
    Ok(entry)
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
    let key = question.segment.key;
    let vacancy = |entry: &Entry| flows.vacancy(entry.to.reversed(), key, setup, question.now);
    if !entry.is_snat && vacancy(entry) == Vacancy::Free {
        return Ok(());
    }
    let mut ending = None;
    let (first, last) = (u64::from(*setup.source_ports.start()), u64::from(*setup.source_ports.end()));
    for probe in 0..PROBES {
        let point = (hash as u32).wrapping_add(probe.wrapping_mul(PROBE_STEP));
        let port = first + ((u64::from(point) * (last - first + 1)) >> 32);
        let port = u16::try_from(port).expect("a port of the range");
        entry.to.src.set_port(port);
        match vacancy(entry) {
            Vacancy::Free => return Ok(()),
            Vacancy::Unanswered if probe >= PATIENT_PROBES && ending.is_none() => return Ok(()),
            Vacancy::Ending => ending = Some(port),
            Vacancy::Unanswered | Vacancy::Taken => {}
        }
    }
    entry.to.src.set_port(ending.ok_or(End::Drop(Reason::NoSourcePort))?);
    Ok(())
}
