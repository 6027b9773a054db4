// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Was it decided? The flow table (conntrack): look-up, what a packet changes in its flow, and the pair of entries that a flow has.
//!
//! Knows `kernel`, `packet` and `parse`.

pub mod find;
pub mod follow;
pub mod pair;
