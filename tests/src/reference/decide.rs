// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path: what a packet of no flow gets.

use std::{
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    address::{Family, V4, V6},
    flow::{
        protocol,
        table::{class_of_device, class_of_source},
        tcp_flags,
    },
    verdict::Reason,
};
use siphasher::sip::SipHasher13;

use super::{
    affinity::Affinities,
    bytes::octets,
    flow::{Entry, Flows, Holder, Now, Rank, Tuple, Urge},
    life::first_state,
    packet::Segment,
    route::Way,
    setup::{Backend, Frontend, Place, Policy, Setup, Version},
    verdict::{Arrival, Door, End},
};

/// Source ports that are tried in a row after the first one, and rows that are tried for as long as none can be had.
const PROBES: u32 = 16;
const ROWS: u32 = 8;
/// From one to the next: 2^32 divided by the golden ratio.
const PROBE_STEP: u32 = 0x9e37_79b9;

/// A packet of no flow.
pub(super) struct Question<'a> {
    pub segment: &'a Segment,
    pub arrival: &'a Arrival,
    pub now: Now,
}

/// The answer.
pub(super) struct Decision {
    /// The backend, if it came so far.
    pub backend: Option<u32>,
    /// The original direction's entry, and what sort of flow must yield its source port.
    pub result: Result<(Entry, Option<Rank>), End>,
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

/// Whether a packet of no flow answers what the node has sent itself: a SYN-ACK opens nothing, and what is for one of its sockets is
/// not for a Service.
pub(super) fn answers_node(setup: &Setup, segment: &Segment) -> bool {
    let is_answer = segment.signs.has(tcp_flags::SYN) && segment.signs.has(tcp_flags::ACK);
    let may_open = segment.signs.is_opening();
    segment.key.protocol == protocol::TCP && is_answer || !may_open && setup.sockets.contains(&segment.key)
}

/// Whether the client is a pod of the cluster: one of this node, or one of another by its address.
pub(super) fn is_internal(setup: &Setup, arrival: &Arrival, client: IpAddr) -> bool {
    let cidr = setup.cluster_cidrs.get(&Version::of(client));
    is_inside(setup, arrival) || cidr.is_some_and(|cidr| cidr.contains(client))
}

/// Whether something new may come in by a device: what comes by a pod's, or by an uplink to whose Ethernet address it is sent; and
/// whatever has come to the net.
pub(super) fn comes_in(setup: &Setup, arrival: &Arrival) -> bool {
    let &Arrival { door, ifindex, ref frame, .. } = arrival;
    let is_for_device = || setup.devices.get(&ifindex).is_some_and(|ethernet| frame.starts_with(ethernet));
    door == Door::Net || setup.is_pods(ifindex) || setup.is_uplink(ifindex) && is_for_device()
}

/// The device behind which the client is; 0 where it is this node.
const fn device_of(arrival: &Arrival) -> u32 {
    if matches!(arrival.door, Door::Net) { arrival.arrived_by } else { arrival.ifindex }
}

/// Whether the client is on this node: behind a pod's device, or, at the net, wherever no uplink leads.
fn is_inside(setup: &Setup, arrival: &Arrival) -> bool {
    let ifindex = device_of(arrival);
    if arrival.door == Door::Net { !setup.is_uplink(ifindex) } else { setup.is_pods(ifindex) }
}

/// What a pod sends to a backend itself begins a flow of its own only where a Service's flow, which lives, has the tuple of its reply: by
/// another source port.
pub(super) fn decide_direct(
    setup: &Setup,
    flows: &Flows,
    question: &Question<'_>,
) -> Result<(Entry, Option<Rank>), End> {
    let Segment { key, signs, .. } = *question.segment;
    if key.protocol == protocol::TCP && !signs.is_opening() {
        return Err(End::NotOurs);
    }
    match flows.holder(key.reversed(), key, setup, question.now) {
        Holder::Other(urge) if urge.rank != Rank::Over => {}
        _ => return Err(End::NotOurs),
    }
    let nobody = Backend::free(setup.backend(0).map_or(0, |backend| backend.generation));
    let mut entry = begin(setup, &Frontend::default(), (0, &nobody), key, question);
    let hash = flow_hash(setup.seed, key);
    let yields = claim_port(setup, flows, &mut entry, question, hash).map_err(|_| End::NotOurs)?;
    Ok((entry, yields))
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
        let mut entry = begin(setup, frontend, (index, chosen), to, question);
        entry = choose_source(setup, entry, chosen, question)?;
        let hash = flow_hash(setup.seed, question.segment.key);
        let yields = claim_port(setup, flows, &mut entry, question, hash)?;
        Ok((entry, yields))
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
    let scope = usize::from(!is_internal(setup, question.arrival, client));
    let slots = &frontend.tables[scope];
    if slots.is_empty() {
        return Err(match frontend.policies[scope] {
            Policy::Pass => End::NotOurs,
            Policy::Drop => End::Drop(Reason::NoLocalEndpoints),
            Policy::Reject => End::Reject(Reason::NoEndpoints),
        });
    }
    if let Some(index) = affinities.find(setup, frontend, frontend.lists[scope], client, question.now.tick) {
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
fn begin(
    setup: &Setup,
    frontend: &Frontend,
    (index, backend): (u32, &Backend),
    to: Tuple,
    question: &Question<'_>,
) -> Entry {
    let Segment { key, signs, .. } = question.segment;
    let is_tcp = to.protocol == protocol::TCP;
    Entry {
        to,
        backend: index,
        generation: backend.generation,
        next_hop: None,
        class: class_of(setup, question.arrival, key.src.ip()),
        born: question.now.jiffy,
        last_seen: question.now.tick,
        peer_seen: question.now.tick,
        sequence: if is_tcp { signs.sequence } else { 0 },
        state: first_state(to.protocol, signs.flags),
        is_reply: false,
        is_snat: false,
        is_nets: false,
        resets: frontend.resets && is_tcp,
        is_answered: false,
        is_picked_up: to.protocol != protocol::UDP && !signs.is_opening(),
    }
}

/// Whose share of the table a flow takes: that of a pod's device, or of a network outside. A hash, on which both sides agree.
fn class_of(setup: &Setup, arrival: &Arrival, client: IpAddr) -> u8 {
    match client {
        _ if is_inside(setup, arrival) => class_of_device(device_of(arrival)),
        IpAddr::V4(_) => class_of_source::<V4>(&V4::narrow(&client.into())),
        IpAddr::V6(v6) => class_of_source::<V6>(&V6::narrow(&v6.into())),
    }
}

/// Translates the source where the reply would not come back otherwise. Where all sources are to be translated, those of other
/// clients from outside are as well, unless there is no way to the backend but the local stack.
fn choose_source(setup: &Setup, entry: Entry, backend: &Backend, question: &Question<'_>) -> Result<Entry, End> {
    let (door, is_inside) = (question.arrival.door, is_inside(setup, question.arrival));
    let is_hairpin = entry.to.dst.ip() == question.segment.key.src.ip();
    if door == Door::Net {
        let begins_here = question.arrival.arrived_by == 0;
        return choose_source_at_net(setup, entry, is_hairpin || backend.is_local, begins_here);
    }
    let is_elsewhere = !is_inside && !backend.is_local;
    if is_hairpin || is_elsewhere {
        let is_own = !is_hairpin && setup.filters_in(entry.to.dst.ip());
        let translated = translate_source(setup, entry, door);
        if is_own { Ok(translated.unwrap_or(entry)) } else { translated }
    } else if setup.masquerades_all && !is_inside {
        Ok(translate_source(setup, entry, door).unwrap_or(entry))
    } else {
        Ok(entry)
    }
}

/// At the net the client keeps its address where the reply will come by a door outside, which sends it back to the net; but this node
/// itself takes the address that it would have without a Service, and loopback and link-local addresses mean nothing there (nor do
/// multicast ones, as sources). All others get the net's source, to which replies are routed.
fn choose_source_at_net(setup: &Setup, mut entry: Entry, is_here: bool, begins_here: bool) -> Result<Entry, End> {
    entry.is_nets = true;
    let client = entry.to.src.ip();
    let way = match setup.way_to(entry.to.dst.ip()) {
        Way::Known { ifindex, .. } | Way::Unresolved { ifindex } => Some(ifindex),
        Way::Nowhere => None,
    };
    if !is_here && way.is_some_and(|ifindex| setup.has_door_outside(ifindex)) {
        entry.is_snat = true;
        return if is_unroutable(client) || begins_here {
            translate_source(setup, entry, Door::Net)
        } else {
            Ok(entry)
        };
    }
    let sources = setup.net.as_ref().map(|net| &net.sources);
    let source = sources.and_then(|sources| sources.get(&Version::of(client)));
    entry.to.src.set_ip(*source.ok_or(End::Drop(Reason::NoSourceAddress))?);
    Ok(entry)
}

/// Whether no router forwards what comes from there.
fn is_unroutable(source: IpAddr) -> bool {
    let is_link_local = match source {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_link_local || source.is_loopback() || source.is_multicast()
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
    let ifindex = look_up(setup, &mut entry, door == Door::Xdp)?;
    let version = Version::of(entry.to.src.ip());
    let device = setup.interfaces.get(&ifindex);
    let address = device.and_then(|device| device.addresses.get(&version)).or_else(|| setup.node.get(&version));
    entry.to.src.set_ip(*address.ok_or(End::Drop(Reason::NoSourceAddress))?);
    Ok(entry)
}

/// Finds the device that leads where an entry's packets go, and the next hop, if the neighbour there is known.
pub(super) fn look_up(setup: &Setup, entry: &mut Entry, is_xdp: bool) -> Result<u32, End> {
    let destination = entry.to.dst.ip();
    entry.next_hop = setup.next_hop_to(destination);
    match setup.way_to(destination) {
        Way::Known { ifindex, .. } | Way::Unresolved { ifindex } => Ok(ifindex),
        Way::Nowhere if is_xdp => Err(End::LeaveToTc),
        Way::Nowhere => Err(End::Drop(Reason::NoRoute)),
    }
}

/// Sees to it that the reply's tuple is this flow's own: by the client's port where the client's address is kept, or the packet is at the
/// net, and nobody is in the way, else by one of the source ports. A flow that begins takes the first one that is free; a segment in mid-connection
/// looks for the reply's entry of its own connection first. Gives the rank of the flow that must yield its port, if one must.
fn claim_port(
    setup: &Setup,
    flows: &Flows,
    entry: &mut Entry,
    question: &Question<'_>,
    hash: u64,
) -> Result<Option<Rank>, End> {
    let Segment { key, signs, .. } = *question.segment;
    let holder = |entry: &Entry| flows.holder(entry.to.reversed(), key, setup, question.now);
    let begins = key.protocol == protocol::UDP || signs.is_opening();
    let (mut free, mut first_to_yield, mut can_be_had) = (None, None::<(Urge, u16)>, 0);
    // A segment of a connection that has a port in a later row must not stop where few ports have become free since.
    let enough = if begins { 1 } else { PROBES / 2 };
    let own = (!entry.is_snat || entry.is_nets).then_some(key.src.port());
    let probes =
        (0..=PROBES * ROWS).map(|probe| setup.source_port((hash as u32).wrapping_add(probe.wrapping_mul(PROBE_STEP))));
    let probes = own.into_iter().map(|port| (0, port)).chain((0..).zip(probes));
    for (number, port) in probes {
        if number % PROBES == 1 && number > 1 && can_be_had >= enough {
            break;
        }
        entry.to.src.set_port(port);
        let holder = holder(entry);
        can_be_had += match holder {
            Holder::Nobody => 1,
            Holder::Other(urge) => u32::from(urge.rank.yields()),
            Holder::Own => 0,
        };
        match holder {
            Holder::Own => return Ok(None),
            Holder::Nobody if begins => return Ok(None),
            Holder::Nobody => free = free.or(Some(port)),
            Holder::Other(urge) if first_to_yield.is_none_or(|(most, _)| urge > most) => {
                first_to_yield = Some((urge, port));
            }
            Holder::Other(_) => {}
        }
    }
    if let Some(port) = free {
        entry.to.src.set_port(port);
        return Ok(None);
    }
    match first_to_yield {
        Some((urge, port)) if urge.rank.yields() => {
            entry.to.src.set_port(port);
            Ok(Some(urge.rank))
        }
        _ => Err(End::Drop(Reason::NoSourcePort)),
    }
}
