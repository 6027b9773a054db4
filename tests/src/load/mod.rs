// SPDX-License-Identifier: MIT OR Apache-2.0
//! Load: HTTP and DNS requests from inside a namespace, each on a flow of its own, counted by who answered.

pub mod dns;
mod generator;
pub mod http;
mod tally;

pub use self::{
    generator::{Load, Source, Target, send},
    tally::Tally,
};
