// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reference model: what Shunt must do with a packet, as plainly as it can be said.
//!
//! Slow and obvious on purpose: bytes are read through slices, checksums are summed over the whole packet, flows stand in
//! a `BTreeMap`, routes are searched from end to end. Of `lb_common` it takes the names that both sides must share
//! (reasons, flow states, flags) and the hashes of the address filter and of shares, and none of the arithmetic. It knows nothing
//! of BPF, nor of the other modules here: `tests/fuzz` compiles it alone.

mod affinity;
mod answer;
mod bytes;
pub mod checksum;
mod counters;
mod crc32c;
mod decide;
mod flow;
mod fragment;
mod life;
mod model;
mod packet;
mod quote;
mod rewrite;
mod route;
mod setup;
mod sound;
mod verdict;
pub mod walk;

#[cfg(test)]
mod tests;

pub use affinity::Affinity;
pub use counters::Counters;
pub use crc32c::crc32c;
pub use flow::{Entry, NextHop, Now, Tuple};
pub use fragment::{Datagram, Ports};
pub use life::{Ends, Meaning, Signs, first_state, meaning};
pub use model::{Model, Outcome};
pub use route::{Prefix, Route, Way};
pub use setup::{Backend, Frontend, Interface, List, Net, Place, Policy, Setup, Version};
pub use sound::is_sound;
pub use verdict::{Arrival, Door, Verdict};
