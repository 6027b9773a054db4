// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net's device: up, without ARP, without addresses, forwarding, with the MTU that is wanted.
//!
//! Any device serves at whose egress programs run, and which drops what they let pass. Debian's kernels have dummy devices as a
//! module, other kernels other kinds.

use std::{fs, io, path::PathBuf};

use futures::TryStreamExt;
use nix::libc;
use rtnetlink::{
    Handle, LinkDummy, LinkIfb, LinkMessageBuilder, LinkNetkit, LinkUnspec, LinkVeth,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, NetkitMode,
    },
};

use super::{DEVICE, NetError, PEER};

/// Kinds of devices that serve, in the order in which they are tried.
const KINDS: [&str; 4] = ["dummy", "netkit", "ifb", "veth"];

/// The device as the kernel tells of it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its index.
    pub ifindex: u32,
    /// Its driver.
    pub kind: String,
    flags: LinkFlags,
    mtu: u32,
    /// How it makes IPv6 addresses for itself; `None` where the kernel has no IPv6.
    address_mode: Option<In6AddrGenMode>,
}

impl Found {
    /// Whether an agent may have made it.
    pub fn is_ours(&self) -> bool {
        KINDS.contains(&&*self.kind)
    }

    fn new(message: LinkMessage) -> Self {
        let mut found = Self {
            ifindex: message.header.index,
            kind: String::new(),
            flags: message.header.flags,
            mtu: 0,
            address_mode: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    let kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                    found.kind = kind.unwrap_or_default();
                }
                LinkAttribute::AfSpecUnspec(families) => found.address_mode = families.iter().find_map(address_mode),
                _ => {}
            }
        }
        found
    }
}

fn address_mode(family: &AfSpecUnspec) -> Option<In6AddrGenMode> {
    let AfSpecUnspec::Inet6(settings) = family else { return None };
    settings.iter().find_map(|setting| match setting {
        AfSpecInet6::AddrGenMode(mode) => Some(*mode),
        _ => None,
    })
}

/// The device, if there is one of its name.
pub async fn find(handle: &Handle) -> Result<Option<Found>, NetError> {
    find_named(handle, DEVICE).await
}

async fn find_named(handle: &Handle, name: &str) -> Result<Option<Found>, NetError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(message) => Ok(message.map(Found::new)),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(NetError::Device { act: "looked at", source }),
    }
}

/// Makes it, of the first kind that the kernel has.
pub async fn make(handle: &Handle, mtu: u32) -> Result<Found, NetError> {
    let mut refusals = Vec::new();
    for kind in KINDS {
        match handle.link().add(message(kind, mtu)).execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => refusals.push(format!("{kind}: {}", text(&error))),
            _ => break,
        }
    }
    find(handle).await?.ok_or_else(|| NetError::Unmade { refusals: refusals.join(", ") })
}

fn message(kind: &str, mtu: u32) -> LinkMessage {
    match kind {
        "dummy" => LinkDummy::new(DEVICE).mtu(mtu).build(),
        "netkit" => LinkNetkit::new(DEVICE, PEER, NetkitMode::L3).mtu(mtu).build(),
        "ifb" => LinkIfb::new(DEVICE).mtu(mtu).build(),
        _ => LinkVeth::new(DEVICE, PEER).mtu(mtu).build(),
    }
}

/// Makes it what it should be. Returns which settings could not be made so.
pub async fn keep(handle: &Handle, found: &Found, mtu: u32) -> Result<Vec<NetError>, NetError> {
    let device = || LinkUnspec::new_with_index(found.ifindex);
    // While it is down, so that it never gets an address of its own.
    if found.address_mode.is_some_and(|mode| mode != In6AddrGenMode::None) {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = device().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]));
        set(handle, message, "kept from making addresses").await?;
    }
    if found.mtu != mtu {
        set(handle, device().mtu(mtu), "given its MTU").await?;
    }
    let errors = forwarding().filter_map(|(setting, value)| apply(&setting, value).err()).collect();
    if !found.flags.contains(LinkFlags::Up | LinkFlags::Noarp) {
        set(handle, device().arp(false).up(), "set up").await?;
    }
    if let Some(peer) = find_named(handle, PEER).await?.filter(|peer| !peer.flags.contains(LinkFlags::Up)) {
        set(handle, LinkUnspec::new_with_index(peer.ifindex).arp(false).up(), "set up at its other end").await?;
    }
    Ok(errors)
}

async fn set(handle: &Handle, message: LinkMessageBuilder<LinkUnspec>, act: &'static str) -> Result<(), NetError> {
    handle.link().set(message.build()).execute().await.map_err(|source| NetError::Device { act, source })
}

/// Takes it away.
pub async fn remove(handle: &Handle, ifindex: u32) -> Result<(), NetError> {
    let removed = handle.link().del(ifindex).execute().await;
    removed.map_err(|source| NetError::Device { act: "removed", source })
}

/// What the device needs to forward packets; new ones have it where the machine forwards as a whole. Its other end must not: what comes
/// out there is for nobody, and would go round.
fn forwarding() -> impl Iterator<Item = (String, &'static str)> {
    const SETTINGS: [(&str, &str, &str, &str); 5] = [
        ("ipv4", DEVICE, "forwarding", "1"),
        ("ipv6", DEVICE, "disable_ipv6", "0"),
        ("ipv6", DEVICE, "forwarding", "1"),
        ("ipv4", PEER, "forwarding", "0"),
        ("ipv6", PEER, "disable_ipv6", "1"),
    ];
    SETTINGS.into_iter().map(|(family, device, name, value)| (format!("net/{family}/conf/{device}/{name}"), value))
}

/// Read first: in most containers they are not to be written.
fn apply(setting: &str, value: &'static str) -> Result<(), NetError> {
    let path = PathBuf::from("/proc/sys").join(setting);
    let applied = match fs::read_to_string(&path) {
        // The kernel has no such family.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(held) if held.trim() == value => return Ok(()),
        Err(error) => Err(error),
        Ok(_) => fs::write(&path, value),
    };
    applied.map_err(|source| NetError::Setting { setting: setting.replace('/', "."), value, source })
}

/// What the kernel refused, as a number.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// The same for people.
fn text(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}
