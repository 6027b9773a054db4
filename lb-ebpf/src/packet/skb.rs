// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Access to a socket buffer (skb) at a TC door, `struct __sk_buff`: a room with `unsafe`.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_pull_data, bpf_skb_vlan_pop,
    },
};
use lb_common::{
    trace::TRACE_MAGIC,
    verdict::{Fate, Reason, Stage, Stop},
};

use super::{Exit, Packet};
use crate::kernel::{global_fn, maps};

/// Frame types of the kernel's `include/uapi/linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

/// In the field of the buffer that queueing disciplines of old left to classifiers, which stays as it is from one device to the one
/// that stands on it: the packet was translated at the first.
const TRANSLATED: u32 = 0x5348;

/// What the program that answers is asked for.
#[derive(Clone, Copy)]
pub struct Request {
    /// A TCP reset, not an ICMP error.
    pub is_reset: bool,
    /// Index of the [`Reason`].
    pub reason: u32,
    /// Where layer 4 begins; 0 where that is not known.
    pub l4: u32,
    /// The MTU that is too small, if that is the reason.
    pub mtu: u32,
}

/// A socket buffer at a TC door.
pub struct SkbPacket {
    context: *mut __sk_buff,
    trace: bool,
}

impl SkbPacket {
    #[inline(always)]
    pub fn new(context: *mut __sk_buff) -> Self {
        let mut packet = Self { context, trace: false };
        packet.trace = packet.control(0) == TRACE_MAGIC && has_trace_cookie(context);
        packet
    }

    /// Whether the control block holds the secret of the trace that runs now.
    #[inline(always)]
    pub fn has_trace_cookie(context: *mut __sk_buff) -> bool {
        let packet = Self { context, trace: false };
        maps::is_trace_cookie([1, 2, 3, 4].map(|index| packet.control(index)))
    }

    /// A word of the control block. Volatile: see [`Packet::data`].
    #[inline(always)]
    fn control(&self, index: usize) -> u32 {
        // SAFETY: the kernel passes a valid context to the program.
        unsafe { (&raw const (*self.context).cb[index]).read_volatile() }
    }

    /// Sets a word of the control block, where one program leaves the next a message.
    #[inline(always)]
    fn set_control(&mut self, index: usize, value: u32) {
        // SAFETY: a valid context, whose control block the kernel lets programs write.
        unsafe { (&raw mut (*self.context).cb[index]).write_volatile(value) };
    }

    /// What [`Packet::ask_for_answer`] and [`Packet::note_mtu`] have left here.
    #[inline(always)]
    pub fn request(&self) -> Request {
        let what = self.control(0);
        let is_reset = what >> 16 == Fate::Reset as u32;
        Request { is_reset, reason: what & 0xffff, l4: self.control(1), mtu: self.control(2) }
    }

    /// Whether the frame came to all stations of the link, or to a group of them.
    #[inline(always)]
    pub fn is_for_many(&self) -> bool {
        // SAFETY: as in `data`.
        matches!(unsafe { (*self.context).pkt_type }, PACKET_BROADCAST | PACKET_MULTICAST)
    }

    /// The raw context, for answers, which reshape the buffer.
    #[inline(always)]
    pub fn skb(&self) -> *mut __sk_buff {
        self.context
    }
}

impl Packet for SkbPacket {
    const IS_XDP: bool = false;
    // "No opinion": the next program or filter on the device still gets its turn (TCX_NEXT and TC_ACT_UNSPEC are both -1).
    const PASS: i32 = TC_ACT_UNSPEC;
    const DROP: i32 = TC_ACT_SHOT;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.cast()
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.context).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.context).ifindex }
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn is_for_device(&self, _mac: [u8; 6]) -> bool {
        // SAFETY: as in `data`.
        unsafe { (*self.context).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn make_linear(&mut self, len: usize) {
        let (start, end) = self.data();
        if start + len > end {
            // Segments yet to be cut: all or nothing. Kernels before 6.16 can't cut UDP any more of which a part was pulled.
            let len = if self.segment_len() == 0 { (len as u32).min(self.len()) } else { self.len() };
            // SAFETY: a valid context. A failure shows when the frame is taken.
            unsafe { bpf_skb_pull_data(self.context, len) };
        }
    }

    #[inline(always)]
    fn ask_for_answer(&mut self, stop: Stop, l4: usize) {
        self.set_control(0, (stop.fate() as u32) << 16 | stop.reason());
        self.set_control(1, l4 as u32);
    }

    #[inline(always)]
    fn note_mtu(&mut self, mtu: u16) {
        self.set_control(2, u32::from(mtu));
    }

    #[inline(always)]
    fn segment_len(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.context).gso_size }
    }

    #[inline(always)]
    fn is_trace(&self) -> bool {
        self.trace
    }

    /// See [`XdpPacket`]'s.
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
    fn change_l4_checksum(&mut self, offset: usize, delta: u16, flags: u64) -> Stage<()> {
        // SAFETY: a valid context; the kernel checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.context, offset as u32, 0, u64::from(delta), flags) };
        if result == 0 { Ok(()) } else { Err(Stop::drop(Reason::RewriteFailed)) }
    }

    #[inline(always)]
    fn add_to_sum(&mut self, delta: u16) {
        // SAFETY: a valid context. It fails where the device has not.
        unsafe { bpf_csum_update(self.context, u32::from(delta)) };
    }

    #[inline(always)]
    fn note_translated(&mut self) -> Stage<()> {
        // SAFETY: a valid context, of which the kernel lets TC programs write this field.
        unsafe { (&raw mut (*self.context).tc_index).write_volatile(TRANSLATED) };
        Ok(())
    }

    #[inline(always)]
    fn is_translated(&self) -> bool {
        // SAFETY: as in `data`.
        unsafe { (&raw const (*self.context).tc_index).read_volatile() == TRANSLATED }
    }

    #[inline(always)]
    fn leave_vlan(&mut self) {
        // SAFETY: as in `data`.
        if unsafe { (*self.context).vlan_present } != 0 {
            // SAFETY: a valid context, and no frame is used after it. A tag in the metadata can always be taken off.
            unsafe { bpf_skb_vlan_pop(self.context) };
        }
    }

    #[inline(always)]
    fn send(&self, ifindex: u32, exit: Exit) -> i32 {
        match exit {
            Exit::Stack => Self::PASS,
            // SAFETY: plain arguments.
            Exit::Wire => unsafe { bpf_redirect(ifindex, 0) as i32 },
            // SAFETY: as above.
            Exit::Net => unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 },
            // SAFETY: no parameters: the helper routes by the packet's own addresses.
            Exit::Neighbour => unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 },
        }
    }
}

global_fn! {
    /// [`SkbPacket::has_trace_cookie`]: see that of XDP.
    fn has_trace_cookie(context: *mut __sk_buff) -> bool = SkbPacket::has_trace_cookie => has_trace_cookie_tc
}
