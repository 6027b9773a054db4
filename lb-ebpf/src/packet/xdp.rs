// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Access to a frame at the XDP door, `struct xdp_md`: a room with `unsafe`.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_redirect,
};
use lb_common::{
    trace::TRACE_MAGIC,
    verdict::{Reason, Stage, Stop},
};

use super::{Exit, Frame, Packet};
use crate::kernel::{bounds::opaque, global_fn, maps};

/// A frame at the XDP door.
pub struct XdpPacket {
    context: *mut xdp_md,
    trace: bool,
}

impl XdpPacket {
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        let mut packet = Self { context, trace: false };
        let is_marked = packet.metadata().is_some_and(|metadata| metadata.load::<u32>(0) == TRACE_MAGIC);
        packet.trace = is_marked && has_trace_cookie(context);
        packet
    }

    /// What a trace writes ahead of the frame. Packets of a network reach XDP without metadata.
    #[inline(always)]
    fn metadata(&self) -> Option<Frame<'_>> {
        const LEN: usize = 20;
        // SAFETY: the kernel's context; volatile, as in `data`.
        let (meta, data) = unsafe {
            (
                (&raw const (*self.context).data_meta).read_volatile() as usize,
                (&raw const (*self.context).data).read_volatile() as usize,
            )
        };
        Frame::new(meta, data, LEN)
    }

    /// Whether the metadata hold the secret of the trace that runs now.
    #[inline(always)]
    pub fn has_trace_cookie(context: *mut xdp_md) -> bool {
        let packet = Self { context, trace: false };
        packet
            .metadata()
            .is_some_and(|words| maps::is_trace_cookie([words.load(4), words.load(8), words.load(12), words.load(16)]))
    }
}

impl Packet for XdpPacket {
    const IS_XDP: bool = true;
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.cast()
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        let (start, end) = self.data();
        // verifier: opaque, lest the compiler subtract halves of pointers.
        opaque(end - start) as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn is_for_device(&self, mac: [u8; 6]) -> bool {
        let [a, b, c, d, e, f] = mac;
        let (first, rest) = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
        self.frame(6).is_some_and(|frame| frame.load::<u32>(0) == first && frame.load::<u16>(4) == rest)
    }

    #[inline(always)]
    fn make_linear(&mut self, _len: usize) {}

    #[inline(always)]
    fn ask_for_answer(&mut self, _stop: Stop, _l4: usize) {}

    #[inline(always)]
    fn note_mtu(&mut self, _mtu: u16) {}

    #[inline(always)]
    fn segment_len(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn is_trace(&self) -> bool {
        self.trace
    }

    /// Read afresh each time and as single words: the verifier knows the context's fields by their offsets and sizes, and a
    /// helper may have moved the data.
    #[inline(always)]
    fn data(&self) -> (usize, usize) {
        // SAFETY: the kernel passes a valid context to the program.
        unsafe {
            (
                (&raw const (*self.context).data).read_volatile() as usize,
                (&raw const (*self.context).data_end).read_volatile() as usize,
            )
        }
    }

    #[inline(always)]
    fn change_l4_checksum(&mut self, _offset: usize, _delta: u16, _flags: u64) -> Stage<()> {
        Err(Stop::drop(Reason::RewriteFailed))
    }

    #[inline(always)]
    fn add_to_sum(&mut self, _delta: u16) {}

    #[inline(always)]
    fn note_translated(&mut self) -> Stage<()> {
        Err(Stop::LEAVE_TO_TC)
    }

    #[inline(always)]
    fn is_translated(&self) -> bool {
        false
    }

    #[inline(always)]
    fn leave_vlan(&mut self) {}

    #[inline(always)]
    fn send(&self, ifindex: u32, exit: Exit) -> i32 {
        match exit {
            Exit::Stack | Exit::Neighbour | Exit::Net => Self::PASS,
            Exit::Wire if ifindex == self.ifindex() => xdp_action::XDP_TX as i32,
            // SAFETY: plain arguments.
            Exit::Wire => unsafe { bpf_redirect(ifindex, 0) as i32 },
        }
    }
}

global_fn! {
    /// [`XdpPacket::has_trace_cookie`]: the words that it compares would take stack from every function that asks.
    fn has_trace_cookie(context: *mut xdp_md) -> bool = XdpPacket::has_trace_cookie => has_trace_cookie_xdp
}
