// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Single fields of the [`Entry`](super::super::Entry) in a slot: loaded and stored alone, without a claim, so that nothing but the field
//! may be touched. Where each stands is said in [`word`]; which of them may be stored when, in [`super`].

use super::{
    super::{Control, word},
    Slot, halves,
};
use crate::{address::Family, bits::join};

/// The control word.
#[inline(always)]
pub fn control<S: Slot>(slot: S) -> Control {
    Control::from_bits(slot.load(word::CONTROL))
}

/// Stores [`Control::last_seen`].
#[inline(always)]
pub fn set_last_seen<S: Slot>(slot: S, tick: u32) {
    slot.store_half(2 * word::CONTROL, tick);
}

/// [`Entry::class`](super::super::Entry::class).
#[inline(always)]
pub fn class<F: Family, S: Slot>(slot: S) -> u8 {
    (slot.load(word::ports::<F>()) >> 40) as u8
}

/// [`Entry::next_hop`](super::super::Entry::next_hop).
#[inline(always)]
pub fn next_hop<F: Family, S: Slot>(slot: S) -> u16 {
    (slot.load(word::ports::<F>()) >> 48) as u16
}

/// Stores it.
#[inline(always)]
pub fn set_next_hop<F: Family, S: Slot>(slot: S, next_hop: u16) {
    slot.store_quarter(4 * word::ports::<F>() + 3, next_hop);
}

/// The backend, and its generation.
#[inline(always)]
pub fn backend<F: Family, S: Slot>(slot: S) -> (u32, u32) {
    halves(slot.load(word::backend::<F>()))
}

/// Stores both.
#[inline(always)]
pub fn set_backend<F: Family, S: Slot>(slot: S, backend: u32, generation: u32) {
    slot.store(word::backend::<F>(), join(backend, generation));
}

/// [`Entry::sequence`](super::super::Entry::sequence).
#[inline(always)]
pub fn sequence<F: Family, S: Slot>(slot: S) -> u32 {
    halves(slot.load(word::sequence::<F>())).0
}

/// Stores it.
#[inline(always)]
pub fn set_sequence<F: Family, S: Slot>(slot: S, sequence: u32) {
    slot.store_half(2 * word::sequence::<F>(), sequence);
}

/// [`Entry::peer`](super::super::Entry::peer).
#[inline(always)]
pub fn peer<F: Family, S: Slot>(slot: S) -> u32 {
    halves(slot.load(word::sequence::<F>())).1
}

/// Stores it.
#[inline(always)]
pub fn set_peer<F: Family, S: Slot>(slot: S, peer: u32) {
    slot.store_half(2 * word::sequence::<F>() + 1, peer);
}

/// [`Entry::born`](super::super::Entry::born).
#[inline(always)]
pub fn born<F: Family, S: Slot>(slot: S) -> u32 {
    halves(slot.load(word::times::<F>())).0
}

/// Stores it.
#[inline(always)]
pub fn set_born<F: Family, S: Slot>(slot: S, jiffy: u32) {
    slot.store_half(2 * word::times::<F>(), jiffy);
}

/// [`Entry::peer_seen`](super::super::Entry::peer_seen).
#[inline(always)]
pub fn peer_seen<F: Family, S: Slot>(slot: S) -> u32 {
    halves(slot.load(word::times::<F>())).1
}

/// Stores it.
#[inline(always)]
pub fn set_peer_seen<F: Family, S: Slot>(slot: S, tick: u32) {
    slot.store_half(2 * word::times::<F>() + 1, tick);
}
