// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's side of the agent: programs, maps, links and pins.

pub mod fake;
