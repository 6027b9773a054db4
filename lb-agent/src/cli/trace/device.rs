// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device by which the packet shall arrive; or, at the net, leave.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use lb_common::{
    address::Address,
    config::{Interface, LOOPBACK, role},
    frontend::{backend_flags, backend_state},
};
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAttribute, RouteMessage},
};

use crate::{
    dataplane::{self, Pins, has_door},
    diff::Dump,
};

/// A device that the programs know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// [`role`].
    pub role: u16,
}

impl Device {
    fn new(ifindex: u32, interface: &Interface) -> Self {
        let name = dataplane::device_name(ifindex).unwrap_or_else(|| format!("index {ifindex}"));
        Self { ifindex, name, mac: interface.mac, role: interface.role }
    }
}

/// The device of a name.
pub fn named(name: &str, dump: &Dump) -> anyhow::Result<Device> {
    let ifindex = if_nametoindex(name).with_context(|| format!("--in-interface {name}: no such device here"))?;
    // One without a role can be asked about too: the answer is that nothing is decided there.
    Ok(Device::new(ifindex, &dump.interfaces.get(&ifindex).copied().unwrap_or_default()))
}

/// The device by which a client's packets to an address most likely arrive: see the help of `--in-interface`. `net` is the index of the
/// net's.
pub fn choose((client, to): (IpAddr, IpAddr), net: Option<u32>, dump: &Dump, pins: &Pins) -> anyhow::Result<Device> {
    let back = route_to(client).unwrap_or_default();
    let has_role = |ifindex: &u32| dump.interfaces.contains_key(ifindex);
    let at_net = net.filter(has_role).filter(|_| {
        // No agent knows of a pod's device that is there since the last one has ended.
        let may_be_pods = |ifindex: u32| dump.interfaces.get(&ifindex).is_none_or(|own| own.role & role::POD != 0);
        back.is_some_and(|ifindex| ifindex == LOOPBACK || may_be_pods(ifindex) && !has_door(pins, ifindex))
    });
    let at_net = at_net.map(|net| {
        let stays = back == Some(LOOPBACK) && route_to(to).is_ok_and(|way| way == Some(LOOPBACK));
        if stays { LOOPBACK } else { net }
    });
    match at_net.or_else(|| choose_from(client, back, dump)) {
        Some(ifindex) => Ok(Device::new(ifindex, &dump.interfaces.get(&ifindex).copied().unwrap_or_default())),
        None => bail!("no device has a role yet: is the agent running? Name a device in --in-interface"),
    }
}

fn choose_from(client: IpAddr, back: Option<u32>, dump: &Dump) -> Option<u32> {
    let with_role = |bit: u16| {
        let mut devices = dump.interfaces.iter().filter(move |(_, interface)| interface.role & bit != 0);
        devices.next().map(|(&ifindex, _)| ifindex)
    };
    let role_of = |ifindex: u32| dump.interfaces.get(&ifindex).map_or(0, |interface| interface.role);
    if let Some(ifindex) = back.filter(|&ifindex| role_of(ifindex) & (role::POD | role::UPLINK) != 0) {
        let is_uplink = dump.interfaces[&ifindex].role & role::UPLINK != 0;
        if !is_uplink || !is_local_backend(client, dump) {
            return Some(ifindex);
        }
    }
    // By one for replies alone the client does not come in.
    let is_inside = back.is_some_and(|ifindex| role_of(ifindex) & !role::NET == 0) || is_local_backend(client, dump);
    let (first, second) = if is_inside { (role::POD, role::UPLINK) } else { (role::UPLINK, role::POD) };
    with_role(first).or_else(|| with_role(second))
}

fn is_local_backend(client: IpAddr, dump: &Dump) -> bool {
    let address = Address::from(client);
    dump.backends.iter().any(|backend| {
        backend.address == address && backend.state != backend_state::FREE && backend.flags & backend_flags::LOCAL != 0
    })
}

/// The device that the kernel's routes name for an address.
fn route_to(client: IpAddr) -> anyhow::Result<Option<u32>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let request = match client {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let route: Option<RouteMessage> = handle.route().get(request).execute().try_next().await?;
        let oif = |route: RouteMessage| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(ifindex) => Some(*ifindex),
                _ => None,
            })
        };
        Ok(route.and_then(oif))
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use lb_common::frontend::Backend;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

    fn dump(interfaces: &[(u32, u16)], backend_flags: u8) -> Dump {
        let interface = |role| Interface { role, ..Interface::default() };
        Dump {
            interfaces: interfaces
                .iter()
                .map(|&(ifindex, role)| (ifindex, interface(role)))
                .collect::<BTreeMap<_, _>>(),
            backends: vec![Backend {
                address: CLIENT.into(),
                state: backend_state::ACTIVE,
                flags: backend_flags,
                ..Backend::default()
            }],
            ..Dump::default()
        }
    }

    #[test]
    fn the_way_back_is_the_way_in() {
        let devices = [(2, role::UPLINK), (5, role::POD), (6, role::POD)];
        assert_eq!(choose_from(CLIENT, Some(6), &dump(&devices, 0)), Some(6));
        assert_eq!(choose_from(CLIENT, Some(2), &dump(&devices, 0)), Some(2));
    }

    #[test]
    fn behind_a_bridge_any_pod_interface_will_do() {
        let devices = [(2, role::UPLINK), (5, role::POD), (6, role::POD)];
        assert_eq!(choose_from(CLIENT, Some(4), &dump(&devices, 0)), Some(5));
        assert_eq!(choose_from(CLIENT, None, &dump(&devices, backend_flags::LOCAL)), Some(5));
        assert_eq!(choose_from(CLIENT, Some(2), &dump(&devices, backend_flags::LOCAL)), Some(5));
    }

    #[test]
    fn pitfall_31_nobody_comes_in_by_a_device_for_replies() {
        let devices = [(2, role::UPLINK), (3, role::RETURN), (5, role::POD)];
        assert_eq!(choose_from(CLIENT, Some(3), &dump(&devices, 0)), Some(2));
        assert_eq!(choose_from(CLIENT, None, &dump(&[(3, role::RETURN)], 0)), None);
    }

    #[test]
    fn others_come_by_an_uplink() {
        let devices = [(2, role::UPLINK), (5, role::POD)];
        assert_eq!(choose_from(CLIENT, None, &dump(&devices, 0)), Some(2));
        assert_eq!(choose_from(CLIENT, None, &dump(&[(5, role::POD)], 0)), Some(5));
        assert_eq!(choose_from(CLIENT, None, &dump(&[(5, 0)], 0)), None);
    }
}
