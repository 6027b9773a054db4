// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk over IP headers: any bytes, walked as the programs do and as the model does.
#![no_main]

use lb_common::walk::{Fault, MOST_HEADERS, Part, Walk};
use libfuzzer_sys::fuzz_target;
use shunt_fuzz::reference::{Version, walk};

fuzz_target!(|packet: &[u8]| {
    let Some(version) = packet.first().map(|first| if first >> 4 == 4 { Version::V4 } else { Version::V6 }) else {
        return;
    };
    let fixed_len = if version == Version::V4 { 20 } else { 40 };
    if packet.len() < fixed_len || packet.len() > 0xffff {
        return;
    }
    let walked = walk_as_the_programs_do(version, packet);
    match walk::walk(packet, version, 0, packet.len()) {
        Ok(headers) => {
            assert_eq!(walked.fault(), None);
            assert_eq!((walked.offset() as usize, walked.protocol()), (headers.l4, headers.protocol));
            let part = match headers.part {
                walk::Part::Whole => Part::Whole,
                walk::Part::First(_) => Part::First,
                walk::Part::Later(_) => Part::Later,
            };
            assert_eq!(walked.part(), part);
            if let walk::Part::First(id) | walk::Part::Later(id) = headers.part {
                assert_eq!(walked.identification_be().to_ne_bytes(), identification(version, id));
            }
        }
        Err(walk::Fault::Malformed) => assert_eq!(walked.fault(), Some(Fault::Malformed)),
        Err(walk::Fault::TooMany) => assert_eq!(walked.fault(), Some(Fault::TooMany)),
    }
});

fn walk_as_the_programs_do(version: Version, packet: &[u8]) -> Walk {
    let half = |at: usize| u16::from_ne_bytes([packet[at], packet[at + 1]]);
    if version == Version::V4 {
        return Walk::v4(packet[0], half(4), half(6), packet[9]);
    }
    let mut walk = Walk::v6(packet[0], packet[6]);
    for _ in 0..=MOST_HEADERS {
        if walk.is_at_header() {
            let at = walk.offset() as usize;
            let header = packet.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
            walk = walk.step(header, packet.len() as u32);
        }
    }
    assert!(!walk.is_at_header(), "not at an end");
    walk
}

/// As it stands in the packet; of IPv4 in the first two bytes.
fn identification(version: Version, id: u32) -> [u8; 4] {
    match version {
        Version::V4 => [(id >> 8) as u8, id as u8, 0, 0],
        Version::V6 => id.to_be_bytes(),
    }
}
