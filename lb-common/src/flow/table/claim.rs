// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A slot for a new flow: an empty one, or that of whoever yields first.

use super::{
    super::{Control, FlowState, word},
    Holder, Now, Place, Rank, Sets, Slot, Table, WAYS, field,
    rank::AGE_BITS,
};
use crate::address::Family;

/// Whose slot was taken, and who takes it.
pub struct Wanted<'a> {
    /// The time.
    pub now: Now,
    /// [`Entry::class`] of the new flow.
    pub class: u8,
    /// Time-outs by state.
    pub timeouts: &'a [u32; FlowState::COUNT],
    /// Index of a slot that does not yield, whoever is there.
    pub spared: u32,
}

/// Claims an empty slot in these sets: of two sets with room, in the one with more of it, without which the second choice would be
/// worth little. `None` where there is none, or where another CPU was quicker: then it is to be asked who yields.
#[inline(always)]
pub fn claim_empty<F: Family, T: Table<F>>(table: T, sets: Sets) -> Option<Place<T::Slot>> {
    let one = empty_ways(table, sets.0[0])?;
    let other = empty_ways(table, sets.0[1])?;
    let (set, empty) = if other.count_ones() > one.count_ones() { (sets.0[1], other) } else { (sets.0[0], one) };
    if empty == 0 {
        return None;
    }
    // The number of the lowest bit of four, for which BPF has no instruction.
    let lowest = empty & empty.wrapping_neg();
    let way = (lowest >> 1) - (lowest >> 3);
    let slot = table.slot(table.set(set)?, way);
    let control = field::control(slot);
    let is_claimed =
        control.is_empty() && slot.compare_exchange(word::CONTROL, control.to_bits(), control.claimed().to_bits());
    is_claimed.then_some(Place { index: set * WAYS + way, slot, control })
}

/// The ways of a set that are empty, a bit each: so that the kernel's verifier sees one path and not one for each pattern.
#[inline(always)]
fn empty_ways<F: Family, T: Table<F>>(table: T, set: u32) -> Option<u32> {
    let set = table.set(set)?;
    let (mut empty, mut way) = (0, 0);
    while way < WAYS {
        empty |= field::control(table.slot(set, way)).emptiness() << way;
        way += 1;
    }
    Some(empty)
}

/// The slots of a tuple's two sets, as they were when it was asked who yields first. It stands where the caller has room: the kernel's
/// verifier must not follow each way to each rank of eight slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidates {
    /// Their control words.
    pub controls: [u64; 2 * WAYS as usize],
    /// [`Holder::urge`] of each.
    pub urges: [u32; 2 * WAYS as usize],
}

/// Asks who is in a set, and how urgently each yields; for the candidates from number `first` on.
#[inline(always)]
pub fn survey<F: Family, T: Table<F>>(
    table: T,
    set: u32,
    wanted: &Wanted<'_>,
    candidates: &mut Candidates,
    first: usize,
) -> Option<()> {
    let slots = table.set(set)?;
    let mut way = 0;
    while way < WAYS {
        let slot = table.slot(slots, way);
        let control = field::control(slot);
        let number = (first + way as usize) % candidates.controls.len();
        candidates.controls[number] = control.to_bits();
        let urge = holder::<F, _>(slot, control, Some(wanted.class), wanted.timeouts).urge(wanted.now);
        candidates.urges[number] = if set * WAYS + way == wanted.spared { 0 } else { urge };
        way += 1;
    }
    Some(())
}

/// Whether any of the candidates yields.
#[inline(always)]
#[must_use]
pub fn yields(candidates: &Candidates) -> bool {
    let (mut most, mut number) = (0, 0);
    while number < candidates.urges.len() {
        most |= candidates.urges[number] >> AGE_BITS;
        number += 1;
    }
    most != 0
}

/// Who yields first in a set.
struct First {
    /// [`Holder::urge`].
    urge: u32,
    /// Number of the candidate.
    number: usize,
    /// Ways of the set that nobody would miss.
    free: u32,
}

#[inline(always)]
fn first_to_yield(candidates: &Candidates, from: usize) -> First {
    let mut first = First { urge: 0, number: 0, free: 0 };
    let mut number = from;
    while number < from + WAYS as usize {
        let urge = candidates.urges[number];
        // One where the rank is that of a connection that is over, or higher; without a branch.
        first.free += ((urge >> AGE_BITS) + (16 - Rank::OVER.to_bits())) >> 4;
        if urge > first.urge {
            (first.urge, first.number) = (urge, number);
        }
        number += 1;
    }
    first
}

/// Claims the slot of the candidate that yields first, if it is still what it was: of two sets with room, in the one with more of it,
/// without which the second choice would be worth little.
#[inline(always)]
pub fn take<F: Family, T: Table<F>>(table: T, sets: Sets, candidates: &Candidates) -> Option<Place<T::Slot>> {
    let one = first_to_yield(candidates, 0);
    let other = first_to_yield(candidates, WAYS as usize);
    let is_other = if one.free > 0 && other.free > 0 { other.free > one.free } else { other.urge > one.urge };
    let First { urge, number, .. } = if is_other { other } else { one };
    if urge < 1 << AGE_BITS {
        return None;
    }
    let index = sets.0[(number / WAYS as usize) & 1] * WAYS + number as u32 % WAYS;
    let slot = table.at(index)?;
    let control = Control::from_bits(candidates.controls[number % candidates.controls.len()]);
    slot.compare_exchange(word::CONTROL, control.to_bits(), control.claimed().to_bits()).then_some(Place {
        index,
        slot,
        control,
    })
}

/// What there is to know of the flow in a slot; `class` is that of whoever wants the place, if that matters.
#[inline(always)]
pub fn holder<F: Family, S: Slot>(
    slot: S,
    control: Control,
    class: Option<u8>,
    timeouts: &[u32; FlowState::COUNT],
) -> Holder {
    Holder {
        control,
        born: field::born::<F, _>(slot),
        is_own_class: class.is_some_and(|class| class == field::class::<F, _>(slot)),
        timeout: timeouts[control.state().index()],
    }
}
