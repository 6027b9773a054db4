// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry point of the agent.
fn main() {}
