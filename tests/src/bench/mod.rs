// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the benches share: how figures are compared with those of the direct way, and where they go; work on one CPU; and for
//! `bench connect` and `flow` nodes with Services, Shunt's, nftables' and iptables', and the ways to reach a server directly and
//! through each of them.

mod chart;
mod cpu;
mod figures;
mod iptables;
mod nftables;
mod output;
mod scene;

pub use self::{
    chart::{Bar, Chart, Shall},
    cpu::on_one_cpu,
    figures::{Comparison, median, quantile},
    output::{Output, Report, conclude},
    scene::{Aim, Place, Scene, Way},
};
