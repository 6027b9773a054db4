// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Resetting: a client's TCP segment is turned into the RST that its backend, which has gone, can't send (RFC 9293
//! section 3.10.7.1). TC only.

use lb_common::{
    address::Family,
    checksum,
    flow::{protocol, tcp_flags},
    verdict::{Reason, Stage, Stop},
};

use crate::{
    header::{ETHERNET_LEN, TCP_LEN, tcp},
    offload,
    packet::{Frame, Packet, Request, SkbPacket, swapped},
    parse::Parsed,
    reject::Icmp,
};

/// What becomes of a segment whose backend has gone: it is answered, but for a reset.
#[inline(always)]
pub fn stop<F: Family>(parsed: &Parsed<F>) -> Stop {
    if parsed.tcp_flags & tcp_flags::RST != 0 {
        Stop::drop(Reason::BackendGone)
    } else {
        Stop::reset(Reason::BackendGone)
    }
}

/// Turns the packet into the RST. It is then to be sent out of the device that it came in by. A segment behind more than a
/// plain IP header is dropped: nobody sends these but for a test.
#[inline(always)]
pub fn turn_into_reset<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Stage<()> {
    let failed = Stop::drop(Reason::RejectFailed);
    let l4 = ETHERNET_LEN + F::HEADER_LEN;
    if request.l4 != l4 as u32 {
        return Err(Stop::drop(Reason::AnswerForbidden));
    }
    let segment = Segment::<F>::read(&packet.frame(l4 + TCP_LEN).ok_or(failed)?);
    let is_offloaded = offload::cut(packet, l4, l4 + TCP_LEN)?.is_some();
    let frame = packet.frame(l4 + TCP_LEN).ok_or(failed)?;
    segment.write_answer(&frame, is_offloaded);
    Ok(())
}

/// What the answer must know of the client's segment.
struct Segment<F: Family> {
    macs: [u32; 3],
    src: F::Addr,
    dst: F::Addr,
    sport_be: u16,
    dport_be: u16,
    acknowledgement_be: u32,
}

impl<F: Icmp> Segment<F> {
    #[inline(always)]
    fn read(frame: &Frame<'_>) -> Self {
        let l4 = ETHERNET_LEN + F::HEADER_LEN;
        Self {
            macs: frame.load(0),
            src: frame.load(F::SRC),
            dst: frame.load(F::DST),
            sport_be: frame.load(l4),
            dport_be: frame.load(l4 + 2),
            acknowledgement_be: frame.load(l4 + tcp::ACKNOWLEDGEMENT),
        }
    }

    /// The RST takes its sequence number from the segment's acknowledgement: the one that the client expects.
    #[inline(always)]
    fn write_answer(&self, frame: &Frame<'_>, is_offloaded: bool) {
        let l4 = ETHERNET_LEN + F::HEADER_LEN;
        frame.store(0, swapped(self.macs));
        F::write_ip(frame, &self.dst, &self.src, protocol::TCP, TCP_LEN);
        let ports = u32::from(self.dport_be) | u32::from(self.sport_be) << 16;
        // Data offset 5, flags RST; window 0.
        let offset_and_flags = (0x5000_0000 | u32::from(tcp_flags::RST) << 16).to_be();
        frame.store(l4, [ports, self.acknowledgement_be, 0, offset_and_flags, 0]);
        let pseudo = F::pseudo_sum(&self.dst, &self.src, protocol::TCP, TCP_LEN);
        let check = if is_offloaded {
            checksum::fold(pseudo)
        } else {
            let words = u64::from(ports) + u64::from(self.acknowledgement_be) + u64::from(offset_and_flags);
            checksum::finish(pseudo + words)
        };
        frame.store(l4 + tcp::CHECK, check);
    }
}
