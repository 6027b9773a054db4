// SPDX-License-Identifier: MIT OR Apache-2.0
//! Load: HTTP and DNS requests from inside a namespace, each on a flow of its own, counted by who answered; and flows that
//! a test keeps for itself.

pub mod dns;
pub mod forge;
mod generator;
pub mod http;
pub mod iperf;
pub mod talk;
mod tally;

pub use self::{
    generator::{Load, Source, Target, send},
    talk::{Protocol, Talk},
    tally::Tally,
};
