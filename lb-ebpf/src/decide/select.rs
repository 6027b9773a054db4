// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Selection of a backend for a new flow (DNAT): session affinity, Maglev. The one that the client is used to, else Maglev's. The
//! outcome is the original direction's entry, but for its source.

use bytemuck::Zeroable as _;
use lb_common::{
    address::Address,
    clock::elapsed,
    flow::{Control, FlowState, flow_flags, protocol, table::Now},
    frontend::{Affinity, AffinityKey, Backend, Target, backend_state, frontend_flags},
    hash,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::{
        clock, global_fn, maps,
        work::{self, Admitted, Scratch},
    },
    packet::header::Header,
};

/// A backend and its index.
pub struct Chosen {
    pub index: u32,
    pub backend: &'static Backend,
}

impl Chosen {
    /// The generation by which the decision is known.
    ///
    /// A table may have been read a moment before the backend was freed, whose address still stands there: the client gets
    /// there like one that came a moment earlier, by a decision that is stale at once.
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        let is_free = self.backend.state == backend_state::FREE;
        self.backend.generation.wrapping_sub(u32::from(is_free))
    }
}

/// Who asks, where session affinity wants to know. Its key and value stand where the caller has room.
pub struct Client<'a, H> {
    pub address: Address,
    /// The keyed hash of the client alone.
    pub hash: H,
    pub key: &'a mut AffinityKey,
    pub affinity: &'a mut Affinity,
    /// Whether this is a trace, which leaves no affinity.
    pub dry: bool,
}

global_fn! {
    /// [`select`].
    pub fn select_global<F: Header>(hash: u32) -> Stage<()> = select => select_v4 | select_v6
}

/// Chooses for the packet in the scratch space, by the keyed hash of the 5-tuple, of which `hash` is the high half.
#[inline(always)]
fn select<F: Header>(hash: u32) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let now = clock::now();
    let source = &scratch.parsed.key.src;
    let client = Client {
        address: F::widen(source),
        hash: |seed: &[u64; 2]| hash::of_client(seed, &F::first_words(source)),
        key: &mut scratch.affinity_key,
        affinity: &mut scratch.affinity,
        dry: scratch.parsed.is_trace != 0,
    };
    let chosen = choose(&scratch.admitted, hash, client, now.tick)?;
    write_original(scratch, &chosen, now);
    Ok(())
}

/// Chooses by `hash`; with session affinity by what the client had before, or by the hash of the client alone, so that a
/// lost entry still meets the same backend, on every node.
#[inline(always)]
pub fn choose<H>(admitted: &Admitted, hash: u32, client: Client<'_, H>, now: u32) -> Stage<Chosen>
where
    H: FnOnce(&[u64; 2]) -> u64,
{
    let Admitted { frontend, target, list, .. } = admitted;
    if frontend.affinity_timeout == 0 {
        return by_table(hash, *target);
    }
    *client.key = AffinityKey { client: client.address, service: frontend.service };
    let known = maps::find_affinity(client.key);
    if let Some(known) = known
        && let Some(chosen) = by_affinity(known.get(), frontend.affinity_timeout, *list, now)
    {
        if !client.dry {
            // Refreshed by every new flow (rule 55).
            known.set_last_used(now);
        }
        return Ok(chosen);
    }
    let hash = (client.hash)(&maps::config()?.seed);
    let chosen = by_table((hash >> 32) as u32, *target)?;
    if !client.dry {
        *client.affinity = Affinity { backend: chosen.index, generation: chosen.backend.generation, last_used: now };
        maps::put_affinity(client.key, client.affinity);
    }
    Ok(chosen)
}

/// The original direction's entry, with the client's own source.
#[inline(always)]
pub fn write_original<F: Header>(scratch: &mut Scratch<F>, chosen: &Chosen, now: Now) {
    let (parsed, original, backend) = (&scratch.parsed, &mut scratch.original, chosen.backend);
    let key = &parsed.key;
    let is_tcp = key.protocol == protocol::TCP;
    let wants_reset = scratch.admitted.frontend.flags & frontend_flags::RESET_ON_REMOVAL != 0;
    let reset = if wants_reset && is_tcp { flow_flags::RESET } else { 0 };
    let picked_up = if parsed.is_picked_up() { flow_flags::PICKED_UP } else { 0 };
    original.control =
        Control::NONE.published(FlowState::first(key.protocol, parsed.tcp_flags), reset | picked_up, now.tick);
    (original.src, original.dst) = (key.src, key.dst);
    (original.sport_be, original.dport_be, original.protocol) = (key.sport_be, key.dport_be, key.protocol);
    original.class = scratch.admitted.class as u8;
    original.next_hop = 0;
    (original.new_src, original.new_dst) = (key.src, F::narrow(&backend.address));
    (original.new_sport_be, original.new_dport_be) = (key.sport_be, backend.port_be);
    (original.address_delta, original.port_delta) = (0, 0);
    (original.backend, original.generation) = (chosen.index, chosen.generation());
    (original.sequence, original.peer) = (if is_tcp { parsed.sequence } else { 0 }, 0);
    (original.born, original.peer_seen) = (now.jiffy, now.tick);
    original.pad = F::LinePad::zeroed();
}

/// Maglev: the hash, scaled to the table, names the backend.
#[inline(always)]
fn by_table(hash: u32, target: Target) -> Stage<Chosen> {
    let slot = target.offset.wrapping_add(hash::scale(u64::from(hash) << 32, target.slots));
    let index = maps::table_slot(slot).ok_or(Stop::drop(Reason::TableCorrupt))?;
    let backend = maps::find_backend(index).ok_or(Stop::drop(Reason::TableCorrupt))?;
    if backend.state == backend_state::FREE && backend.address.is_unspecified() {
        return Err(Stop::drop(Reason::TableCorrupt));
    }
    Ok(Chosen { index, backend })
}

/// The client's backend, while it is in the list that serves this path (rule 56) and not idle for too long.
#[inline(always)]
fn by_affinity(affinity: Affinity, timeout: u32, list: u32, now: u32) -> Option<Chosen> {
    if elapsed(now, affinity.last_used) > i64::from(timeout) {
        return None;
    }
    let backend = maps::find_backend(affinity.backend)?;
    let is_usable = backend.generation == affinity.generation && u32::from(backend.flags) & list != 0;
    is_usable.then_some(Chosen { index: affinity.backend, backend })
}
