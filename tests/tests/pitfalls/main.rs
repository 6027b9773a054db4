// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where load balancers like this one have hurt their users, with real connections. Tests bear the number of the pitfall, and
//! name the thread in which it was told.

mod doors;
mod memory;
mod own;
mod removal;
mod restarts;
mod rolling;
mod service;
mod twice;
