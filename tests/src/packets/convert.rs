// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between the reference model's plain types and the layouts of the maps.

use std::{
    fmt,
    iter::Sum,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use anyhow::{Result, ensure};
use lb_common::{
    address::{Address, Family},
    config::{self, Cidr, Config, PortRange, config_flags, role},
    filter::{Concern, Filter},
    flow::{self, FlowKey, flow_flags, next_hop, protocol},
    fragment::{Fragment, FragmentKey},
    frontend::{self, FrontendKey, SourceRange, backend_flags, backend_state, frontend_flags},
};

use super::flows::TABLE_KEY;
use crate::reference::{
    Backend, Datagram, Entry, Frontend, List, Net, NextHop, Place, Policy, Ports, Prefix, Setup, Tuple, Version,
};

/// The element of the configuration map.
pub fn config_of(setup: &Setup) -> Config {
    Config {
        seed: setup.seed,
        table_key: TABLE_KEY,
        next_hop_generation: setup.next_hop_generation,
        source_ports: setup.source_ports.each_ref().map(|range| {
            range
                .as_ref()
                .map_or_else(PortRange::default, |range| PortRange { first: *range.start(), last: *range.end() })
        }),
        node_addresses: Version::BOTH.map(|version| optional(setup.node.get(&version))),
        timeouts: setup.timeouts,
        rejects_per_tick: setup.rejects_per_tick,
        cluster_cidrs: Version::BOTH
            .map(|version| setup.cluster_cidrs.get(&version).map_or_else(Cidr::default, cidr_of)),
        flags: if setup.masquerades_all { config_flags::MASQUERADE_ALL } else { 0 },
        net: setup.net.as_ref().map_or_else(config::Net::default, |net| net_of(setup, net)),
    }
}

/// The net's part of it.
fn net_of(setup: &Setup, net: &Net) -> config::Net {
    let own = setup.devices[&net.ifindex];
    let twice: [u8; 12] = [own, own].concat().try_into().expect("twice six bytes");
    let sources = Version::BOTH.map(|version| optional(net.sources.get(&version)));
    config::Net { ifindex: net.ifindex, macs: bytemuck::cast(twice), sources }
}

/// A prefix as mask and value.
fn cidr_of(prefix: &Prefix) -> Cidr {
    let mask = u128::MAX << (128 - mapped_len(prefix));
    let mask = Address::from_words_be(bytemuck::cast(mask.to_be_bytes()));
    Cidr { address: prefix.network.into(), mask }
}

/// The key of a source range: the length in bits, then the data ([`SourceRange`]).
pub fn source_range_of(service: u32, prefix: &Prefix) -> [u32; 6] {
    let range = SourceRange { service, address: prefix.network.into() };
    let [service, first, second, third, fourth]: [u32; 5] = bytemuck::cast(range);
    [u32::BITS + mapped_len(prefix), service, first, second, third, fourth]
}

/// Bits of a prefix in the form that holds either version.
fn mapped_len(prefix: &Prefix) -> u32 {
    u32::from(prefix.len) + if prefix.network.is_ipv4() { 96 } else { 0 }
}

/// The key of a frontend.
pub fn frontend_key_of(place: Place, port: u16, protocol: u8) -> FrontendKey {
    match place {
        Place::Address(address) => FrontendKey::new(address.into(), port.to_be(), protocol),
        Place::Node(version) => FrontendKey::node_port(version == Version::V4, port.to_be(), protocol),
    }
}

/// The flags of a frontend.
pub fn frontend_flags_of(frontend: &Frontend) -> u32 {
    let drops = frontend.policies.map(|policy| policy == Policy::Drop);
    let locals = frontend.lists.map(|list| list == List::Local);
    sum_of([
        (frontend_flags::INTERNAL_DROP, drops[0]),
        (frontend_flags::EXTERNAL_DROP, drops[1]),
        (frontend_flags::INTERNAL_LOCAL, locals[0]),
        (frontend_flags::EXTERNAL_LOCAL, locals[1]),
        (frontend_flags::SOURCE_RANGES, frontend.is_restricted),
        (frontend_flags::RESET_ON_REMOVAL, frontend.resets),
        (frontend_flags::EXTERNAL_PASS, frontend.policies[1] == Policy::Pass),
    ])
}

/// The element of a backend index.
pub fn backend_of(backend: &Backend) -> frontend::Backend {
    let free = frontend::Backend { generation: backend.generation, ..frontend::Backend::default() };
    let Some((address, port)) = backend.address else { return free };
    frontend::Backend {
        address: address.into(),
        port_be: port.to_be(),
        state: backend_state::ACTIVE,
        flags: sum_of([
            (backend_flags::LOCAL, backend.is_local),
            (backend_flags::IN_CLUSTER, backend.is_listed[0]),
            (backend_flags::IN_LOCAL, backend.is_listed[1]),
        ]),
        service: backend.service,
        ..free
    }
}

/// The element of a device.
pub fn interface_of(setup: &Setup, index: u32) -> config::Interface {
    let interface = &setup.interfaces[&index];
    config::Interface {
        addresses: Version::BOTH.map(|version| optional(interface.addresses.get(&version))),
        mac: setup.devices[&index],
        role: sum_of([
            (role::POD, interface.is_pod),
            (role::UPLINK, !interface.is_pod && !interface.only_returns && !interface.is_nets),
            (role::RETURN, interface.only_returns),
            (role::NET, interface.is_nets),
            (role::XDP, interface.takes_xdp),
        ]),
        ..config::Interface::default()
    }
}

/// The sum of those bits that are set.
fn sum_of<T: Sum, const N: usize>(bits: [(T, bool); N]) -> T {
    bits.into_iter().filter(|(_, is_set)| *is_set).map(|(bit, _)| bit).sum()
}

/// The key of a flow entry.
pub fn flow_key_of<F: Family>(tuple: Tuple) -> FlowKey<F> {
    let [src, dst] = [tuple.src, tuple.dst].map(|end| F::narrow(&end.ip().into()));
    FlowKey::new(src, dst, tuple.src.port().to_be(), tuple.dst.port().to_be(), tuple.protocol)
}

/// A flow entry as the reference model has it, with its next hop. Checks what the model has not: both checksum differences, and that
/// nothing stands in the padding.
pub fn entry_of<F: Family + fmt::Debug>(entry: &flow::Entry<F>, next_hop: Option<NextHop>) -> Result<(Tuple, Entry)> {
    const KNOWN: u8 = flow_flags::REPLY
        | flow_flags::SNAT
        | flow_flags::RESET
        | flow_flags::ANSWERED
        | flow_flags::PICKED_UP
        | flow_flags::NET
        | flow_flags::LIVE;
    let tuple = |src, dst, sport: u16, dport: u16| Tuple {
        src: SocketAddr::new(ip_of::<F>(src), u16::from_be(sport)),
        dst: SocketAddr::new(ip_of::<F>(dst), u16::from_be(dport)),
        protocol: entry.protocol,
    };
    let from = tuple(&entry.src, &entry.dst, entry.sport_be, entry.dport_be);
    let to = tuple(&entry.new_src, &entry.new_dst, entry.new_sport_be, entry.new_dport_be);
    let is_right = is_difference(entry.address_delta, from, to, addresses_sum)
        && is_difference(entry.port_delta, from, to, |tuple| u64::from(tuple.src.port()) + u64::from(tuple.dst.port()));
    ensure!(is_right, "a wrong checksum difference: {entry:?}");
    let is_padded = bytemuck::bytes_of(&entry.pad).iter().all(|&byte| byte == 0);
    let (control, flags) = (entry.control, entry.flags());
    ensure!(is_padded && control.to_bits() >> 62 == 0 && flags & !KNOWN == 0, "something in the padding: {entry:?}");
    let has = |flag| flags & flag != 0;
    let converted = Entry {
        to,
        backend: entry.backend,
        generation: entry.generation,
        next_hop: None,
        class: entry.class,
        born: entry.born,
        last_seen: control.last_seen(),
        peer_seen: entry.peer_seen,
        sequence: entry.sequence,
        state: control.state(),
        is_reply: has(flow_flags::REPLY),
        is_snat: has(flow_flags::SNAT),
        is_nets: has(flow_flags::NET),
        resets: has(flow_flags::RESET),
        is_answered: has(flow_flags::ANSWERED),
        is_picked_up: has(flow_flags::PICKED_UP),
    };
    let next_hop = next_hop.filter(|_| converted.is_forwarded());
    Ok((from, Entry { next_hop, ..converted }))
}

/// Whether an element of the table of next hops is for a destination.
pub fn is_next_hop_for<F: Family>(next_hop: &next_hop::NextHop, destination: &F::Addr) -> bool {
    next_hop.dst == F::first_words(destination)
}

/// A next hop as the reference model has it.
pub fn next_hop_of(next_hop: &next_hop::NextHop) -> NextHop {
    let generation = next_hop::Stamp::from_bits(next_hop.stamp).generation();
    NextHop { ifindex: next_hop.ifindex, generation, addresses: bytemuck::cast(next_hop.macs) }
}

/// Adds to the filter what the agent would.
pub fn fill_filter(filter: &mut Filter, setup: &Setup) {
    for &address in &setup.ingress_filter {
        filter.add(Concern::Node(address.into()));
    }
    for &address in &setup.guarded {
        filter.add(Concern::ClusterIp(address.into()));
    }
    for &(place, port, protocol) in setup.frontends.keys() {
        match place {
            Place::Address(address) => filter.add(Concern::Frontend(address.into(), port.to_be(), protocol)),
            Place::Node(_) => filter.add(Concern::NodePort(port, protocol)),
        }
    }
    for &(client, protocol) in &setup.passing {
        filter.add(Concern::Frontend(client.ip().into(), client.port().to_be(), protocol));
    }
    for (&ifindex, _) in setup.interfaces.iter().filter(|(_, interface)| interface.is_pod) {
        filter.add(Concern::PodDevice(ifindex));
    }
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        for port in setup.source_ports.iter().flatten().flat_map(Clone::clone) {
            filter.add(Concern::NodePort(port, protocol));
        }
        for &(address, port) in &setup.egress_filter {
            filter.add(Concern::Backend(address.into(), port.to_be(), protocol));
        }
    }
}

