// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Was it decided? The flow table (conntrack): the instruction for a packet of a flow that is known.
//!
//! Knows `parse`.

pub mod find;
