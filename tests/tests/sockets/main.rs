// SPDX-License-Identifier: MIT OR Apache-2.0
//! The socket door, with real sockets: of the nodes' own processes, and of pods.

mod addresses;
mod clients;
mod follow;
mod keep;
mod kinds;
mod life;
mod pods;
mod rules;
mod service;
