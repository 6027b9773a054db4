// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! ICMP errors about translated packets (conntrack's RELATED): which packet they quote. `send` puts it back into the words of
//! whoever sent it.
//!
//! Who sent the quoted packet knows it by the tuple that it had before its translation, which is what packets in the opposite
//! direction get: the instruction of the flow entry under the quoted tuple reversed.

use lb_common::{
    flow::{FlowKey, Hook, protocol},
    verdict::{Stage, Stop},
    walk::Part,
};

use super::{filter::knows, walk::walk};
use crate::{
    kernel::{
        maps,
        work::{Dissected, Offsets, Scratch, kind},
    },
    packet::{
        Packet,
        header::{Header, ICMP_LEN, PORTS_LEN},
        layout::ip_at,
    },
};

/// Finds what an ICMP message quotes, if it is an error and about a packet with ports. The key in the scratch space becomes
/// that of packets in the opposite direction.
#[inline(always)]
pub fn find<P: Packet, F: Header>(packet: &P, scratch: &mut Scratch<F>, hook: Hook) -> Stage<()> {
    let Dissected { at, end, .. } = scratch.dissected;
    let l3 = at.l4 + ICMP_LEN as u32;
    if end > packet.len() || l3 + F::HEADER_LEN as u32 > end {
        return Err(Stop::NOT_OURS);
    }
    let icmp = at.l4_at(packet, 0, ICMP_LEN).ok_or(Stop::NOT_OURS)?;
    if !is_error::<F>(icmp.load(0)) {
        return Err(Stop::NOT_OURS);
    }
    let ip = ip_at::<F>(packet, l3).ok_or(Stop::NOT_OURS)?;
    let (src, dst): (F::Addr, F::Addr) = (ip.load(F::SRC), ip.load(F::DST));
    let is_known = maps::filter().is_some_and(|filter| knows::<F>(hook, filter, &dst, &src) != 0);
    if hook == Hook::Egress && !is_known {
        return Err(Stop::NOT_OURS);
    }
    let walk = walk::<_, F>(packet, l3, end - l3);
    let quote = Offsets { l3, l4: l3 + walk.offset() };
    let has_ports = matches!(walk.protocol(), protocol::TCP | protocol::UDP | protocol::SCTP);
    let is_cut_off = walk.part() == Part::Later || quote.l4 + PORTS_LEN as u32 > end;
    if walk.fault().is_some() || !has_ports || is_cut_off {
        return Err(Stop::NOT_OURS);
    }
    let ports = quote.l4_at(packet, 0, PORTS_LEN).ok_or(Stop::NOT_OURS)?;
    scratch.parsed.key = FlowKey::new(dst, src, ports.load(2), ports.load(0), walk.protocol());
    scratch.dissected.kind = kind::ERROR;
    scratch.dissected.quote = quote;
    Ok(())
}

/// Destination unreachable, time exceeded, parameter problem (RFC 792); those and packet too big (RFC 4443).
#[inline(always)]
const fn is_error<F: Header>(kind: u8) -> bool {
    if F::IS_V4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}
