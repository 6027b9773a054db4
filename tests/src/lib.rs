// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shunt on real kernels: a small world of network namespaces, load to send through it, and an API server that misbehaves on
//! demand.

pub mod api_server;
pub mod bench;
pub mod load;
pub mod packets;
pub mod reference;
pub mod world;
