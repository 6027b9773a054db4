// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The source address (SNAT, masquerade). It is translated only where the reply would not come back otherwise: to
//! another node for a client from outside, and to the client itself; or for every client from outside, where the operator wants
//! that.

use lb_common::{
    config::{config_flags, family_index, role},
    flow::{Entry, flow_flags},
    frontend::backend_flags,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::{
        global_fn, maps,
        work::{self, Instruction, Scratch},
    },
    packet::{Packet, header::Header},
    send::next_hop::look_up_global,
};

global_fn! {
    /// [`translate`].
    pub fn translate_global<P: Packet, F: Header>(packet: &P) -> Stage<()>
        = translate => translate_source_xdp_v4 | translate_source_xdp_v6 | translate_source_tc_v4 | translate_source_tc_v6
}

/// Translates the source in the scratch space's original entry where that is due.
#[inline(always)]
fn translate<P: Packet, F: Header>(packet: &P) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    if !P::IS_XDP && scratch.is_net != 0 {
        return translate_at_net_global::<P, F>(packet);
    }
    let backend = maps::find_backend(scratch.original.backend).ok_or(Stop::drop(Reason::TableCorrupt))?;
    let is_elsewhere = scratch.admitted.comes_from_pod == 0 && backend.flags & backend_flags::LOCAL == 0;
    let is_hairpin = scratch.original.new_dst == scratch.parsed.key.src;
    let is_required = is_elsewhere || is_hairpin;
    // A pod's packets pass the rules for forwarded ones (NetworkPolicies), and its device's queues: what is redirected does not.
    let is_wanted = scratch.admitted.comes_from_pod == 0 && maps::config()?.flags & config_flags::MASQUERADE_ALL != 0;
    if !is_required && !is_wanted {
        return Ok(());
    }
    let translated = take_address(packet, scratch);
    // A process of this node: there is nothing to send out, and its reply comes by anyway. The endpoint need not say so.
    let is_own = !is_hairpin && is_of_node::<F>(&scratch.original.new_dst);
    if translated.is_err() && (!is_required || is_own) {
        let original = &mut scratch.original;
        set_translated(original, false);
        original.new_src = scratch.parsed.key.src;
        return Ok(());
    }
    translated
}

/// Whether an address may be this node's, or a frontend's.
#[inline(always)]
fn is_of_node<F: Header>(address: &F::Addr) -> bool {
    maps::filter().is_some_and(|filter| filter.destination(F::filter_bit(address)) != 0)
}

#[inline(always)]
fn set_translated<F: Header>(entry: &mut Entry<F>, is_translated: bool) {
    set_flags(entry, flow_flags::SNAT, if is_translated { flow_flags::SNAT } else { 0 });
}

/// Sets some flags anew.
#[inline(always)]
fn set_flags<F: Header>(entry: &mut Entry<F>, which: u8, flags: u8) {
    entry.control = entry.control.with(entry.control.state(), entry.flags() & !which | flags);
}

global_fn! {
    /// [`translate_at_net`].
    fn translate_at_net_global<P: Packet, F: Header>(packet: &P) -> Stage<()>
        = translate_at_net => translate_at_net_xdp_v4 | translate_at_net_xdp_v6 | translate_at_net_tc_v4 | translate_at_net_tc_v6
}

/// The same at the net, where it depends on the way that the reply will come. From elsewhere it comes by a device with a door, which
/// knows it again, so that the client is seen as it is; but loopback and link-local addresses can't be. From here nothing tells
/// replies from other packets for the client, but that they are for an address which is routed to the net.
#[inline(always)]
fn translate_at_net<P: Packet, F: Header>(packet: &P) -> Stage<()> {
    let scratch = work::scratch::<F>()?;
    let backend = maps::find_backend(scratch.original.backend).ok_or(Stop::drop(Reason::TableCorrupt))?;
    let client = scratch.parsed.key.src;
    // What has begun here gets the address that it would have had without a Service: in an overlay another one.
    let gets_address = packet.arrived_by() == 0 || F::widen(&client).is_unroutable();
    let is_here = backend.flags & backend_flags::LOCAL != 0 || scratch.original.new_dst == client;
    // From there the kernel knows no way (IPv6).
    scratch.next_hop_src = if gets_address { F::from_first_words(&[0; 4]) } else { client };
    if !is_here && leads_to_door::<P, F>(packet, scratch) {
        if gets_address {
            take_address(packet, scratch)?;
        }
        set_flags(&mut scratch.original, 0, flow_flags::NETS_FORWARDED);
        return Ok(());
    }
    let source = &maps::config()?.net.sources[family_index(F::IS_V4)];
    if source.is_unspecified() {
        return Err(Stop::drop(Reason::NoSourceAddress));
    }
    scratch.original.new_src = F::narrow(source);
    set_flags(&mut scratch.original, flow_flags::SNAT, flow_flags::NET);
    Ok(())
}

/// Whether packets from the source in the scratch space to the backend leave by a device whose programs see the replies, and one that
/// leads to no pod.
#[inline(always)]
fn leads_to_door<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>) -> bool {
    scratch.next_hop_dst = scratch.original.new_dst;
    // No way, or one to this node itself: then the stack knows.
    let found = look_up_global::<P, F>(packet, scratch.parsed.key.protocol, Instruction::<F>::NO_SLOT).is_ok();
    let device = if found { maps::find_interface(scratch.way.ifindex) } else { None };
    device.is_some_and(|device| device.role & (role::UPLINK | role::RETURN) != 0)
}

/// Lets the reply's packets pass the filter of the door that they come to. Once the flow stands in the table: whoever sweeps the filter
/// looks there.
#[inline(always)]
pub fn let_reply_pass<F: Header>(entry: &Entry<F>) {
    if entry.flags() & flow_flags::NETS_FORWARDED == flow_flags::NETS_FORWARDED {
        let bit = F::filter_port_bit(&entry.new_src, entry.new_sport_be, entry.protocol);
        maps::let_pass(F::filter_bit(&entry.new_src), bit);
    }
}

/// Finds the way to the backend, and takes the address that the kernel would take there; the node's own, where the device has none.
#[inline(always)]
fn take_address<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>) -> Stage<()> {
    set_translated(&mut scratch.original, true);
    scratch.next_hop_dst = scratch.original.new_dst;
    scratch.next_hop_src = F::from_first_words(&[0; 4]);
    look_up_global::<P, F>(packet, scratch.parsed.key.protocol, Instruction::<F>::NO_SLOT)?;
    let family = family_index(F::IS_V4);
    let address = match maps::find_interface(scratch.way.ifindex) {
        Some(device) if !device.addresses[family].is_unspecified() => {
            let [a, b, c, d] = scratch.preferred_src;
            if a | b | c | d != 0 {
                scratch.original.new_src = F::from_first_words(&scratch.preferred_src);
                return Ok(());
            }
            device.addresses[family]
        }
        _ => maps::config()?.node_addresses[family],
    };
    if address.is_unspecified() {
        return Err(Stop::drop(Reason::NoSourceAddress));
    }
    scratch.original.new_src = F::narrow(&address);
    Ok(())
}
