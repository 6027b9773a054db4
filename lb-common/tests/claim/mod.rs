// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A slot for a new flow, as the programs get it: `insert_empty` and one attempt of `displace` in lb-ebpf's `flow::pair`, which the
//! kernel's verifier wants in pieces.

use lb_common::{
    address::Family,
    flow::table::{self, Candidates, Place, Sets, Table, WAYS, Wanted},
};

/// Claims the slot in these sets that is empty, or whose holder yields first. The place's control word is the one that the holder had.
///
/// `None` where all holders live or are being written, or where another CPU has just taken that slot: then the new flow loses, or
/// tries again.
pub fn claim<F: Family, T: Table<F>>(table: T, sets: Sets, wanted: &Wanted<'_>) -> Option<Place<T::Slot>> {
    if let Some(place) = table::claim_empty(table, sets) {
        return Some(place);
    }
    let mut candidates = Candidates::default();
    table::survey(table, sets.0[0], wanted, &mut candidates, 0)?;
    table::survey(table, sets.0[1], wanted, &mut candidates, WAYS as usize)?;
    table::take(table, sets, &candidates)
}
