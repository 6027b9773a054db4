// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Decide it: a new flow gets a backend, and the decision is written down as a pair of flow entries.
//!
//! `admit -> select -> source -> install`. The outcome is the instruction in the scratch space. What a pod sends to a backend itself is
//! decided by `direct`.
//! Knows `flow`, and of `send` the way to a next hop: that gives the source address.

pub mod admit;
mod direct;
mod install;
mod own;
mod port;
pub mod select;
mod source;

use lb_common::{
    trace::trace_step,
    verdict::{Stage, Stop},
};

use crate::{
    kernel::{
        global_fn, log, maps,
        work::{self, Instruction},
    },
    packet::{Packet, header::Header},
    trace,
};

global_fn! {
    /// [`decide`].
    pub fn decide_global<P: Packet, F: Header>(packet: &P) -> Stage<()>
        = decide => decide_xdp_v4 | decide_xdp_v6 | decide_tc_v4 | decide_tc_v6
}

/// Decides the packet in the scratch space, for which there is no flow that holds. On success the scratch space holds the instruction.
#[inline(always)]
fn decide<P: Packet, F: Header>(packet: &P) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    // At the pods' doors there is no XDP.
    let is_direct = !P::IS_XDP && scratch.is_direct != 0;
    if is_direct {
        direct::prepare_global::<P, F>(packet)?;
    } else {
        admit::admit_global::<P, F>(packet)?;
    }
    let hash = scratch.parsed.key.keyed_hash(&maps::config()?.seed);
    if !is_direct {
        select::select_global::<F>((hash >> 32) as u32)?;
        let backend = scratch.original.backend;
        trace::note(packet, |record| {
            record.step = trace_step::DECIDED;
            record.backend = backend;
        });
        source::translate_global::<P, F>(packet)?;
    }
    // The low half of the hash: the high one chose the backend.
    let installed = install::install::<P, F>(hash as u32);
    scratch.instruction = Instruction::of(&scratch.original, Instruction::<F>::NO_SLOT);
    if is_direct {
        // Nobody has asked us.
        installed.map_err(|_| Stop::NOT_OURS)?;
        direct::let_pass(scratch);
        return Ok(());
    }
    installed?;
    if !P::IS_XDP && scratch.parsed.is_trace == 0 {
        source::let_reply_pass(&scratch.original);
    }
    log::debug!(
        packet,
        "service {}: decided for backend {}",
        scratch.admitted.frontend.service,
        scratch.original.backend
    );
    Ok(())
}
