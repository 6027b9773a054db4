// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Bounds that the verifier sees: where the compiler knows one already it drops the check, and the verifier is lost.

use core::arch::asm;

/// The value, about which the compiler now knows nothing: a bound that is checked on it stays where the verifier sees it.
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // One instruction: the kernel refuses two lines of debug information for the same one, as without any it would be.
    // SAFETY: it has no effect.
    unsafe { asm!("{value} = {value}", value = inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}
