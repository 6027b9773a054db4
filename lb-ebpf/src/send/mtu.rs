// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The MTU of the way (path MTU discovery): what is too long for it, and will not be segmented (GSO).

use lb_common::{
    flow::protocol,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::{global_fn, work::Offsets},
    packet::{
        Packet,
        header::{ETHERNET_LEN, UDP_LEN, tcp},
    },
};

global_fn! {
    /// [`check_mtu`].
    pub fn check_mtu_global<P: Packet>(packet: &mut P, protocol: u8, mtu: u16, l4: u32) -> Stage<()>
        = check_mtu => check_mtu_xdp | check_mtu_tc
}

/// A packet longer than the way's MTU goes on if it will be cut into segments that are not; else its sender must send
/// shorter ones, also where it lets routers cut them: nothing between here and the wire does, as the stack would take the packet,
/// which bears its own address, for a forged one. `l4` is where its layer 4 begins.
#[inline(always)]
fn check_mtu<P: Packet>(packet: &mut P, protocol: u8, mtu: u16, l4: u32) -> Stage<()> {
    let segment_len = packet.segment_len();
    let l4_len = if protocol == protocol::TCP { tcp_len(packet, l4) } else { UDP_LEN as u32 };
    let headers_len = l4.wrapping_sub(ETHERNET_LEN as u32) + l4_len;
    // SCTP's segments have lengths of their own, which their sender has found to fit.
    if segment_len == SEGMENTS_OF_SCTP || segment_len != 0 && headers_len + segment_len <= u32::from(mtu) {
        return Ok(());
    }
    if !packet.is_trace() {
        packet.note_mtu(mtu);
    }
    Err(Stop::reject(Reason::TooBig))
}

/// `GSO_BY_FRAGS` of the kernel's `include/linux/skbuff.h`.
const SEGMENTS_OF_SCTP: u32 = 0xffff;

/// Length of a TCP header.
#[inline(always)]
fn tcp_len<P: Packet>(packet: &P, l4: u32) -> u32 {
    let at = Offsets { l3: ETHERNET_LEN as u32, l4 };
    at.l4_at(packet, tcp::DATA_OFFSET as u32, 1).map_or(0, |field| u32::from(field.load::<u8>(0) >> 4) * 4)
}
