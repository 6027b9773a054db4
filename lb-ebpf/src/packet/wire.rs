// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Unaligned loads and stores as single instructions: a room with `unsafe`.
//!
//! Fields of a packet are not aligned: IP headers follow 14 bytes of Ethernet. The BPF machine does not mind, but the
//! compiler believes that it does and cuts `read_unaligned` into bytes; a plain dereference would be undefined
//! behaviour. So the instruction is named here.

use core::arch::asm;

/// A value that is read from and written to packets at any offset.
pub trait Wire: Copy {
    /// Loads the value at an address.
    ///
    /// # Safety
    /// All of the value's bytes at `address` must be readable.
    unsafe fn load(address: usize) -> Self;
    /// Stores the value at an address.
    ///
    /// # Safety
    /// All of the value's bytes at `address` must be writable.
    unsafe fn store(self, address: usize);
    /// Loads the value at an offset that is part of the instruction.
    ///
    /// # Safety
    /// As for [`Wire::load`].
    unsafe fn load_at<const OFFSET: usize>(start: usize) -> Self;
    /// Stores the value at such an offset.
    ///
    /// # Safety
    /// As for [`Wire::store`].
    unsafe fn store_at<const OFFSET: usize>(self, start: usize);
}

macro_rules! word {
    ($type:ty, $width:literal) => {
        impl Wire for $type {
            #[inline(always)]
            unsafe fn load(address: usize) -> Self {
                let value: u64;
                // SAFETY: the caller promises that the bytes are readable.
                unsafe {
                    asm!(
                        concat!("{value} = *(", $width, " *)({address} + 0)"),
                        value = lateout(reg) value,
                        address = in(reg) address,
                        options(pure, readonly, nostack, preserves_flags)
                    );
                }
                value as $type
            }

            #[inline(always)]
            unsafe fn load_at<const OFFSET: usize>(start: usize) -> Self {
                let value: u64;
                // SAFETY: the caller promises that the bytes are readable.
                unsafe {
                    asm!(
                        concat!("{value} = *(", $width, " *)({start} + {offset})"),
                        value = lateout(reg) value,
                        start = in(reg) start,
                        offset = const OFFSET,
                        options(pure, readonly, nostack, preserves_flags)
                    );
                }
                value as $type
            }

            #[inline(always)]
            unsafe fn store_at<const OFFSET: usize>(self, start: usize) {
                // SAFETY: the caller promises that the bytes are writable.
                unsafe {
                    asm!(
                        concat!("*(", $width, " *)({start} + {offset}) = {value}"),
                        value = in(reg) u64::from(self),
                        start = in(reg) start,
                        offset = const OFFSET,
                        options(nostack, preserves_flags)
                    );
                }
            }

            #[inline(always)]
            unsafe fn store(self, address: usize) {
                // SAFETY: the caller promises that the bytes are writable.
                unsafe {
                    asm!(
                        concat!("*(", $width, " *)({address} + 0) = {value}"),
                        value = in(reg) u64::from(self),
                        address = in(reg) address,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
}

word!(u8, "u8");
word!(u16, "u16");
word!(u32, "u32");
word!(u64, "u64");

impl<const N: usize> Wire for [u32; N] {
    #[inline(always)]
    unsafe fn load(address: usize) -> Self {
        let mut words = [0; N];
        let mut index = 0;
        while index < N {
            // SAFETY: the caller promises that the bytes of the array are readable.
            words[index] = unsafe { u32::load(address + 4 * index) };
            index += 1;
        }
        words
    }

    #[inline(always)]
    unsafe fn store(self, address: usize) {
        let mut index = 0;
        while index < N {
            // SAFETY: the caller promises that the bytes of the array are writable.
            unsafe { self[index].store(address + 4 * index) };
            index += 1;
        }
    }

    #[inline(always)]
    unsafe fn load_at<const OFFSET: usize>(start: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load(start + OFFSET) }
    }

    #[inline(always)]
    unsafe fn store_at<const OFFSET: usize>(self, start: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.store(start + OFFSET) };
    }
}
