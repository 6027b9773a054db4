// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uplinks that stand on another device: VLANs and bonds.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Namespace, Node, OUTSIDE_HOST, World};

/// The VLAN of all worlds that have one, on `eth0`.
pub const VLAN: &str = "vlan7";
/// The bond, of `eth0` alone.
pub const BOND: &str = "bond0";

impl World {
    /// Puts nodes and outside client into a VLAN: their addresses move from `eth0` to [`VLAN`], the nodes' only uplink.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn tag_all(&mut self) -> Result<()> {
        tag(&self.outside)?;
        move_addresses(&self.outside, VLAN, OUTSIDE_HOST, None)?;
        for node in &mut self.nodes {
            tag(node.namespace())?;
            move_addresses(node.namespace(), VLAN, node.host(), Some(node))?;
            node.set_uplinks(&[VLAN]);
        }
        Ok(())
    }

    /// Lets the nodes, and only them, meet in a VLAN as well: a second uplink, with `172.21.0.1N` and its twin for address, which
    /// is the way to the other node's pods.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn tag_between_nodes(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            let (number, other) = (node.number(), 3 - node.number());
            tag(node.namespace())?;
            node.namespace().ip(&format!(
                "addr add 172.21.0.1{number}/24 dev {VLAN}\n\
                 addr add fd00:21::1{number}/64 dev {VLAN} nodad\n\
                 route replace 10.244.{other}.0/24 via 172.21.0.1{other}\n\
                 route replace fd00:244:{other}::/64 via fd00:21::1{other}"
            ))?;
            node.set_uplinks(&["eth0", VLAN]);
        }
        Ok(())
    }

    /// Makes `eth0` of each node the only port of a bond, [`BOND`], which is the uplink and has the addresses.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn bond_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.namespace().ip(&format!(
                "link add {BOND} type bond mode active-backup miimon 50\n\
                 link set eth0 down\n\
                 link set eth0 master {BOND}\n\
                 link set {BOND} up"
            ))?;
            move_addresses(node.namespace(), BOND, node.host(), Some(node))?;
            node.set_uplinks(&[BOND]);
        }
        Ok(())
    }
}

fn tag(namespace: &Namespace) -> Result<()> {
    namespace.ip(&format!("link add link eth0 name {VLAN} type vlan id 7\nlink set {VLAN} up"))
}

/// Moves the addresses of a host from `eth0` to another device, and with them a node's way to the other node's pods.
fn move_addresses(namespace: &Namespace, device: &str, host: u16, node: Option<&Node>) -> Result<()> {
    let mut lines = format!(
        "addr flush dev eth0\n\
         addr add 172.20.0.{host}/24 dev {device}\n\
         addr add fd00:20::{host}/64 dev {device} nodad"
    );
    if let Some(other) = node.map(|node| 3 - node.number()) {
        write!(
            lines,
            "\nroute replace 10.244.{other}.0/24 via 172.20.0.1{other}\n\
             route replace fd00:244:{other}::/64 via fd00:20::1{other}"
        )?;
    }
    namespace.ip(&lines)
}
