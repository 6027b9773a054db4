// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ways that are longer and narrower than the world's own: a client behind a router, and routes whose MTU is smaller than
//! that of the links at both ends, so that nobody but the one in the middle can tell.
//!
//! ```text
//!   far 172.21.0.100 ── router 172.20.0.1 ── switch ── nodes
//! ```

use std::net::IpAddr;

use anyhow::Result;

use super::{Family, Namespace, World};

/// A client behind a router.
pub struct Far {
    router: Namespace,
    client: Namespace,
}

impl Far {
    /// Puts them beside the outside client. The router forwards packets of at most `mtu` bytes, in both directions.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn build(world: &World, mtu: u16) -> Result<Self> {
        let [router, client] = ["router", "far"].map(|name| Namespace::create(&world.site, name));
        let far = Self { router: router?, client: client? };
        world.plug_in(&far.router, "router", 1)?;
        far.router.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        far.router.ip(&format!("link add eth1 type veth peer name eth0 netns {}", far.client.name()))?;
        world.finish_link(&far.router, "eth1", &far.client)?;
        far.router.ip("addr add 172.21.0.1/24 dev eth1\naddr add fd00:21::1/64 dev eth1 nodad\nlink set eth1 up")?;
        far.client.ip("link set lo up\n\
             addr add 172.21.0.100/24 dev eth0\n\
             addr add fd00:21::100/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 172.21.0.1\n\
             route add default via fd00:21::1")?;
        for family in Family::BOTH {
            far.router.ip(&narrow_route(family, far.address(family), "dev eth1", mtu))?;
            for node in world.nodes() {
                far.router.ip(&narrow_route(family, node.address(family), "dev eth0", mtu))?;
                let (clients, router) =
                    (family.pick("172.21.0.0", "fd00:21::"), family.pick("172.20.0.1", "fd00:20::1"));
                let length = if family == Family::V4 { 24 } else { 64 };
                node.namespace().ip(&format!("route add {clients}/{length} via {router}"))?;
            }
        }
        Ok(far)
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Its address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        family.pick("172.21.0.100", "fd00:21::100")
    }

    /// The router, whose `eth0` leads to the switch and whose `eth1` leads to the client.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// Its address as the client sees it.
    #[must_use]
    pub fn router_address(&self, family: Family) -> IpAddr {
        family.pick("172.21.0.1", "fd00:21::1")
    }
}

impl World {
    /// Makes the ways between the nodes, and those from each node to its web pods, forward packets of at most `mtu` bytes.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn narrow_ways(&self, mtu: u16) -> Result<()> {
        for family in Family::BOTH {
            for node in self.nodes() {
                for other in self.nodes().filter(|other| other.name() != node.name()) {
                    node.namespace().ip(&narrow_route(family, other.address(family), "dev eth0", mtu))?;
                    let way = format!("via {}", other.address(family));
                    for pod in other.pods() {
                        node.namespace().ip(&narrow_route(family, pod.address(family), &way, mtu))?;
                    }
                }
                for pod in node.pods().filter(|pod| pod.name().starts_with("web-")) {
                    let way = format!("dev {}", pod.way_from_node());
                    node.namespace().ip(&narrow_route(family, pod.address(family), &way, mtu))?;
                }
            }
        }
        Ok(())
    }
}

/// The line that makes such a route, for `ip`.
fn narrow_route(family: Family, to: IpAddr, way: &str, mtu: u16) -> String {
    format!("route replace {to}/{} {way} mtu lock {mtu}", family.bits())
}
