// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The source address (SNAT, masquerade). It is translated only where the reply would not come back otherwise: to
//! another node for a client from outside, and to the client itself; or always, where the operator wants that.

use lb_common::{
    config::{config_flags, family_index},
    flow::flow_flags,
    frontend::backend_flags,
    maps::FILTER_INGRESS,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::{
        global_fn, maps,
        work::{self, Scratch},
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
    let is_hairpin = scratch.original.dst == scratch.parsed.key.src;
    let is_required = is_elsewhere || is_hairpin;
    if !is_required && maps::config()?.flags & config_flags::MASQUERADE_ALL == 0 {
        return Ok(());
    }
    let translated = take_address(packet, scratch);
    // A process of this node: there is nothing to send out, and its reply comes by anyway. The endpoint need not say so.
    let is_own = !is_hairpin && maps::filter_contains(FILTER_INGRESS, F::filter_bit(&scratch.original.dst));
    if translated.is_err() && (!is_required || is_own) {
        let original = &mut scratch.original;
        original.flags &= !flow_flags::SNAT;
        original.src = scratch.parsed.key.src;
        return Ok(());
    }
    translated
}

/// Finds the way to the backend, and takes the address of the device that it leads through.
#[inline(always)]
fn take_address<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>) -> Stage<()> {
    scratch.original.flags |= flow_flags::SNAT;
    scratch.next_hop.dst = scratch.original.dst;
    look_up_global::<P, F>(packet, scratch.parsed.key.protocol)?;
    let original = &mut scratch.original;
    scratch.next_hop.write_to(original);
    let family = family_index(F::IS_V4);
    let address = match maps::find_interface(original.ifindex) {
        Some(interface) if !interface.addresses[family].is_unspecified() => interface.addresses[family],
        _ => maps::config()?.node_addresses[family],
    };
    if address.is_unspecified() {
        return Err(Stop::drop(Reason::NoSourceAddress));
    }
    original.src = F::narrow(&address);
    Ok(())
}
