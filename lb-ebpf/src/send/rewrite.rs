// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Rewrites a packet by its flow's instruction: addresses, ports, checksums (DNAT, SNAT, and both undone); for a packet that
//! leaves here also the TTL and the Ethernet addresses.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use lb_common::{
    checksum,
    flow::{Flow, protocol},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::work::{Dissected, Scratch},
    packet::{
        Exit, Packet,
        header::{ETHERNET_LEN, Header, TCP_LEN, UDP_LEN, tcp, udp},
        layout::{Headers, Layout},
    },
};

const FAILED: Stop = Stop::drop(Reason::RewriteFailed);

/// Rewrites a TCP or UDP packet. At XDP its layer-4 checksum is ours to change, at TC the kernel's.
#[inline(always)]
pub fn translate<P: Packet, F: Header>(
    packet: &mut P,
    layout: impl Layout<F>,
    protocol: u8,
    flow: &Flow<F>,
    exit: Exit,
) -> Stage<()> {
    if P::IS_XDP {
        translate_frame(packet, layout, protocol, flow, exit)
    } else {
        translate_buffer(packet, layout, protocol, flow, exit)
    }
}

#[inline(always)]
fn translate_frame<P: Packet, F: Header>(
    packet: &mut P,
    layout: impl Layout<F>,
    protocol: u8,
    flow: &Flow<F>,
    exit: Exit,
) -> Stage<()> {
    let delta = checksum::fold(u64::from(flow.address_delta) + u64::from(flow.port_delta));
    if protocol == protocol::TCP {
        let Some(headers) = layout.headers(packet, TCP_LEN) else { return Err(FAILED) };
        write_headers(&headers, flow, exit);
        headers.l4.store(tcp::CHECK, checksum::apply(headers.l4.load(tcp::CHECK), delta));
    } else {
        let Some(headers) = layout.headers(packet, UDP_LEN) else { return Err(FAILED) };
        write_headers(&headers, flow, exit);
        headers.l4.store(udp::CHECK, checksum::apply_udp(headers.l4.load(udp::CHECK), delta));
    }
    Ok(())
}

/// The layer-4 checksum is the kernel's to change: only it knows whether the field holds a checksum or, with
/// offload, the sum of the pseudo-header alone. Last, because the helper may move the data.
#[inline(always)]
fn translate_buffer<P: Packet, F: Header>(
    packet: &mut P,
    layout: impl Layout<F>,
    protocol: u8,
    flow: &Flow<F>,
    exit: Exit,
) -> Stage<()> {
    let Some(headers) = layout.headers(packet, UDP_LEN) else { return Err(FAILED) };
    write_headers(&headers, flow, exit);
    let (check, flags) = if protocol == protocol::TCP {
        (layout.l4() + tcp::CHECK, 0)
    } else {
        (layout.l4() + udp::CHECK, u64::from(BPF_F_MARK_MANGLED_0))
    };
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | F::l4_checksum_flags();
    packet.change_l4_checksum(check, flow.address_delta, flags | pseudo)?;
    packet.change_l4_checksum(check, flow.port_delta, flags)
}

/// Writes what both doors write alike: Ethernet addresses, TTL, IP addresses and IP checksum, ports.
#[inline(always)]
pub fn write_headers<F: Header>(headers: &Headers<'_>, flow: &Flow<F>, exit: Exit) {
    if exit == Exit::Wire {
        headers.ethernet.store(0, flow.macs);
    }
    F::write_addresses(&headers.ip, &flow.src, &flow.dst, flow.address_delta, exit != Exit::Stack);
    headers.l4.store(0, flow.sport_be);
    headers.l4.store(2, flow.dport_be);
}

/// Rewrites the addresses of a later fragment by the instruction in the scratch space: all that stands here of what is
/// translated.
#[inline(always)]
pub fn translate_fragment<P: Packet, F: Header>(packet: &mut P, scratch: &Scratch<F>, exit: Exit) -> Stage<()> {
    let Dissected { at, .. } = scratch.dissected;
    let flow = &scratch.original;
    let Some(ethernet) = packet.frame(ETHERNET_LEN) else { return Err(FAILED) };
    let Some(ip) = at.ip::<F>(packet) else { return Err(FAILED) };
    if exit == Exit::Wire {
        ethernet.store(0, flow.macs);
    }
    F::write_addresses(&ip, &flow.src, &flow.dst, flow.address_delta, exit != Exit::Stack);
    if !F::IS_V4 {
        packet.add_to_sum(flow.address_delta);
    }
    Ok(())
}
