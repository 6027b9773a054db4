// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Rewrites a packet by its flow's instruction: addresses, ports, checksums (DNAT, SNAT, and both undone); for a packet that
//! leaves here also the TTL and the Ethernet addresses.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use lb_common::{
    checksum,
    flow::protocol,
    verdict::{Reason, Stage, Stop},
};

use super::Sending;
use crate::{
    kernel::work::{Dissected, Instruction, Scratch},
    packet::{
        Packet,
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
    flow: &Instruction<F>,
    sending: &Sending,
) -> Stage<()> {
    if P::IS_XDP {
        translate_frame(packet, layout, protocol, flow, sending)
    } else {
        translate_buffer(packet, layout, protocol, flow, sending)
    }
}

#[inline(always)]
fn translate_frame<P: Packet, F: Header>(
    packet: &mut P,
    layout: impl Layout<F>,
    protocol: u8,
    flow: &Instruction<F>,
    sending: &Sending,
) -> Stage<()> {
    let deltas = u32::from(flow.address_delta) + u32::from(flow.port_delta);
    if protocol == protocol::TCP {
        let Some(headers) = layout.headers(packet, TCP_LEN) else { return Err(FAILED) };
        write_headers(&headers, flow, sending);
        let check = headers.l4.get::<u16, { tcp::CHECK }>();
        headers.l4.put::<u16, { tcp::CHECK }>(checksum::apply(check, deltas));
    } else {
        let Some(headers) = layout.headers(packet, UDP_LEN) else { return Err(FAILED) };
        write_headers(&headers, flow, sending);
        let check = headers.l4.get::<u16, { udp::CHECK }>();
        headers.l4.put::<u16, { udp::CHECK }>(checksum::apply_udp(check, deltas));
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
    flow: &Instruction<F>,
    sending: &Sending,
) -> Stage<()> {
    let Some(headers) = layout.headers(packet, UDP_LEN) else { return Err(FAILED) };
    write_headers(&headers, flow, sending);
    let is_tcp = protocol == protocol::TCP;
    let (check, flags) = if is_tcp { (tcp::CHECK, 0) } else { (udp::CHECK, u64::from(BPF_F_MARK_MANGLED_0)) };
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | F::l4_checksum_flags();
    let before = field(packet, layout, is_tcp)?;
    packet.change_l4_checksum(layout.l4() + check, flow.address_delta, flags | pseudo)?;
    if flow.port_delta == 0 || flow.port_delta == u16::MAX {
        return Ok(());
    }
    // What the kernel has made of the addresses shows which of the two the field holds; so it need not be asked again, but where both
    // would look alike.
    let after = field(packet, layout, is_tcp)?;
    let as_checksum = checksum::apply(before, flow.address_delta.into());
    let as_sum = checksum::fold(u64::from(before) + u64::from(flow.address_delta));
    if as_checksum == as_sum || before == 0 || after != as_checksum && after != as_sum {
        return packet.change_l4_checksum(layout.l4() + check, flow.port_delta, flags);
    }
    if after == as_checksum {
        // Where the device has summed up the packet, ports and field make up for one another.
        set_field(packet, layout, is_tcp, checksum::apply(after, flow.port_delta.into()))?;
    }
    Ok(())
}

/// The checksum field of layer 4.
#[inline(always)]
fn field<P: Packet, F: Header>(packet: &P, layout: impl Layout<F>, is_tcp: bool) -> Stage<u16> {
    let Some(headers) = layout.headers(packet, if is_tcp { TCP_LEN } else { UDP_LEN }) else { return Err(FAILED) };
    Ok(if is_tcp { headers.l4.get::<u16, { tcp::CHECK }>() } else { headers.l4.get::<u16, { udp::CHECK }>() })
}

/// Writes it.
#[inline(always)]
fn set_field<P: Packet, F: Header>(packet: &P, layout: impl Layout<F>, is_tcp: bool, value: u16) -> Stage<()> {
    let Some(headers) = layout.headers(packet, if is_tcp { TCP_LEN } else { UDP_LEN }) else { return Err(FAILED) };
    if is_tcp {
        headers.l4.put::<u16, { tcp::CHECK }>(value);
    } else {
        headers.l4.put::<u16, { udp::CHECK }>(checksum::as_udp(value));
    }
    Ok(())
}

/// Writes what both doors write alike: Ethernet addresses, TTL, IP addresses and IP checksum, ports.
#[inline(always)]
pub fn write_headers<F: Header>(headers: &Headers<'_>, flow: &Instruction<F>, sending: &Sending) {
    if sending.exit.has_macs() {
        let [first, second, third] = sending.way.macs;
        headers.ethernet.put::<u32, 0>(first);
        headers.ethernet.put::<u32, 4>(second);
        headers.ethernet.put::<u32, 8>(third);
    }
    F::write_addresses(&headers.ip, &flow.src, &flow.dst, flow.address_delta, sending.exit.is_forwarded());
    headers.l4.put::<u32, 0>(flow.ports);
}

/// Rewrites the addresses of a later fragment by the instruction in the scratch space: all that stands here of what is
/// translated.
#[inline(always)]
pub fn translate_fragment<P: Packet, F: Header>(packet: &mut P, scratch: &Scratch<F>, sending: &Sending) -> Stage<()> {
    let Dissected { at, .. } = scratch.dissected;
    let flow = &scratch.instruction;
    let Some(ethernet) = packet.frame(ETHERNET_LEN) else { return Err(FAILED) };
    let Some(ip) = at.ip::<F>(packet) else { return Err(FAILED) };
    if sending.exit.has_macs() {
        ethernet.store(0, sending.way.macs);
    }
    F::write_addresses(&ip, &flow.src, &flow.dst, flow.address_delta, sending.exit.is_forwarded());
    if !F::IS_V4 {
        packet.add_to_sum(flow.address_delta);
    }
    Ok(())
}
