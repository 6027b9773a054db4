// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the fuzz targets compare the shared `no_std` part with: the reference model, compiled in here without the rest of
//! the tests, so that its branches guide the fuzzer too.

#[path = "../../src/reference/mod.rs"]
pub mod reference;
