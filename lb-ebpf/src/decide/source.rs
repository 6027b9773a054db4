// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The source address (SNAT, masquerade). It is translated only where the reply would not come back otherwise: to
//! another node for a client from outside, and to the client itself; or for every client from outside, where the operator wants
//! that.

use lb_common::{
    config::{config_flags, family_index},
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
    let flags = entry.flags() & !flow_flags::SNAT | if is_translated { flow_flags::SNAT } else { 0 };
    entry.control = entry.control.with(entry.control.state(), flags);
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
