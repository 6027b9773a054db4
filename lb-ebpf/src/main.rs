// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Shunt's eBPF programs: the doors (hooks) XDP, TC ingress, TC egress, and those of sockets. What happens behind them is told
//! by [`pipeline`] for packets, by [`socket`] for sockets.
//!
//! The folders stand in the order of a packet's way, and know only those before them: `kernel`, `packet`, `parse`, `flow`,
//! `send`, `decide`; `answer` and `socket` beside them; then `pipeline`, and here.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "a program has no API: doc comments here are for whoever reads the code")]

mod answer;
mod decide;
mod flow;
mod kernel;
mod net;
mod packet;
mod parse;
mod pipeline;
mod send;
mod socket;
mod trace;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};
use lb_common::{
    address::{Family, V4, V6},
    maps::tail::{NET_RARE, TC_EGRESS_RARE, TC_INGRESS_RARE},
};

use crate::{
    kernel::{clock, tail},
    packet::{
        Packet, SkbPacket, XdpPacket, ethertype,
        header::{ETHERNET_LEN, behind_tags, is_tag},
    },
    socket::{Call, context::Socket},
};

/// The XDP door of an uplink.
#[xdp]
pub fn shunt_xdp(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context.ctx);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::plain_ingress::<_, V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => pipeline::plain_ingress::<_, V6>(&mut packet),
        Some(ethertype) if is_tag(ethertype) => tail::RARE,
        _ => XdpPacket::PASS,
    };
    tail::go_on_xdp(&context, next) as u32
}

/// Its program for packets that are not plain.
#[xdp]
pub fn shunt_xdp_rare(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context.ctx);
    let (ethertype, l3) = behind_tags(&packet);
    let next = match ethertype {
        V4::ETHERTYPE_BE => pipeline::rare_ingress::<_, V4>(&mut packet, l3),
        V6::ETHERTYPE_BE => pipeline::rare_ingress::<_, V6>(&mut packet, l3),
        _ => XdpPacket::PASS,
    };
    tail::go_on_xdp(&context, next) as u32
}

/// The TC door of any device, for packets that arrive.
#[classifier]
pub fn shunt_tc_ingress(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::plain_ingress::<_, V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => pipeline::plain_ingress::<_, V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, TC_INGRESS_RARE)
}

/// Its program for packets that are not plain. At TC tags are not in the frame but in the buffer's metadata.
#[classifier]
pub fn shunt_tc_ingress_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::rare_ingress::<_, V4>(&mut packet, ETHERNET_LEN as u32),
        Some(V6::ETHERTYPE_BE) => pipeline::rare_ingress::<_, V6>(&mut packet, ETHERNET_LEN as u32),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, TC_INGRESS_RARE)
}

/// The TC door of any device, for packets that leave: replies, translated back for the client behind the device.
#[classifier]
pub fn shunt_tc_egress(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::plain_egress::<_, V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => pipeline::plain_egress::<_, V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, TC_EGRESS_RARE)
}

/// Its program for packets that are not plain.
#[classifier]
pub fn shunt_tc_egress_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::rare_egress::<_, V4>(&mut packet, ETHERNET_LEN as u32),
        Some(V6::ETHERTYPE_BE) => pipeline::rare_egress::<_, V6>(&mut packet, ETHERNET_LEN as u32),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, TC_EGRESS_RARE)
}

/// The net, for packets that leave by its device untranslated, and by the loopback device to NodePorts of this node.
#[classifier]
pub fn shunt_net(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::plain_net::<_, V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => pipeline::plain_net::<_, V6>(&mut packet),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, NET_RARE)
}

/// Its program for packets that are not plain.
#[classifier]
pub fn shunt_net_rare(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    let next = match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => pipeline::rare_net::<_, V4>(&mut packet, ETHERNET_LEN as u32),
        Some(V6::ETHERTYPE_BE) => pipeline::rare_net::<_, V6>(&mut packet, ETHERNET_LEN as u32),
        _ => SkbPacket::PASS,
    };
    tail::go_on_tc(&context, next, NET_RARE)
}

/// The net's device, for packets that the net's program has made arrive by it.
#[classifier]
pub fn shunt_net_arrival(context: TcContext) -> i32 {
    let packet = SkbPacket::new(context.skb.skb);
    match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => net::arrive::<V4>(&packet),
        Some(V6::ETHERTYPE_BE) => net::arrive::<V6>(&packet),
        _ => SkbPacket::PASS,
    }
}

/// The program that answers refused packets: TC only. Other programs go on here once they have counted why.
#[classifier]
pub fn shunt_tc_answer(context: TcContext) -> i32 {
    let mut packet = SkbPacket::new(context.skb.skb);
    match ethertype(&packet) {
        Some(V4::ETHERTYPE_BE) => answer::answer::<V4>(&mut packet),
        Some(V6::ETHERTYPE_BE) => answer::answer::<V6>(&mut packet),
        _ => SkbPacket::DROP,
    }
}

/// The socket door: `connect`.
#[cgroup_sock_addr(connect4)]
pub fn shunt_connect4(context: SockAddrContext) -> i32 {
    socket::translate::<V4>(&Socket::new(context.sock_addr), Call::Connect)
}

#[cgroup_sock_addr(connect6)]
pub fn shunt_connect6(context: SockAddrContext) -> i32 {
    socket::translate::<V6>(&Socket::new(context.sock_addr), Call::Connect)
}

/// `sendto` and `sendmsg` with an address.
#[cgroup_sock_addr(sendmsg4)]
pub fn shunt_sendmsg4(context: SockAddrContext) -> i32 {
    socket::translate::<V4>(&Socket::new(context.sock_addr), Call::Send)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn shunt_sendmsg6(context: SockAddrContext) -> i32 {
    socket::translate::<V6>(&Socket::new(context.sock_addr), Call::Send)
}

/// `recvmsg` and its like.
#[cgroup_sock_addr(recvmsg4)]
pub fn shunt_recvmsg4(context: SockAddrContext) -> i32 {
    socket::show_sender::<V4>(&Socket::new(context.sock_addr))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn shunt_recvmsg6(context: SockAddrContext) -> i32 {
    socket::show_sender::<V6>(&Socket::new(context.sock_addr))
}

/// `getpeername`.
#[cgroup_sock_addr(getpeername4)]
pub fn shunt_getpeername4(context: SockAddrContext) -> i32 {
    socket::show_peer::<V4>(&Socket::new(context.sock_addr))
}

#[cgroup_sock_addr(getpeername6)]
pub fn shunt_getpeername6(context: SockAddrContext) -> i32 {
    socket::show_peer::<V6>(&Socket::new(context.sock_addr))
}

/// `close`.
#[cgroup_sock(sock_release)]
pub fn shunt_sock_release(context: SockContext) -> i32 {
    socket::release(&context)
}

/// No door: tells the agent, by a test run, the time by which the programs go. Writes jiffies to the start of the frame.
#[xdp]
pub fn shunt_clock(context: XdpContext) -> u32 {
    let packet = XdpPacket::new(context.ctx);
    if let Some(frame) = packet.frame(size_of::<u64>()) {
        frame.store(0, clock::jiffies());
    }
    XdpPacket::PASS as u32
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for: GPL-only helpers are used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
