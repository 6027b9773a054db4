// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The program that answers refused packets: with an ICMP error ([`reject`]) or a TCP reset ([`reset`]). TC only; other
//! programs go on here ([`tail`](crate::tail)) once they have counted why.

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    address::{Family, V4, V6},
    verdict::{Fate, Packed},
};

use crate::{
    ethertype, maps,
    packet::{Exit, Packet, Request, SkbPacket},
    reject::{self, Icmp},
    reset,
};

/// Turns the packet round.
#[classifier]
pub fn shunt_tc_answer(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let request = packet.request();
    match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => answer::<V4>(&mut packet, request),
        Some(V6::ETHERTYPE_BE) => answer::<V6>(&mut packet, request),
        _ => SkbPacket::DROP,
    }
}

#[inline(always)]
fn answer<F: Icmp>(packet: &mut SkbPacket, request: Request) -> i32 {
    let result = if request.is_reset { reset::<F>(packet, request) } else { reject::<F>(packet, request) };
    match result.unpack() {
        Ok(()) => packet.send(packet.ifindex(), Exit::Wire),
        Err(stop) => {
            maps::count_reason(stop.reason());
            if stop.fate() == Fate::Pass { SkbPacket::PASS } else { SkbPacket::DROP }
        }
    }
}

// verifier: not inlined, for the stack.
#[inline(never)]
fn reset<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Packed {
    Packed::pack(reset::turn_into_reset::<F>(packet, request))
}

// verifier: as above.
#[inline(never)]
fn reject<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Packed {
    Packed::pack(reject::turn_into_error::<F>(packet, request))
}
