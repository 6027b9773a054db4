// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The contract between the eBPF programs and the agent, and the arithmetic that both must do alike.
//!
//! Everything here is `no_std` and pure: no maps, no packets, no clock. It is compiled for the BPF target and for the
//! host, so that unit and property tests run the very code that the kernel runs. It must not know of aya or Kubernetes.

#![no_std]
#![deny(unsafe_code)]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod bench;
pub mod bits;
pub mod checksum;
pub mod clock;
pub mod config;
pub mod conntrack;
pub mod counters;
pub mod crc32c;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod hash;
#[cfg(not(target_arch = "bpf"))]
pub mod maglev;
pub mod maps;
pub mod socket;
pub mod trace;
pub mod verdict;
pub mod walk;
