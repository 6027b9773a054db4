// SPDX-License-Identifier: MIT OR Apache-2.0
//! Next-hop objects (`ip nexthop`), which routes name by a number: RTM_NEWNEXTHOP and its like, of the kernel's
//! `include/uapi/linux/nexthop.h`. Kernels since 5.3 have them.

use std::{collections::BTreeMap, io};

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer},
    sys::{AsyncSocketExt, TokioSocket},
};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;

/// Length of `struct nlmsghdr` and of `struct nhmsg`.
const HEADER_LEN: usize = 16;
const NHMSG_LEN: usize = 8;

/// What an object stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Its device; 0 for none.
    ifindex: u32,
    /// The objects of which it is a group.
    group: Vec<u32>,
}

/// Whether a datagram reports that one came, changed or went.
pub fn are_in(bytes: &[u8]) -> bool {
    split(bytes).any(|(kind, _)| matches!(kind, RTM_NEWNEXTHOP | RTM_DELNEXTHOP))
}

/// The devices of an object, or of those in its group (groups don't nest).
pub fn devices(id: u32, known: &BTreeMap<u32, Object>) -> Vec<u32> {
    let of = |id: &u32| known.get(id).map(|object| object.ifindex).filter(|ifindex| *ifindex != 0);
    let group = known.get(&id).map_or(&[][..], |object| &object.group);
    of(&id).into_iter().chain(group.iter().filter_map(of)).collect()
}

/// All that there are.
pub async fn list(socket: &TokioSocket) -> io::Result<BTreeMap<u32, Object>> {
    const SEQUENCE: u32 = 2;
    let len = (HEADER_LEN + NHMSG_LEN) as u32;
    let mut request = Vec::new();
    request.extend(len.to_ne_bytes());
    request.extend(RTM_GETNEXTHOP.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend(SEQUENCE.to_ne_bytes());
    request.resize(HEADER_LEN + NHMSG_LEN, 0);
    socket.send(&request).await?;
    let mut objects = BTreeMap::new();
    loop {
        let (bytes, _) = socket.recv_from_full().await?;
        for (kind, body) in split(&bytes) {
            match kind {
                NLMSG_DONE => return Ok(objects),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(libc::EIO, |bytes| -i32::from_ne_bytes(*bytes));
                    return Err(io::Error::from_raw_os_error(code));
                }
                RTM_NEWNEXTHOP => objects.extend(object(body)),
                _ => {}
            }
        }
    }
}

/// Type and body of each message of a datagram.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(bytes).ok()?;
        let (len, kind) = (buffer.length() as usize, buffer.message_type());
        let body = bytes.get(HEADER_LEN..len)?;
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
        Some((kind, body))
    })
}

fn object(body: &[u8]) -> Option<(u32, Object)> {
    let (mut id, mut object) = (None, Object::default());
    let mut rest = body.get(NHMSG_LEN..)?;
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let [a, b, c, d] = *head;
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = rest.get(4..len)?;
        let number = || value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        match kind {
            NHA_ID => id = number(),
            NHA_OIF => object.ifindex = number()?,
            // `struct nexthop_grp`, of which the number comes first.
            NHA_GROUP => {
                let ids = value.chunks_exact(8).filter_map(|member| member.first_chunk());
                object.group = ids.map(|bytes| u32::from_ne_bytes(*bytes)).collect();
            }
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((id?, object))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tokio::sync::mpsc;

    use super::*;
    use crate::node::{
        netlink::{
            Follower,
            tests::{follow_until, in_new_namespace, ip},
        },
        state::Change,
    };

    #[test]
    fn n10_a_default_route_by_an_object_leads_through_its_devices() {
        in_new_namespace(|| async {
            std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
            for (index, name) in [(20, "eth0"), (21, "eth1"), (22, "eth2")] {
                ip(&format!("link add {name} index {index} type veth peer name p{name}"));
                ip(&format!("link set p{name} up"));
                ip(&format!("link set {name} up"));
                ip(&format!("address add 192.0.{index}.1/24 dev {name}"));
                ip(&format!("nexthop add id {index} via 192.0.{index}.9 dev {name}"));
            }
            ip("nexthop add id 30 group 20/21");
            ip("route add default nhid 30");
            let (follower, mut state) = Follower::start().await.unwrap();
            let found: Vec<u32> = (20..23).filter(|ifindex| state.is_default_device(*ifindex)).collect();
            assert_eq!(found, [20, 21]);
            // One that takes the object's place is heard of, and the one before is no more.
            let (sender, mut changes) = mpsc::channel(1);
            tokio::spawn(follower.run(sender));
            ip("nexthop replace id 30 group 21/22");
            follow_until(&mut changes, &mut state, |state| !state.is_default_device(20) && state.is_default_device(22))
                .await;
            ip("nexthop replace id 22 via 192.0.22.8 dev eth2");
            let spoil = async {
                loop {
                    let change = changes.recv().await.unwrap();
                    if matches!(change, Change::Routes { .. }) && state.apply(change).next_hops {
                        break;
                    }
                }
            };
            assert!(
                tokio::time::timeout(Duration::from_secs(5), spoil).await.is_ok(),
                "nothing was said of the change"
            );
            ip("route del default");
            follow_until(&mut changes, &mut state, |state| !(20..23).any(|ifindex| state.is_default_device(ifindex)))
                .await;
        });
    }

    #[test]
    fn a_group_has_the_devices_of_its_members() {
        let one = |ifindex| Object { ifindex, group: Vec::new() };
        let group = Object { ifindex: 0, group: vec![1, 2, 7] };
        let known = BTreeMap::from([(1, one(5)), (2, one(6)), (3, group), (4, one(0))]);
        for (id, expected) in [(1, vec![5]), (3, vec![5, 6]), (4, vec![]), (9, vec![])] {
            assert_eq!(devices(id, &known).into_iter().collect::<BTreeSet<_>>(), expected.into_iter().collect());
        }
    }
}
