// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP's checksum: corrected for new ports without the packet, it is that of the packet with new ports.
#![no_main]

use lb_common::crc32c::{correct, multiply};
use libfuzzer_sys::fuzz_target;
use shunt_fuzz::reference::crc32c;

fuzz_target!(|input: (u32, u32, Vec<u8>)| {
    let (old, new, rest) = input;
    let Ok(len) = u16::try_from(rest.len()) else { return };
    let packet = |ports: u32| [&ports.to_ne_bytes()[..], &rest].concat();
    let [before, after] = [old, new].map(|ports| u32::from_ne_bytes(crc32c(&packet(ports)).to_le_bytes()));
    assert_eq!(correct(before, old, new, len, multiply), after);
});
