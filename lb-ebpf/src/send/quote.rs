// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Rewrites an ICMP error and the packet that it quotes (conntrack's RELATED).
//!
//! The instruction of the flow entry under the quoted tuple reversed holds for the error's addresses as it is, and for the quoted
//! ones read backwards.

use lb_common::{
    checksum::{self, Delta},
    flow::{FlowKey, protocol},
    verdict::{Reason, Stage, Stop},
};

use super::Sending;
use crate::{
    kernel::work::{Dissected, Instruction, Offsets, Scratch},
    packet::{
        Packet,
        header::{Header, ICMP_LEN, PORTS_LEN, tcp, udp},
        layout::{Headers, Layout, ip_at},
    },
};

/// Offset of the error's checksum.
const CHECK: usize = 2;

/// Rewrites the error and what it quotes, by the instruction in the scratch space.
#[inline(always)]
pub fn rewrite<P: Packet, F: Header>(packet: &P, scratch: &Scratch<F>, sending: &Sending) -> Stage<()> {
    let flow = &scratch.instruction;
    const FAILED: Stop = Stop::drop(Reason::RewriteFailed);
    let Dissected { at, quote, end, .. } = scratch.dissected;
    let Some(headers) = Layout::<F>::headers(at, packet, ICMP_LEN) else { return Err(FAILED) };
    let Headers { ethernet, ip, l4: icmp } = headers;
    let Some(quoted_ip) = ip_at::<F>(packet, quote.l3) else { return Err(FAILED) };

    let mut change = rewrite_quoted_layer_4(packet, quote, end, scratch.parsed.key.protocol, flow)?;
    F::write_addresses(&quoted_ip, &flow.dst, &flow.src, flow.address_delta, false);
    if sending.exit.has_macs() {
        ethernet.store(0, sending.way.macs);
    }
    let (old_src, old_dst): (F::Addr, F::Addr) = (ip.load(F::SRC), ip.load(F::DST));
    let src = source(&scratch.parsed.key, &old_src, flow);
    let addresses = Delta::ZERO.replace_address::<F>(&old_src, &src).replace_address::<F>(&old_dst, &flow.dst).fold();
    F::write_addresses(&ip, &src, &flow.dst, addresses, sending.exit.is_forwarded());
    if !F::IS_V4 {
        // No header checksum makes up for the quoted addresses, and a pseudo-header counts the others.
        change = change.add(flow.address_delta).add(addresses);
    }
    icmp.store(CHECK, checksum::apply(icmp.load(CHECK), change.fold().into()));
    Ok(())
}

/// Where the error comes from, for those who know the flow by its other name. A host that the quoted packet went to is known
/// by that name; a router under its own address, so that `traceroute` shows it, but for a backend that knows nobody but
/// this node, and for what arrives by the net's device: nobody but Services is behind that, and where sources are checked
/// (`rp_filter` 1) nothing comes from others.
#[inline(always)]
fn source<F: Header>(key: &FlowKey<F>, src: &F::Addr, flow: &Instruction<F>) -> F::Addr {
    let is_from_the_end = *src == key.src;
    let is_to_backend = flow.is_forwarded() && !flow.is_reply();
    if is_from_the_end || is_to_backend || flow.is_handed_to_net() { flow.src } else { *src }
}

/// Rewrites the quoted ports and, as far as it is there, the quoted checksum. Gives the difference that this makes.
#[inline(always)]
fn rewrite_quoted_layer_4<P: Packet, F: Header>(
    packet: &P,
    quote: Offsets,
    end: u32,
    protocol: u8,
    flow: &Instruction<F>,
) -> Stage<Delta> {
    let Some(ports) = quote.l4_at(packet, 0, PORTS_LEN) else { return Err(Stop::drop(Reason::RewriteFailed)) };
    // Backwards.
    ports.store(0, flow.ports.rotate_right(16));
    let change = Delta::ZERO.add(flow.port_delta);
    let offset = match protocol {
        protocol::TCP => tcp::CHECK as u32,
        protocol::UDP => udp::CHECK as u32,
        // SCTP's is over bytes that are not all here.
        _ => return Ok(change),
    };
    if quote.l4 + offset + 2 > end {
        return Ok(change);
    }
    let Some(field) = quote.l4_at(packet, offset, 2) else { return Ok(change) };
    let delta = Delta::ZERO.add(flow.address_delta).add(flow.port_delta).fold();
    let old: u16 = field.load(0);
    let new = if protocol == protocol::UDP {
        checksum::apply_udp(old, delta.into())
    } else {
        checksum::apply(old, delta.into())
    };
    field.store(0, new);
    Ok(change.replace16(old, new))
}
