// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! IP fragments: the first one of a datagram has its ports, and is treated like a whole packet; those that come later find the
//! ports in a table, and get the addresses that the first one got. Earlier than the first one they find nothing.

use lb_common::{
    clock::elapsed,
    flow::Hook,
    fragment::{FRAGMENT_TICKS, Fragment, FragmentKey},
    verdict::{Reason, Stage, Stop},
};

use super::filter::is_cluster_ip;
use crate::{
    kernel::{
        clock, global_fn, maps,
        work::{self, Scratch, kind},
    },
    packet::header::Header,
};

/// Writes the key of the packet in the scratch space.
#[inline(always)]
fn write_key<F: Header>(scratch: &mut Scratch<F>) {
    let key = &scratch.parsed.key;
    scratch.fragment_key = FragmentKey {
        src: F::widen(&key.src),
        dst: F::widen(&key.dst),
        identification_be: scratch.dissected.identification_be,
        protocol: key.protocol,
        pad: [0; 3],
    };
}

global_fn! {
    /// [`remember`].
    pub fn remember_global<F: Header>(now: u32) -> Stage<()> = remember => remember_v4 | remember_v6
}

/// Keeps the ports of the first fragment in the scratch space for the later ones.
#[inline(always)]
fn remember<F: Header>(now: u32) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    write_key(scratch);
    let key = &scratch.parsed.key;
    scratch.fragment = Fragment { sport_be: key.sport_be, dport_be: key.dport_be, last_seen: now };
    maps::put_fragment(&scratch.fragment_key, &scratch.fragment);
    Ok(())
}

/// Completes the 5-tuple of a later fragment with the ports of the first one.
#[inline(always)]
pub fn find<F: Header>(scratch: &mut Scratch<F>, hook: Hook) -> Stage<()> {
    write_key(scratch);
    scratch.dissected.kind = kind::LATER_FRAGMENT;
    match maps::find_fragment(&scratch.fragment_key) {
        Some(fragment) if elapsed(clock::tick(), fragment.last_seen) < i64::from(FRAGMENT_TICKS) => {
            scratch.parsed.key.sport_be = fragment.sport_be;
            scratch.parsed.key.dport_be = fragment.dport_be;
            Ok(())
        }
        _ if hook == Hook::Egress => Err(Stop::NOT_OURS),
        _ if is_cluster_ip(scratch) => Err(Stop::drop(Reason::OrphanFragment)),
        _ => Err(Stop::pass(Reason::OrphanFragment)),
    }
}
