// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Bytes: access to the packet at both doors, and where its fields are. One trait, so that the pipeline is written once.
//!
//! A [`Frame`] is a window of checked length onto the packet's start (linear data of an skb, direct packet access). It borrows
//! the packet, so none can outlive a call that may move the data. The verifier proves every offset used on it once more.
//! Knows nobody but `kernel`.

pub mod crc32c;
pub mod frame;
pub mod header;
pub mod layout;
pub mod offload;
pub mod skb;
pub mod wire;
pub mod xdp;

use core::ffi::c_void;

use lb_common::verdict::{Stage, Stop};

pub use self::{frame::Frame, skb::SkbPacket, xdp::XdpPacket};
use crate::kernel::{bounds::opaque, global_fn::number};

/// How a translated packet goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// To the network stack, which routes it.
    Stack = 0,
    /// Out of the flow's cached next hop.
    Wire = 1,
    /// Out of the flow's device, to a neighbour that the kernel must resolve first. TC only.
    Neighbour = 2,
    /// To the network stack, as one that arrives by the net's device. TC only.
    Net = 3,
}

impl Exit {
    /// Whether the packet leaves this node, as a router would send it on.
    #[inline(always)]
    pub fn is_forwarded(self) -> bool {
        matches!(self, Self::Wire | Self::Neighbour)
    }

    /// Whether its Ethernet addresses are those of the way.
    #[inline(always)]
    pub fn has_macs(self) -> bool {
        matches!(self, Self::Wire | Self::Net)
    }
}

number!(Exit: u32, value => value as u32, bits => match bits {
    0 => Self::Stack,
    1 => Self::Wire,
    2 => Self::Neighbour,
    _ => Self::Net,
});

/// A packet at one of the doors.
pub trait Packet {
    /// XDP does a packet completely or leaves it untouched; TC must do everything.
    const IS_XDP: bool;
    /// The hook's action that hands the packet to whatever comes next.
    const PASS: i32;
    /// The hook's action that drops it.
    const DROP: i32;

    /// The hook's context, for helpers.
    fn context(&self) -> *mut c_void;
    /// Length of the frame in bytes.
    fn len(&self) -> u32;
    /// The device of arrival (ingress) or departure (egress).
    fn ifindex(&self) -> u32;
    /// The device by which it has come to this node; 0 where it has begun here.
    fn arrived_by(&self) -> u32;
    /// Whether the frame is for the device by which it has arrived, of this Ethernet address, alone.
    fn is_for_device(&self, mac: [u8; 6]) -> bool;
    /// Makes the first `len` bytes directly accessible, as far as the packet has them.
    fn make_linear(&mut self, len: usize);
    /// Tells the program that answers what it needs to know: see [`Request`]. TC only.
    fn ask_for_answer(&mut self, stop: Stop, l4: usize);
    /// Tells it the MTU that is too small. TC only.
    fn note_mtu(&mut self, mtu: u16);
    /// Payload of each segment that the packet will be cut into; 0 where it stays as it is.
    fn segment_len(&self) -> u32;
    /// Whether the agent made this packet to ask a question: nothing may be written but the answer.
    fn is_trace(&self) -> bool;
    /// Start and end of the data that is directly accessible.
    fn data(&self) -> (usize, usize);
    /// Has the kernel change a checksum of layer 4 by a difference; `flags` are those of `bpf_l4_csum_replace`. TC only, where
    /// the helper may move the data.
    fn change_l4_checksum(&mut self, offset: usize, delta: u16, flags: u64) -> Stage<()>;
    /// Tells the kernel that the sum of the packet has changed by this difference, in case that the device has summed it up:
    /// where no checksum of the packet makes up for it.
    fn add_to_sum(&mut self, delta: u16);
    /// Notes that the packet is translated, for a door that would do it once more: another one is on the way that it goes on. XDP has no
    /// room for that which all drivers know, and leaves the packet to TC.
    fn note_translated(&mut self) -> Stage<()>;
    /// Whether an earlier door has noted that.
    fn is_translated(&self) -> bool;
    /// Takes the VLAN tag off that the packet came with, where it is not in the frame: the next hop's device puts on its own.
    fn leave_vlan(&mut self);
    /// The hook's action for a translated packet.
    fn send(&self, ifindex: u32, exit: Exit) -> i32;

    /// The first `len` bytes.
    #[inline(always)]
    fn frame(&self, len: usize) -> Option<Frame<'_>> {
        let (start, end) = self.data();
        Frame::new(start, end, len)
    }

    /// `len` bytes from an offset on that is not constant, but bounded in a way that the verifier sees.
    #[inline(always)]
    fn frame_at(&self, offset: usize, len: usize) -> Option<Frame<'_>> {
        let (start, end) = self.data();
        // verifier: opaque, so that what is compared with the end is what is used; else the compiler adds anew for each use.
        Frame::new(opaque(start + offset), end, len)
    }
}

/// The Ethertype of a frame, as it stands in memory.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    packet.frame(header::ETHERNET_LEN).map(|frame| frame.get::<_, { header::ethernet::ETHERTYPE }>())
}
