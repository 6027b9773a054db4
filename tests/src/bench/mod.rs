// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `bench connect` and `bench flow` share: two nodes with one Service each, Shunt's and nftables', the ways to reach a
//! server directly and through each of them, and how figures are compared with the direct way's.

mod figures;
mod nftables;
mod scene;

pub use self::{
    figures::{Comparison, median},
    scene::{Place, Scene, Way},
};
