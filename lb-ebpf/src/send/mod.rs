// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Follow the instruction: the next hop, the MTU on the way there, the rewritten packet.
//!
//! Knows `packet`. Nothing here decides for a flow.

mod mtu;
pub mod next_hop;
mod quote;
pub mod rewrite;
pub mod sctp;

use lb_common::{flow::protocol, verdict::Stage};

use crate::{
    kernel::{
        global_fn,
        work::{self, Way, kind},
    },
    packet::{Exit, Packet, header::Header},
};

/// How a packet leaves, and by which way.
#[derive(Clone, Copy)]
pub struct Sending {
    pub exit: Exit,
    pub way: Way,
}

global_fn! {
    /// [`rewrite`].
    pub fn rewrite_global<P: Packet, F: Header>(packet: &mut P, exit: Exit) -> Stage<()>
        = rewrite => rewrite_xdp_v4 | rewrite_xdp_v6 | rewrite_tc_v4 | rewrite_tc_v6
}

/// Rewrites a packet of any kind by the instruction in the scratch space, to leave by the way there.
#[inline(always)]
fn rewrite<P: Packet, F: Header>(packet: &mut P, exit: Exit) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let sending = &Sending { exit, way: scratch.way };
    match scratch.dissected.kind {
        kind::ERROR => quote::rewrite(packet, scratch, sending),
        kind::LATER_FRAGMENT => rewrite::translate_fragment(packet, scratch, sending),
        _ if scratch.parsed.key.protocol == protocol::SCTP => sctp::rewrite(packet, scratch, sending),
        _ => {
            rewrite::translate(packet, scratch.dissected.at, scratch.parsed.key.protocol, &scratch.instruction, sending)
        }
    }
}
