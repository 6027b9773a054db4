// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Resetting: a client's TCP segment is turned into the RST that its backend, which has gone, can't send (RFC 9293
//! section 3.10.7.1). TC only.

use lb_common::{
    address::Family,
    checksum,
    flow::{protocol, tcp_flags},
    verdict::{Reason, Stage, Stop},
};

use super::icmp::Icmp;
use crate::{
    kernel::work::Offsets,
    packet::{
        Frame, Packet, SkbPacket,
        frame::swapped,
        header::{ETHERNET_LEN, TCP_LEN, tcp},
        layout::{Headers, Layout},
        offload,
        skb::Request,
    },
};

/// Turns the packet into the RST. It is then to be sent out of the device that it came in by.
#[inline(always)]
pub fn turn_into_reset<F: Icmp>(packet: &mut SkbPacket, request: Request) -> Stage<()> {
    let failed = Stop::drop(Reason::RejectFailed);
    let at = Offsets { l3: ETHERNET_LEN as u32, l4: request.l4 };
    let Some(headers) = Layout::<F>::headers(at, packet, TCP_LEN) else { return Err(failed) };
    let segment = Segment::<F>::read(&headers);
    // The answer has neither options nor extension headers.
    let answer_len = ETHERNET_LEN + F::HEADER_LEN + TCP_LEN;
    let is_offloaded = offload::cut(packet, request.l4 as usize, answer_len)?.is_some();
    if is_offloaded && request.l4 as usize + TCP_LEN != answer_len {
        // The device would complete a checksum where the segment had it.
        return Err(failed);
    }
    let frame = packet.frame(answer_len).ok_or(failed)?;
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
    fn read(Headers { ethernet, ip, l4 }: &Headers<'_>) -> Self {
        Self {
            macs: ethernet.load(0),
            src: ip.load(F::SRC),
            dst: ip.load(F::DST),
            sport_be: l4.load(0),
            dport_be: l4.load(2),
            acknowledgement_be: l4.load(tcp::ACKNOWLEDGEMENT),
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
