// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent follows a Kubernetes API that misbehaves: the maps end right, and nothing is taken back meanwhile.
//!
//! Most of it runs the whole agent but the kernel in this process ([`agent`]); `traffic` runs the real one in the world of
//! namespaces, and `cluster` what can be asked of a real cluster.

mod agent;
mod broken;
mod cluster;
mod events;
mod gaps;
mod objects;
mod pod;
mod scenarios;
mod seed;
mod selected;
mod tls;
mod tokens;
mod traffic;
