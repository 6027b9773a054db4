// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent knows of its own machine: devices, addresses, next hops, and what follows from them.
//!
//! [`netlink`] follows the kernel and yields [`state::Change`]s; [`state::NodeState`] is what they add up to; [`roles`]
//! and [`addresses`] are pure functions of it: which devices get our programs, and which addresses answer NodePorts.
//! [`neighbours`] has the kernel ask for neighbours that only programs use, and [`net`] keeps a device of our own to which the
//! addresses of Services are routed. Nothing here knows of Services or maps.

pub mod addresses;
pub mod checks;
pub mod decode;
pub mod neighbours;
pub mod net;
pub mod netlink;
pub mod next_hop_objects;
pub mod pattern;
pub mod ports;
pub mod roles;
pub mod state;
