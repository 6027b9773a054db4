// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Stage 3, second step: a backend for a new flow. The one that the client is used to, else Maglev's.

use lb_common::{
    frontend::{Affinity, AffinityKey, Backend, Frontend, Target, backend_state},
    hash,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    admit::Admitted,
    header::Header,
    maps::{self, Scratch},
    packet::Packet,
};

/// A backend and its index.
pub struct Chosen {
    pub index: u32,
    pub backend: &'static Backend,
}

/// Chooses by the keyed hash of the 5-tuple; with session affinity by what the client had before, or by the hash of its
/// address alone, so that a lost entry still meets the same backend, on every node.
#[inline(always)]
pub fn select<P: Packet, F: Header>(
    packet: &P,
    scratch: &mut Scratch<F>,
    admitted: &Admitted,
    hash: u64,
    now: u32,
) -> Stage<Chosen> {
    if admitted.frontend.affinity_timeout == 0 {
        return by_table(hash, admitted.target);
    }
    let client = &scratch.parsed.key.src;
    scratch.affinity_key = AffinityKey { client: F::widen(client), service: admitted.frontend.service };
    let chosen =
        match by_affinity(&scratch.affinity_key, admitted.frontend, admitted.frontend.list(admitted.scope), now) {
            Some(chosen) => chosen,
            None => by_table(F::hash_client(&maps::config()?.seed, client), admitted.target)?,
        };
    if !packet.is_trace() {
        // Refreshed by every new flow (rule 55).
        scratch.affinity = Affinity { backend: chosen.index, generation: chosen.backend.generation, last_used: now };
        maps::put_affinity(&scratch.affinity_key, &scratch.affinity);
    }
    Ok(chosen)
}

/// Maglev: the hash, scaled to the table, names the backend.
#[inline(always)]
fn by_table(hash: u64, target: Target) -> Stage<Chosen> {
    let slot = target.offset.wrapping_add(hash::scale(hash, target.slots));
    let index = maps::table_slot(slot).ok_or(Stop::drop(Reason::TableCorrupt))?;
    let backend = maps::find_backend(index).ok_or(Stop::drop(Reason::TableCorrupt))?;
    if backend.state == backend_state::FREE && backend.address.is_unspecified() {
        return Err(Stop::drop(Reason::TableCorrupt));
    }
    Ok(Chosen { index, backend })
}

/// The client's backend, while it is in the list that serves this path (rule 56) and not idle for too long.
#[inline(always)]
fn by_affinity(key: &AffinityKey, frontend: &Frontend, list: u8, now: u32) -> Option<Chosen> {
    let affinity = maps::find_affinity(key)?;
    if now.wrapping_sub(affinity.last_used) > frontend.affinity_timeout {
        return None;
    }
    let backend = maps::find_backend(affinity.backend)?;
    let is_usable = backend.generation == affinity.generation && backend.flags & list != 0;
    is_usable.then_some(Chosen { index: affinity.backend, backend })
}
