// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! A window of checked length onto a packet's bytes (direct packet access): a room with `unsafe`.

use core::marker::PhantomData;

use super::wire::Wire;

/// The first bytes of a packet, of a length that was checked.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: usize,
    packet: PhantomData<&'a ()>,
}

impl Frame<'_> {
    /// Reads a value; network byte order is the caller's business.
    #[inline(always)]
    pub fn load<T: Wire>(&self, offset: usize) -> T {
        // SAFETY: the verifier refuses the program unless `offset` and the size of T are within the checked length.
        unsafe { T::load(self.start + offset) }
    }

    /// Writes a value.
    #[inline(always)]
    pub fn store<T: Wire>(&self, offset: usize, value: T) {
        // SAFETY: as in `load`; the packet belongs to this program until it returns.
        unsafe { value.store(self.start + offset) };
    }

    /// [`Frame::load`] with the offset in the instruction: two instructions less.
    #[inline(always)]
    pub fn get<T: Wire, const OFFSET: usize>(&self) -> T {
        // SAFETY: as in `load`.
        unsafe { T::load_at::<OFFSET>(self.start) }
    }

    /// [`Frame::store`] with the offset in the instruction.
    #[inline(always)]
    pub fn put<T: Wire, const OFFSET: usize>(&self, value: T) {
        // SAFETY: as in `store`.
        unsafe { value.store_at::<OFFSET>(self.start) };
    }

    /// `None` where the packet is shorter than `len`.
    #[inline(always)]
    pub(super) fn new(start: usize, end: usize, len: usize) -> Option<Self> {
        if start + len > end { None } else { Some(Self { start, packet: PhantomData }) }
    }

    /// What is left of it behind `len` bytes.
    #[inline(always)]
    pub fn behind(&self, len: usize) -> Self {
        Self { start: self.start + len, packet: PhantomData }
    }
}

/// The first twelve bytes of a frame with its two addresses exchanged.
#[inline(always)]
pub fn swapped(macs: [u32; 3]) -> [u32; 3] {
    let pair = |low: u32, high: u32| low >> 16 | high << 16;
    [pair(macs[1], macs[2]), pair(macs[2], macs[0]), pair(macs[0], macs[1])]
}
