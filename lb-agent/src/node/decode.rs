// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the kernel's route netlink messages to [`Change`]s. Pure.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};

use super::state::{Change, Link, LocalAddress, Neighbour};

/// What a message reports; none where it is nothing of interest.
#[must_use]
pub fn decode(message: RouteNetlinkMessage) -> Option<Change> {
    match message {
        // With a family these speak of a bridge's port, not of the device: one that leaves its bridge is still there.
        RouteNetlinkMessage::NewLink(link) if is_device(&link) => {
            Some(Change::Link { ifindex: link.header.index, link: decode_link(link) })
        }
        RouteNetlinkMessage::DelLink(link) if is_device(&link) => Some(Change::LinkGone { ifindex: link.header.index }),
        RouteNetlinkMessage::NewAddress(message) => decode_address(&message),
        RouteNetlinkMessage::DelAddress(message) => {
            own_address(&message).map(|ip| Change::AddressGone { ifindex: message.header.index, ip })
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            Some(Change::Routes { may_be_default: is_default(&route) })
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Some(Change::Rules),
        RouteNetlinkMessage::DelQueueDiscipline(_) | RouteNetlinkMessage::DelTrafficFilter(_) => {
            Some(Change::FiltersGone)
        }
        RouteNetlinkMessage::NewNeighbour(neighbour) => decode_neighbour(&neighbour, true),
        RouteNetlinkMessage::DelNeighbour(neighbour) => decode_neighbour(&neighbour, false),
        _ => None,
    }
}

fn is_device(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

fn decode_link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_loopback: flags.contains(LinkFlags::Loopback),
        is_up: flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(ifindex) => link.controller = ifindex,
            LinkAttribute::Link(ifindex) => link.lower = ifindex,
            LinkAttribute::LinkNetNsId(_) => link.is_peer_elsewhere = true,
            LinkAttribute::Address(address) => link.mac = address.try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(kind).unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn kind(info: &LinkInfo) -> Option<String> {
    if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None }
}

/// The address itself: on point-to-point devices the attribute `Address` is the other end's.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn decode_address(message: &AddressMessage) -> Option<Change> {
    let ip = own_address(message)?;
    let ifindex = message.header.index;
    let flags = message
        .attributes
        .iter()
        .find_map(|attribute| if let AddressAttribute::Flags(flags) = attribute { Some(*flags) } else { None })
        .unwrap_or(AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    if flags.contains(AddressFlags::Dadfailed) {
        return Some(Change::AddressGone { ifindex, ip });
    }
    let is_alone = u32::from(message.header.prefix_len) == if ip.is_ipv4() { 32 } else { 128 };
    let is_secondary = flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated) || is_alone;
    let is_global = message.header.scope == AddressScope::Universe;
    Some(Change::Address { ifindex, address: LocalAddress { ip, is_global, is_secondary } })
}

/// Whether it is a default route of the main table: those of others are for some packets only.
#[must_use]
pub fn is_default(message: &RouteMessage) -> bool {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    message.header.destination_prefix_length == 0
        && message.header.kind == RouteType::Unicast
        && table.unwrap_or(message.header.table.into()) == u32::from(RouteHeader::RT_TABLE_MAIN)
        && matches!(message.header.address_family, AddressFamily::Inet | AddressFamily::Inet6)
}

/// Whether a routing rule asks a packet for more than its destination, and its mark: what passes our doors has none yet.
#[must_use]
pub fn is_policy(rule: &RuleMessage) -> bool {
    let asks = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Iifname(_)
        | RuleAttribute::SourcePortRange(_)
        | RuleAttribute::DestinationPortRange(_)
        | RuleAttribute::IpProtocol(_) => true,
        RuleAttribute::L3MDev(is_by_device) => *is_by_device,
        _ => false,
    };
    rule.header.src_len != 0 || rule.header.tos != 0 || rule.attributes.iter().any(asks)
}

/// By which devices a route leads, and the next-hop object that says so in their place.
#[must_use]
pub fn ways(message: &RouteMessage) -> (Vec<u32>, Option<u32>) {
    let (mut ifindexes, mut object) = (Vec::new(), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => ifindexes.push(*ifindex),
            RouteAttribute::MultiPath(hops) => ifindexes.extend(hops.iter().map(|hop| hop.interface_index)),
            RouteAttribute::NhId(id) => object = Some(*id),
            _ => {}
        }
    }
    (ifindexes, object)
}

