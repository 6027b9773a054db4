// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many pieces of work on all CPUs, each on a rig that some of the others have used.

use std::{num::NonZero, thread};

use anyhow::Result;
use shunt_tests::packets::{Rig, Room, node, with_rig_for};

/// Room for the flow entries of a piece.
const FLOWS: u32 = 8_192;

/// Does pieces 0 to `pieces`, in any order, and gives what came of each worker's share. The first failure ends a share.
pub fn share<T: Default + Send>(
    pieces: usize,
    work: impl Fn(&mut Rig, usize, &mut T) -> Result<()> + Send + Sync,
) -> Result<Vec<T>> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(pieces);
    let work = |worker: usize| {
        with_rig_for(Room::of(FLOWS), node::setup, |rig| {
            let mut outcome = T::default();
            (worker..pieces).step_by(workers).try_for_each(|piece| work(rig, piece, &mut outcome))?;
            Ok(outcome)
        })
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker that does not panic")).collect()
    })
}
