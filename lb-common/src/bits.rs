// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Words with fields, which travel as plain numbers: through maps, atomics and global functions.

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
