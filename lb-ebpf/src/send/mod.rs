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
        work::{self, kind},
    },
    packet::{Exit, Packet, header::Header},
};

global_fn! {
    /// [`rewrite`].
    pub fn rewrite_global<P: Packet, F: Header>(packet: &mut P, exit: Exit) -> Stage<()>
        = rewrite => rewrite_xdp_v4 | rewrite_xdp_v6 | rewrite_tc_v4 | rewrite_tc_v6
}

/// Rewrites a packet of any kind by the instruction in the scratch space.
#[inline(always)]
fn rewrite<P: Packet, F: Header>(packet: &mut P, exit: Exit) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    match scratch.dissected.kind {
        kind::ERROR => quote::rewrite(packet, scratch, exit),
        kind::LATER_FRAGMENT => rewrite::translate_fragment(packet, scratch, exit),
        _ if scratch.parsed.key.protocol == protocol::SCTP => sctp::rewrite(packet, scratch, exit),
        _ => rewrite::translate(packet, scratch.dissected.at, scratch.parsed.key.protocol, &scratch.original, exit),
    }
}
