// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! SCTP (RFC 9260), single-homed: addresses and ports like TCP's, under a checksum that knows no addresses but all bytes.

use lb_common::{
    crc32c,
    flow::protocol,
    verdict::{Reason, Stage, Stop},
};

use super::{Sending, rewrite::write_headers};
use crate::{
    kernel::work::{Dissected, Instruction, Parsed, Scratch},
    packet::{
        Packet,
        crc32c::multiply,
        header::{Header, PORTS_LEN, SCTP_LEN, sctp},
        layout::Layout,
    },
};

/// Whether a first fragment can be translated: its checksum, which is over all fragments, can't be corrected for other ports.
#[inline(always)]
pub fn check_fragment<F: Header>(parsed: &Parsed<F>, flow: &Instruction<F>) -> Stage<()> {
    let key = &parsed.key;
    let keeps_ports = u32::from(key.sport_be) | u32::from(key.dport_be) << 16 == flow.ports;
    if key.protocol == protocol::SCTP && !keeps_ports { Err(Stop::drop(Reason::SctpFragment)) } else { Ok(()) }
}

/// Rewrites a packet by the instruction in the scratch space.
#[inline(always)]
pub fn rewrite<P: Packet, F: Header>(packet: &P, scratch: &Scratch<F>, sending: &Sending) -> Stage<()> {
    let Dissected { at, end, .. } = scratch.dissected;
    let Some(headers) = Layout::<F>::headers(at, packet, SCTP_LEN) else {
        return Err(Stop::drop(Reason::RewriteFailed));
    };
    let old_ports: u32 = headers.l4.load(0);
    write_headers(&headers, &scratch.instruction, sending);
    let new_ports: u32 = headers.l4.load(0);
    let check: u32 = headers.l4.load(sctp::CHECK);
    // Zero at TC: the device will fill it in.
    if new_ports != old_ports && (P::IS_XDP || check != 0) {
        let rest = end.wrapping_sub(at.l4).wrapping_sub(PORTS_LEN as u32) as u16;
        headers.l4.store(sctp::CHECK, crc32c::correct(check, old_ports, new_ports, rest, multiply));
    }
    Ok(())
}
