// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two ways in which network plugins link pods to their node: ports of a bridge, and routes to single addresses.

use anyhow::Result;

use super::{Family, Node, Pod};

/// How a pod is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Port of the bridge `cni0`, as flannel and the bridge plugin do it: pods of one node reach each other without routing.
    Bridged,
    /// Routes of one address each to an interface without addresses, as Calico and cloud providers do it.
    Routed,
}

/// What a routed pod takes for its gateway: an address that nobody has, and the MAC of the interface behind its own.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// Makes the link, down at both ends.
pub(super) fn connect(node: &Node, pod: &Pod) -> Result<()> {
    let line = format!("link add {} type veth peer name eth0 netns {}", pod.interface(), pod.namespace().name());
    node.namespace().ip(&line)
}

/// Brings the link up: addresses and routes at both ends.
pub(super) fn configure(node: &Node, pod: &Pod, kind: LinkKind) -> Result<()> {
    match kind {
        LinkKind::Bridged => configure_bridged(node, pod),
        LinkKind::Routed => configure_routed(node, pod),
    }
}

fn configure_bridged(node: &Node, pod: &Pod) -> Result<()> {
    let (v4, v6) = (pod.address(Family::V4), pod.address(Family::V6));
    let (gateway_v4, gateway_v6) = (node.bridge_address(Family::V4), node.bridge_address(Family::V6));
    node.namespace().ip(&format!("link set {} master cni0 up", pod.interface()))?;
    pod.namespace().ip(&format!(
        "link set lo up\n\
         addr add {v4}/25 dev eth0\n\
         addr add {v6}/120 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {gateway_v4}\n\
         route add default via {gateway_v6}"
    ))
}

fn configure_routed(node: &Node, pod: &Pod) -> Result<()> {
    let (v4, v6) = (pod.address(Family::V4), pod.address(Family::V6));
    let interface = pod.interface();
    pod.namespace().ip(&format!(
        "link set lo up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add {GATEWAY_V4} dev eth0 scope link\n\
         route add default via {GATEWAY_V4} dev eth0\n\
         neigh add {GATEWAY_V4} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
         route add default via {GATEWAY_V6} dev eth0\n\
         neigh add {GATEWAY_V6} lladdr {GATEWAY_MAC} dev eth0 nud permanent"
    ))?;
    node.namespace().ip(&format!(
        "link set {interface} address {GATEWAY_MAC} up\n\
         route add {v4}/32 dev {interface} scope link\n\
         route add {v6}/128 dev {interface}"
    ))
}