fn decode_neighbour(message: &NeighbourMessage, is_there: bool) -> Option<Change> {
    let mut ip = None;
    let mut mac = None;
    let is_fixed = matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    let mut is_learned = !is_fixed && !message.header.flags.contains(NeighbourFlags::ExtLearned);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => is_learned &= !flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    // Entries of a bridge's forwarding database come on the same group, and have no IP address.
    let ip = ip?;
    // A failed entry is reported without its Ethernet address.
    let neighbour = mac.filter(|_| is_there).map(|mac| Neighbour { mac, is_learned });
    Some(Change::Neighbour { ifindex: message.header.ifindex, ip, neighbour })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::{RouteMessageBuilder, packet_route::link::InfoKind};

    use super::*;
    use crate::node::state::VETH;

    fn link_message(family: AddressFamily) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = family;
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("veth7".into()),
            LinkAttribute::Mtu(1450),
            LinkAttribute::Controller(5),
            LinkAttribute::Link(8),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        message
    }

    #[test]
    fn a_veth_is_known_as_such() {
        let link = Link {
            name: "veth7".into(),
            kind: "veth".into(),
            mac: [2, 0, 0, 0, 0, 7],
            is_ethernet: true,
            is_loopback: false,
            is_up: true,
            mtu: 1450,
            controller: 5,
            lower: 8,
            is_peer_elsewhere: true,
        };
        assert_eq!(link.kind, VETH);
        let message = RouteNetlinkMessage::NewLink(link_message(AddressFamily::Unspec));
        assert_eq!(decode(message), Some(Change::Link { ifindex: 7, link }));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_still_there() {
        assert_eq!(decode(RouteNetlinkMessage::DelLink(link_message(AddressFamily::Bridge))), None);
        let gone = decode(RouteNetlinkMessage::DelLink(link_message(AddressFamily::Unspec)));
        assert_eq!(gone, Some(Change::LinkGone { ifindex: 7 }));
    }

    #[test]
    fn a_default_route_of_the_main_table_is_known_as_such() {
        let routes = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(3);
        for (route, expected) in [
            (routes().build(), true),
            (routes().table_id(100).build(), false),
            (routes().table_id(1000).build(), false),
            (routes().destination_prefix(Ipv4Addr::new(10, 0, 0, 0), 8).build(), false),
        ] {
            assert_eq!(is_default(&route), expected, "{route:?}");
            assert_eq!(ways(&route), (vec![3], None));
            let expected = Some(Change::Routes { may_be_default: expected });
            assert_eq!(decode(RouteNetlinkMessage::NewRoute(route.clone())), expected);
            assert_eq!(decode(RouteNetlinkMessage::DelRoute(route)), expected);
        }
    }

    #[test]
    fn a_neighbour_that_failed_is_unknown() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        let ip = Ipv4Addr::new(192, 0, 2, 9);
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(ip))];
        let expected = Change::Neighbour { ifindex: 3, ip: ip.into(), neighbour: None };
        assert_eq!(decode(RouteNetlinkMessage::NewNeighbour(message.clone())), Some(expected.clone()));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2; 6]));
        assert_eq!(decode(RouteNetlinkMessage::DelNeighbour(message)), Some(expected));
    }

    #[test]
    fn a_neighbour_that_somebody_has_fixed_or_keeps_true_is_not_ours_to_ask_for() {
        let learned = |change: &dyn Fn(&mut NeighbourMessage)| {
            let mut message = NeighbourMessage::default();
            message.header.state = NeighbourState::Stale;
            let ip = NeighbourAddress::Inet(Ipv4Addr::new(192, 0, 2, 9));
            message.attributes =
                vec![NeighbourAttribute::Destination(ip), NeighbourAttribute::LinkLayerAddress(vec![2; 6])];
            change(&mut message);
            match decode(RouteNetlinkMessage::NewNeighbour(message)) {
                Some(Change::Neighbour { neighbour: Some(neighbour), .. }) => neighbour.is_learned,
                other => panic!("{other:?}"),
            }
        };
        assert!(learned(&|_| {}));
        assert!(!learned(&|message| message.header.state = NeighbourState::Permanent));
        assert!(!learned(&|message| message.header.state = NeighbourState::Noarp));
        assert!(!learned(&|message| message.header.flags = NeighbourFlags::ExtLearned));
        let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        assert!(!learned(&|message| message.attributes.push(managed.clone())));
    }
}
