// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shunt's node agent, in one direction: `source -> model -> compile -> diff -> write`.
//!
//! `source` brings Kubernetes objects, `model` keeps the desired state, `compile` says what the maps should hold, `diff`
//! compares with what they hold, and `dataplane` writes the difference. See ARCHITECTURE.md for the rooms.

pub mod about;
pub mod cli;
pub mod compile;
pub mod dataplane;
pub mod diff;
pub mod events;
pub mod hash_seed;
pub mod health;
pub mod http;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod node;
pub mod notice;
pub mod problem;
mod random;
pub mod source;
pub mod sync;
