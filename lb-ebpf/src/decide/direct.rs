// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a pod sends to a backend itself, from a port by which a Service's flow leads to that backend: the backend could not tell the two
//! apart, and its answers would all go back as the Service's. So the later one is a flow as well, with another source port, although no
//! Service's (openshift/sdn 269, cilium 47396).

use lb_common::{
    flow::{
        FlowKey,
        table::{self, Rank, class_of_device, rank_of},
    },
    frontend::{Frontend, NO_BACKEND, Target},
    verdict::{Reason, Stage, Stop},
};

use super::select::{Chosen, write_original};
use crate::{
    flow::pair::{self, lookup},
    kernel::{
        clock, global_fn, maps,
        work::{self, Admitted, Scratch},
    },
    packet::{Packet, header::Header},
};

global_fn! {
    /// [`prepare`].
    pub fn prepare_global<P: Packet, F: Header>(packet: &P) -> Stage<()>
        = prepare => prepare_direct_xdp_v4 | prepare_direct_xdp_v6 | prepare_direct_tc_v4 | prepare_direct_tc_v6
}

/// Writes the original entry for the packet in the scratch space, which is of no flow: it begins one of its own where its reply's tuple is
/// another's that lives. Else it goes as it is, and nothing is noted.
#[inline(always)]
fn prepare<P: Packet, F: Header>(packet: &P) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let key = &scratch.parsed.key;
    if scratch.parsed.is_picked_up() || scratch.parsed.is_trace != 0 {
        return Err(Stop::NOT_OURS);
    }
    scratch.peer_key = FlowKey::new(key.dst, key.src, key.dport_be, key.sport_be, key.protocol);
    let place = lookup(&scratch.peer_key).ok_or(Stop::NOT_OURS)?;
    let rank = rank_of(pair::urge::<F>(&place, &maps::config()?.timeouts));
    if table::is_answered_by(place.slot, &scratch.parsed.key) || rank == Rank::EXPIRED || rank == Rank::OVER {
        return Err(Stop::NOT_OURS);
    }
    let class = class_of_device(packet.ifindex()).into();
    let (frontend, target) = (Frontend::default(), Target::default());
    scratch.admitted = Admitted { frontend, target, list: 0, comes_from_pod: 1, class };
    let backend = maps::find_backend(NO_BACKEND).ok_or(Stop::drop(Reason::TableCorrupt))?;
    write_original(scratch, &Chosen { index: NO_BACKEND, backend }, clock::now());
    let (key, original) = (&scratch.parsed.key, &mut scratch.original);
    (original.new_dst, original.new_dport_be, original.generation) = (key.dst, key.dport_be, backend.generation);
    Ok(())
}

/// Sees to it that the next packets of such a flow don't pass by.
#[inline(always)]
pub fn let_pass<F: Header>(scratch: &Scratch<F>) {
    let key = &scratch.parsed.key;
    maps::note_direct(F::filter_port_bit(&key.src, key.sport_be, key.protocol));
}
