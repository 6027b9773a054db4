// SPDX-License-Identifier: MIT OR Apache-2.0
//! An overlay between the nodes, as flannel makes it: what one node's pods send to another's goes through a VXLAN, and the
//! network below sees nothing but the nodes.

use anyhow::Result;

use super::{Family, World};

/// What encapsulation takes away, over IPv4.
const OVERHEAD: u16 = 50;

impl World {
    /// Makes the overlay. Its devices are called `flannel.1`, and have `10.245.N.0` and its twin for address.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn lay_over(&self) -> Result<()> {
        for node in self.nodes() {
            let (number, other) = (node.number(), 3 - node.number());
            let far_end = self.nodes().find(|node| node.number() == other).expect("two nodes");
            node.namespace().ip(&format!(
                "link add flannel.1 type vxlan id 1 dstport 8472 nolearning local {} remote {} dev eth0\n\
                 link set flannel.1 mtu {} up\n\
                 addr add 10.245.{number}.0/32 dev flannel.1\n\
                 addr add fd00:245:{number}::/128 dev flannel.1 nodad\n\
                 route add 10.245.{other}.0/32 dev flannel.1\n\
                 route replace 10.244.{other}.0/24 via 10.245.{other}.0 dev flannel.1 onlink\n\
                 route add fd00:245:{other}::/128 dev flannel.1\n\
                 route replace fd00:244:{other}::/64 via fd00:245:{other}:: dev flannel.1 onlink",
                node.address(Family::V4),
                far_end.address(Family::V4),
                1500 - OVERHEAD,
            ))?;
        }
        Ok(())
    }
}