/// The key of a fragmented datagram. An identification of IPv4 is the first half of the field.
pub fn fragment_key_of(datagram: Datagram) -> FragmentKey {
    let Datagram { src, dst, id, protocol } = datagram;
    let identification_be = if src.is_ipv4() { u32::from((id as u16).to_be()) } else { id.to_be() };
    FragmentKey { src: src.into(), dst: dst.into(), identification_be, protocol, pad: [0; 3] }
}

/// An element of the table of datagrams, as the reference model has it.
pub fn fragment_of((key, value): &(FragmentKey, Fragment)) -> Result<(Datagram, Ports)> {
    ensure!(key.pad == [0; 3], "something in the padding: {key:?}");
    let (src, dst): (IpAddr, IpAddr) = (key.src.into(), key.dst.into());
    let id = if src.is_ipv4() {
        u32::from(u16::from_be(key.identification_be as u16))
    } else {
        u32::from_be(key.identification_be)
    };
    let datagram = Datagram { src, dst, id, protocol: key.protocol };
    let Fragment { sport_be, dport_be, last_seen } = *value;
    Ok((datagram, Ports { src: u16::from_be(sport_be), dst: u16::from_be(dport_be), last_seen }))
}

/// An address of a packet. Of IPv6 it is always one, even where it looks like a mapped one of IPv4.
fn ip_of<F: Family>(addr: &F::Addr) -> IpAddr {
    let wide = F::widen(addr);
    if F::IS_V4 { wide.into() } else { Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(*wide.words_be())).into() }
}

/// Whether `delta` is what must be added to a sum over one tuple to have that over the other.
fn is_difference(delta: u16, from: Tuple, to: Tuple, sum: impl Fn(Tuple) -> u64) -> bool {
    (sum(from) + u64::from(u16::from_be(delta))) % 0xffff == sum(to) % 0xffff
}

/// The sum of both addresses' big-endian words.
fn addresses_sum(tuple: Tuple) -> u64 {
    let octets = [tuple.src, tuple.dst].map(|end| match end.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    octets.concat().chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum()
}

fn optional(address: Option<&IpAddr>) -> Address {
    address.map_or(Address::UNSPECIFIED, |&address| address.into())
}
