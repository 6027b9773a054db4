// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Where a packet's headers begin. The pipeline is written once over this: plain packets have constant offsets, which cost
//! the verifier nothing, and rare ones those that a walk over their headers has found.

use core::marker::PhantomData;

use lb_common::walk::MOST_OFFSET;

use super::{
    Frame, Packet,
    header::{ETHERNET_LEN, Header},
};
use crate::kernel::work::Offsets;

/// Windows onto the headers of one packet.
pub struct Headers<'a> {
    /// From the first byte on.
    pub ethernet: Frame<'a>,
    /// To the IP header, for offsets of [`Header`].
    pub ip: Frame<'a>,
    /// From layer 4 on.
    pub l4: Frame<'a>,
}

/// Where the headers of a packet begin.
pub trait Layout<F: Header>: Copy {
    /// Offset of layer 4.
    fn l4(self) -> usize;
    /// All headers, of layer 4 the first `l4_len` bytes.
    fn headers<P: Packet>(self, packet: &P, l4_len: usize) -> Option<Headers<'_>>;
}

/// Ethernet, a fixed IP header, layer 4.
pub struct Plain<F>(PhantomData<F>);

impl<F> Plain<F> {
    pub const NEW: Self = Self(PhantomData);
}

impl<F> Clone for Plain<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Plain<F> {}

impl<F: Header> Layout<F> for Plain<F> {
    #[inline(always)]
    fn l4(self) -> usize {
        ETHERNET_LEN + F::HEADER_LEN
    }

    #[inline(always)]
    fn headers<P: Packet>(self, packet: &P, l4_len: usize) -> Option<Headers<'_>> {
        let ethernet = packet.frame(Layout::<F>::l4(self) + l4_len)?;
        Some(Headers { ethernet, ip: ethernet, l4: ethernet.behind(Layout::<F>::l4(self)) })
    }
}

/// Bits of any offset in a packet's headers, of a packet in an ICMP error as well.
const OFFSET_MASK: u32 = 0x3ff;
const _: () = assert!(2 * MOST_OFFSET as usize + ETHERNET_LEN + 8 + 8 <= OFFSET_MASK as usize);

impl Offsets {
    /// The IP header, for offsets of [`Header`]: these count as if an Ethernet header without tags stood before it.
    #[inline(always)]
    pub fn ip<F: Header>(self, packet: &impl Packet) -> Option<Frame<'_>> {
        ip_at::<F>(packet, self.l3)
    }

    /// So many bytes of layer 4 from `offset` on.
    #[inline(always)]
    pub fn l4_at(self, packet: &impl Packet, offset: u32, len: usize) -> Option<Frame<'_>> {
        packet.frame_at(((self.l4 & OFFSET_MASK) + offset) as usize, len)
    }
}

/// The fixed IP header at `l3`: see [`Offsets::ip`].
#[inline(always)]
pub fn ip_at<F: Header>(packet: &impl Packet, l3: u32) -> Option<Frame<'_>> {
    packet.frame_at((l3.wrapping_sub(ETHERNET_LEN as u32) & OFFSET_MASK) as usize, ETHERNET_LEN + F::HEADER_LEN)
}

impl<F: Header> Layout<F> for Offsets {
    #[inline(always)]
    fn l4(self) -> usize {
        self.l4 as usize
    }

    #[inline(always)]
    fn headers<P: Packet>(self, packet: &P, l4_len: usize) -> Option<Headers<'_>> {
        let ethernet = packet.frame(ETHERNET_LEN)?;
        let ip = self.ip::<F>(packet)?;
        let l4 = self.l4_at(packet, 0, l4_len)?;
        Some(Headers { ethernet, ip, l4 })
    }
}
