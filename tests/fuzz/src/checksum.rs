// SPDX-License-Identifier: MIT OR Apache-2.0
//! Internet checksums: corrected word by word, they are what a sum over everything gives.
#![no_main]

use lb_common::checksum::{Delta, apply, finish, fold, negate};
use libfuzzer_sys::fuzz_target;
use shunt_fuzz::reference::checksum::{field, sum};

fuzz_target!(|input: (u16, Vec<(u16, u16)>)| {
    let (check, words) = input;
    if words.len() > 40 {
        return;
    }
    let bytes =
        |pick: fn(&(u16, u16)) -> u16| -> Vec<u8> { words.iter().flat_map(|pair| pick(pair).to_be_bytes()).collect() };
    let (old, new) = (bytes(|pair| pair.0), bytes(|pair| pair.1));
    let delta = words.iter().fold(Delta::ZERO, |delta, &(old, new)| delta.replace16(old.to_be(), new.to_be())).fold();
    let corrected = u16::from_be(apply(check.to_be(), delta.into()));
    let expected = field(sum(&new), sum(&old) + u64::from(check));
    // Zero has two forms; what is all zero keeps the one that it had (RFC 1624 section 3).
    assert_eq!(corrected % 0xffff, expected % 0xffff);
    assert_eq!(apply(apply(check, delta.into()), negate(delta).into()) % 0xffff, check % 0xffff);
    let total: u64 = words.iter().map(|pair| u64::from(pair.0)).sum();
    assert_eq!(u64::from(fold(total)) % 0xffff, total % 0xffff);
    assert_eq!(finish(total) % 0xffff, field(total, 0) % 0xffff);
});
