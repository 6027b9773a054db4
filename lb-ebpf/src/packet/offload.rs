// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Checksums that are left to the device (checksum offload, CHECKSUM_PARTIAL), for packets that are turned into answers.
//!
//! Only the kernel knows whether a layer-4 checksum field holds a checksum or, until the device completes it, the sum of the
//! pseudo-header; and it does not tell. But it refuses to cut off a header whose checksum is yet to be filled in.

use core::num::NonZeroUsize;

use aya_ebpf::helpers::generated::bpf_skb_change_tail;
use lb_common::{
    checksum,
    verdict::{Reason, Stage, Stop},
};

use super::{
    Packet, SkbPacket,
    header::{SCTP_LEN, UDP_LEN, sctp, tcp, udp},
};

/// Where in layer 4 the field of each kind of checksum is.
// verifier: numbers that are never zero, so that "none" is a zero and not an unwritten word, which older kernels won't copy
// ("invalid read from stack").
const FIELD_OF_UDP: NonZeroUsize = NonZeroUsize::new(udp::CHECK).unwrap();
const FIELD_OF_TCP: NonZeroUsize = NonZeroUsize::new(tcp::CHECK).unwrap();
/// SCTP's, which is no sum but a CRC.
pub const FIELD_OF_SCTP: NonZeroUsize = NonZeroUsize::new(sctp::CHECK).unwrap();

/// Cuts the packet down to `len` bytes, of which all from `l4` on are lost unless the checksum is left to the device; then
/// tells where in layer 4 its field is. Of an SCTP packet with such a checksum the common header alone is left.
#[inline(always)]
pub fn cut(packet: &mut SkbPacket, l4: usize, len: usize) -> Stage<Option<NonZeroUsize>> {
    // SAFETY: a valid context; the helper checks the length, and frames are taken anew after it.
    let resize = |len: usize| unsafe { bpf_skb_change_tail(packet.skb(), len as u32, 0) == 0 };
    // Nor does the kernel cut off the field: of any checksum the two bytes that a sum has.
    let field = if resize(l4) {
        None
    } else if resize(l4 + UDP_LEN) {
        Some(FIELD_OF_UDP)
    } else if resize(l4 + sctp::CHECK + 2) {
        Some(FIELD_OF_SCTP)
    } else {
        Some(FIELD_OF_TCP)
    };
    let len = if field == Some(FIELD_OF_SCTP) { l4 + SCTP_LEN } else { len };
    if !resize(len) {
        return Err(Stop::drop(Reason::RejectFailed));
    }
    packet.make_linear(len);
    Ok(field)
}

/// The checksum field that a device which completes it leaves as it is, for a header whose other words sum up to `rest`.
///
/// The device writes p' = ~(rest + p). For p' = p, 2p = ~rest; in one's complement of 16 bits, halving is a rotation.
#[inline(always)]
pub const fn fixed_point(rest: u64) -> u16 {
    (!checksum::fold(rest)).rotate_right(1)
}
