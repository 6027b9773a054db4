// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Refuse it: a packet is turned into an ICMP error ([`error`]) or a TCP reset ([`reset`]) for its sender. TC only.
//!
//! Knows `packet`. Runs in a program of its own, behind a tail call ([`tail`](crate::kernel::tail)).

mod error;
mod icmp;
mod reset;

use lb_common::{
    config::role,
    verdict::{Fate, Packed},
};

use self::icmp::Icmp;
use crate::{
    kernel::maps,
    packet::{Exit, Packet, SkbPacket, header::ETHERNET_LEN, skb::Request},
    send::next_hop::way_of_net,
};

/// Turns the packet round.
#[inline(always)]
pub fn answer<F: Icmp>(packet: &mut SkbPacket) -> i32 {
    let request = packet.request();
    let result = if request.is_reset { reset::<F>(packet, request) } else { reject::<F>(packet, request) };
    match result.unpack() {
        Ok(()) if is_at_net(packet) => hand_to_net(packet),
        Ok(()) => packet.send(packet.ifindex(), Exit::Wire),
        Err(stop) => {
            maps::count_reason(stop.reason());
            if stop.fate() == Fate::Pass { SkbPacket::PASS } else { SkbPacket::DROP }
        }
    }
}

/// Whether the packet was refused at the net: its sender is this node, or the stack knows the way to it.
#[inline(always)]
fn is_at_net(packet: &SkbPacket) -> bool {
    maps::find_interface(packet.ifindex()).is_some_and(|device| device.role & role::NET != 0)
}

#[inline(always)]
fn hand_to_net(packet: &SkbPacket) -> i32 {
    let (Ok(net), Some(frame)) = (way_of_net(), packet.frame(ETHERNET_LEN)) else { return SkbPacket::DROP };
    frame.store(0, net.way.macs);
    packet.send(net.way.ifindex, net.exit)
}

// verifier: not inlined, for the stack.
#[inline(never)]
fn reset<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Packed {
    Packed::pack(reset::turn_into_reset::<F>(packet, request))
}

// verifier: as above.
#[inline(never)]
fn reject<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Packed {
    Packed::pack(error::turn_into_error::<F>(packet, request))
}
