// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Words with fields, which travel as plain numbers: through maps, atomics and global functions; and words that are one with another.

/// Two words as one, as they stand in memory.
#[inline(always)]
#[must_use]
pub const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Gives a type around a `u64` the ways from the number and back.
macro_rules! plain_bits {
    ($type:ident) => {
        impl $type {
            /// From the plain number.
            #[inline(always)]
            #[must_use]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// As a plain number.
            #[inline(always)]
            #[must_use]
            pub const fn to_bits(self) -> u64 {
                self.0
            }
        }
    };
}
pub(crate) use plain_bits;
