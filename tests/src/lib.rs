// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shunt on real kernels: a small world of network namespaces, and load to send through it.

pub mod load;
pub mod packets;
pub mod reference;
pub mod world;
