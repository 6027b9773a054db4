// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What `bench packet` tells its wrapper program: which frame to write, and whose flow to make it.

use bytemuck::{Pod, Zeroable};

/// Array of one [`Template`].
pub const TEMPLATE: &str = "TEMPLATE";
/// Array of one program: the one that is measured.
pub const PROGRAMS: &str = "PROGRAMS";

/// LRU hash: `FlowKey<V4>` -> `Flow<V4>`, as large as the flow table that is measured, for a look-up and nothing else.
pub const LOOKUP: &str = "LOOKUP";
/// Its capacity, and that of the flow tables of a measurement.
pub const FLOWS: u32 = 1 << 20;

/// Names of the bench's programs.
pub mod programs {
    /// Writes an IPv4 frame of [`super::FRAME_LEN_V4`] bytes, and goes on with the program that is measured.
    pub const WRAPPER_V4: &str = "bench_wrapper_v4";
    /// The same for IPv6, with [`super::FRAME_LEN_V6`] bytes.
    pub const WRAPPER_V6: &str = "bench_wrapper_v6";
    /// Returns `XDP_PASS`: the floor of all measurements.
    pub const FLOOR: &str = "bench_floor";
    /// Looks an IPv4 packet's flow up, and returns `XDP_PASS` if it is there.
    pub const LOOKUP: &str = "bench_lookup";
}

/// The smallest frame of Ethernet, without its check sequence's last word: 60 bytes and 4.
pub const FRAME_LEN_V4: usize = 64;
/// Room for the headers of Ethernet, IPv6 and TCP.
pub const FRAME_LEN_V6: usize = 80;

/// Flows that differ in the source port alone; the next so many have another source address.
pub const PORTS_LOG2: u32 = 14;

/// A TCP frame, and which flow's packet it shall become.
///
/// Flow `n` is the frame's with `n` added to the source: its lowest [`PORTS_LOG2`] bits to the port, the others to the
/// address. The frame must have zeroes in their place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Template {
    /// The frame of flow 0, with right checksums; IPv4 uses the first [`FRAME_LEN_V4`] bytes.
    pub frame: [u64; FRAME_LEN_V6 / 8],
    /// Number of the next packet.
    pub counter: u32,
    /// The flow is the packet's number times [`Template::stride`], under this mask: one less than a power of two.
    pub mask: u32,
    /// 1, or another odd number: then flows come in another order than that in which they were made, and stand in memory.
    pub stride: u32,
    /// Zero.
    pub pad: u32,
}
