// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! SCTP's checksum, a CRC32c: its product is a global function.

use lb_common::crc32c;

use crate::kernel::global_fn;

global_fn! {
    /// [`crc32c::multiply`].
    pub fn multiply(a: u32, b: u32) -> u32 = crc32c::multiply => crc32c_multiply
}
