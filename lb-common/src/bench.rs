// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What `bench packet` tells its wrapper programs: which packets to send, and of which flows; and the bare table.

use bytemuck::{Pod, Zeroable};

use crate::flow::protocol;

/// Array of one [`Script`].
pub const SCRIPT: &str = "SCRIPT";
/// Array of one program: the XDP program that is measured.
pub const XDP_PROGRAMS: &str = "XDP_PROGRAMS";
/// Array of two programs: those of TC that are measured, by [`Step::program`].
pub const TC_PROGRAMS: &str = "TC_PROGRAMS";

/// Entries in the flow tables of a measurement, of each family.
pub const FLOWS: u32 = 1 << 20;

/// Names of the bench's programs.
pub mod programs {
    /// XDP: writes an IPv4 frame of [`super::FRAME_LEN_V4`] bytes, and goes on with the program that is measured.
    pub const XDP_V4: &str = "bench_xdp_v4";
    /// The same for IPv6, with [`super::FRAME_LEN_V6`] bytes.
    pub const XDP_V6: &str = "bench_xdp_v6";
    /// TC: as [`XDP_V4`].
    pub const TC_V4: &str = "bench_tc_v4";
    /// TC: as [`XDP_V6`].
    pub const TC_V6: &str = "bench_tc_v6";
    /// XDP: lets the packet pass: the floor of all measurements.
    pub const XDP_FLOOR: &str = "bench_xdp_floor";
    /// TC: the same.
    pub const TC_FLOOR: &str = "bench_tc_floor";
    /// XDP: enters the packet's flow in the bare table.
    pub const XDP_FILL: &str = "bench_xdp_fill";
    /// XDP: rewrites the packet by the bare table, with one look-up, and sends it back.
    pub const XDP_BARE: &str = "bench_xdp_bare";
    /// TC: the same, but lets it pass.
    pub const TC_BARE: &str = "bench_tc_bare";
}

/// The smallest frame of Ethernet, without its check sequence's last word: 60 bytes and 4.
pub const FRAME_LEN_V4: usize = 64;
/// Room for the headers of Ethernet, IPv6 and TCP.
pub const FRAME_LEN_V6: usize = 80;

/// Flows that differ in the source port alone; the next so many have another source address.
pub const PORTS_LOG2: u32 = 14;

/// Most steps of a [`Script`].
pub const STEPS: usize = 8;

/// A frame, in words; IPv4 uses the first [`FRAME_LEN_V4`] bytes.
pub type Frame = [u64; FRAME_LEN_V6 / 8];

/// One packet of a [`Script`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Step {
    /// A client's frame of flow 0, or an answer with zeroes for addresses and ports; its checksums right.
    pub frame: Frame,
    /// IP protocol number.
    pub protocol: u32,
    /// Which program of the array it goes to.
    pub program: u32,
    /// 1 where it answers the packet before it, as that has left the program: it comes from where that one went. Else 0.
    pub is_answer: u32,
    /// 1 after the last packet of a flow: the next one is the next flow's. Else 0.
    pub ends_flow: u32,
}

impl Step {
    /// A client's packet.
    #[must_use]
    pub const fn new(frame: Frame, protocol: u8, program: u32) -> Self {
        Self { frame, protocol: protocol as u32, program, is_answer: 0, ends_flow: 0 }
    }

    /// Where the checksum stands in its layer 4 header.
    #[inline(always)]
    #[must_use]
    pub const fn check_offset(&self) -> usize {
        if self.protocol == protocol::UDP as u32 { 6 } else { 16 }
    }
}

/// Packets that are sent again and again, each time of the next flow.
///
/// Flow `n` has `n` added to the client's address and port: its lowest [`PORTS_LOG2`] bits to the port, the others to the
/// address. The frames must have zeroes in their place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Script {
    /// In their order, the first [`Script::count`] of them.
    pub steps: [Step; STEPS],
    /// How many.
    pub count: u32,
    /// Which comes next.
    pub next: u32,
    /// Number of the next flow.
    pub counter: u32,
    /// The flow is that number times [`Script::stride`], under this mask: one less than a power of two.
    pub mask: u32,
    /// 1, or another odd number: then flows come in another order than that in which they were made, and stand in memory.
    pub stride: u32,
    /// The device by which the packets come. The wrapper does not need it.
    pub ifindex: u32,
}

/// Array of [`BareSet`], memory-mapped: the least that a flow table can be.
pub const BARE: &str = "BARE";
/// Its length: as many entries as a flow table of the measurement has.
pub const BARE_SETS: u32 = FLOWS / BARE_WAYS as u32;
/// Entries of a set.
pub const BARE_WAYS: usize = 4;

/// 256 bytes.
pub type BareSet = [BareEntry; BARE_WAYS];

/// A flow of the bare table and how its packets are rewritten, in a line of memory. Addresses and ports are as in packets: the
/// source first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BareEntry {
    /// Both addresses of the packet.
    pub addresses: [u32; 2],
    /// Both ports.
    pub ports: u32,
    /// IP protocol number; 0 in an entry that is free.
    pub protocol: u32,
    /// Its addresses as it leaves.
    pub new_addresses: [u32; 2],
    /// Its ports.
    pub new_ports: u32,
    /// Its Ethernet addresses.
    pub macs: [u32; 3],
    /// What the IPv4 header's checksum gains.
    pub ip_delta: u32,
    /// What that of layer 4 gains.
    pub l4_delta: u32,
    /// Zero.
    pub pad: [u32; 4],
}

const _: () = assert!(size_of::<BareSet>() == 256);

/// Where the bare table sends everything.
pub const BARE_BACKEND: [u8; 4] = [10, 2, 1, 1];
/// To this port.
pub const BARE_PORT: u16 = 8080;
/// From and to these Ethernet addresses.
pub const BARE_MACS: [u32; 3] = [0x0000_0002, 0x0002_1100, 0x2200_0000];

/// The set of a flow.
#[inline(always)]
#[must_use]
pub const fn bare_set(addresses: [u32; 2], ports: u32, protocol: u32) -> u32 {
    let addresses = addresses[0] as u64 | (addresses[1] as u64) << 32;
    let ports = ports as u64 | (protocol as u64) << 32;
    let mixed = addresses.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ports.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    ((mixed ^ (mixed >> 32)).wrapping_mul(0x9fb2_1c65_1e98_df25) >> (64 - BARE_SETS.ilog2())) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    #[test]
    fn the_bare_table_has_room_for_the_flows_of_the_bench() {
        let mut sets = vec![0; BARE_SETS as usize];
        let server = u32::from_ne_bytes([192, 0, 2, 1]);
        let server_port = u32::from(30_081_u16.to_be()) << 16;
        for flow in 0..1_u32 << 16 {
            let client = u32::from_ne_bytes([203, 0, 113, 32 + (flow >> PORTS_LOG2) as u8]);
            let port = 0x4000 + (flow & ((1 << PORTS_LOG2) - 1)) as u16;
            let ports = u32::from(port.to_be()) | server_port;
            sets[bare_set([client, server], ports, protocol::TCP.into()) as usize] += 1;
        }
        assert!(sets.iter().all(|&entries| entries <= BARE_WAYS));
    }
}
