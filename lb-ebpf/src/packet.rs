// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Access to the packet at both doors: a room with `unsafe`. One trait, so that the pipeline is written once.
//!
//! A [`Frame`] is a window of checked length onto the packet's start. It borrows the packet, so none can outlive a call
//! that may move the data. The verifier proves every offset used on it once more.

use core::{ffi::c_void, marker::PhantomData};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::generated::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_pull_data, bpf_skb_vlan_pop,
    },
};
use lb_common::{
    checksum,
    flow::{Flow, protocol},
    trace::TRACE_MAGIC,
    verdict::{Fate, Reason, Stage, Stop},
};

use crate::{
    apart,
    bounds::opaque,
    header::{Header, TCP_LEN, UDP_LEN, tcp, udp},
    layout::{Headers, Layout},
    maps,
    wire::Wire,
};

const REWRITE_FAILED: Stop = Stop::drop(Reason::RewriteFailed);

/// How a translated packet goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// To the network stack, which routes it.
    Stack = 0,
    /// Out of the flow's cached next hop.
    Wire = 1,
    /// Out of the flow's device, to a neighbour that the kernel must resolve first. TC only.
    Neighbour = 2,
}

impl Exit {
    /// From its number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Stack,
            1 => Self::Wire,
            _ => Self::Neighbour,
        }
    }
}

/// Frame types of the kernel's `include/uapi/linux/if_packet.h`.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

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
    /// Rewrites addresses, ports and checksums; for a packet that leaves here also the TTL and the Ethernet addresses.
    fn translate<F: Header>(&mut self, layout: impl Layout<F>, protocol: u8, flow: &Flow<F>, exit: Exit) -> Stage<()>;
    /// Tells the kernel that the sum of the packet has changed by this difference, in case that the device has summed it up:
    /// where no checksum of the packet makes up for it.
    fn add_to_sum(&mut self, delta: u16);
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

/// The first bytes of a packet, of a length that was checked.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: usize,
    packet: PhantomData<&'a ()>,
}

impl Frame<'_> {
    /// Reads a value; network byte order is the caller's business.
    #[inline(always)]
    pub fn load<T: Wire>(&self, offset: usize) -> T {
        // SAFETY: the verifier refuses the program unless `offset` and the size of T are within the checked length.
        unsafe { T::load(self.start + offset) }
    }

    /// Writes a value.
    #[inline(always)]
    pub fn store<T: Wire>(&self, offset: usize, value: T) {
        // SAFETY: as in `load`; the packet belongs to this program until it returns.
        unsafe { value.store(self.start + offset) };
    }

    /// `None` where the packet is shorter than `len`.
    #[inline(always)]
    fn new(start: usize, end: usize, len: usize) -> Option<Self> {
        if start + len > end { None } else { Some(Self { start, packet: PhantomData }) }
    }

    /// What is left of it behind `len` bytes.
    #[inline(always)]
    pub fn behind(&self, len: usize) -> Self {
        Self { start: self.start + len, packet: PhantomData }
    }
}

/// Writes what both doors write alike: Ethernet addresses, TTL, IP addresses and IP checksum, ports.
#[inline(always)]
pub fn write_headers<F: Header>(headers: &Headers<'_>, flow: &Flow<F>, exit: Exit) {
    if exit == Exit::Wire {
        headers.ethernet.store(0, flow.macs);
    }
    F::write_addresses(&headers.ip, &flow.src, &flow.dst, flow.address_delta, exit != Exit::Stack);
    headers.l4.store(0, flow.sport_be);
    headers.l4.store(2, flow.dport_be);
}

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
        packet.trace = is_marked && apart::has_trace_cookie_xdp(context) != 0;
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
            .is_some_and(|words| is_trace_cookie([words.load(4), words.load(8), words.load(12), words.load(16)]))
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
    fn translate<F: Header>(&mut self, layout: impl Layout<F>, protocol: u8, flow: &Flow<F>, exit: Exit) -> Stage<()> {
        let delta = checksum::fold(u64::from(flow.address_delta) + u64::from(flow.port_delta));
        if protocol == protocol::TCP {
            let Some(headers) = layout.headers(self, TCP_LEN) else { return Err(REWRITE_FAILED) };
            write_headers(&headers, flow, exit);
            headers.l4.store(tcp::CHECK, checksum::apply(headers.l4.load(tcp::CHECK), delta));
        } else {
            let Some(headers) = layout.headers(self, UDP_LEN) else { return Err(REWRITE_FAILED) };
            write_headers(&headers, flow, exit);
            headers.l4.store(udp::CHECK, checksum::apply_udp(headers.l4.load(udp::CHECK), delta));
        }
        Ok(())
    }

    #[inline(always)]
    fn add_to_sum(&mut self, _delta: u16) {}

    #[inline(always)]
    fn leave_vlan(&mut self) {}

    #[inline(always)]
    fn send(&self, ifindex: u32, exit: Exit) -> i32 {
        match exit {
            Exit::Stack | Exit::Neighbour => Self::PASS,
            Exit::Wire if ifindex == self.ifindex() => xdp_action::XDP_TX as i32,
            // SAFETY: plain arguments.
            Exit::Wire => unsafe { bpf_redirect(ifindex, 0) as i32 },
        }
    }
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
        packet.trace = packet.control(0) == TRACE_MAGIC && apart::has_trace_cookie_tc(context) != 0;
        packet
    }

    /// Whether the control block holds the secret of the trace that runs now.
    #[inline(always)]
    pub fn has_trace_cookie(context: *mut __sk_buff) -> bool {
        let packet = Self { context, trace: false };
        is_trace_cookie([1, 2, 3, 4].map(|index| packet.control(index)))
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
    fn make_linear(&mut self, len: usize) {
        let (start, end) = self.data();
        if start + len > end {
            // SAFETY: a valid context. A failure shows when the frame is taken.
            unsafe { bpf_skb_pull_data(self.context, (len as u32).min(self.len())) };
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

    /// The layer-4 checksum is the kernel's to change: only it knows whether the field holds a checksum or, with
    /// offload, the sum of the pseudo-header alone. Last, because the helper may move the data.
    #[inline(always)]
    fn translate<F: Header>(&mut self, layout: impl Layout<F>, protocol: u8, flow: &Flow<F>, exit: Exit) -> Stage<()> {
        let Some(headers) = layout.headers(self, UDP_LEN) else { return Err(REWRITE_FAILED) };
        write_headers(&headers, flow, exit);
        let (check, flags) = if protocol == protocol::TCP {
            (layout.l4() + tcp::CHECK, 0)
        } else {
            (layout.l4() + udp::CHECK, u64::from(BPF_F_MARK_MANGLED_0))
        };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | F::l4_checksum_flags();
        // SAFETY: a valid context; the kernel checks the offset.
        let failed = unsafe {
            bpf_l4_csum_replace(self.context, check as u32, 0, u64::from(flow.address_delta), flags | pseudo) != 0
                || bpf_l4_csum_replace(self.context, check as u32, 0, u64::from(flow.port_delta), flags) != 0
        };
        if failed { Err(REWRITE_FAILED) } else { Ok(()) }
    }

    #[inline(always)]
    fn add_to_sum(&mut self, delta: u16) {
        // SAFETY: a valid context. It fails where the device has not.
        unsafe { bpf_csum_update(self.context, u32::from(delta)) };
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
            // SAFETY: no parameters: the helper routes by the packet's own addresses.
            Exit::Neighbour => unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 },
        }
    }
}

/// Whether these words are the secret of the trace that runs now.
#[inline(always)]
fn is_trace_cookie(words: [u32; 4]) -> bool {
    maps::trace_record().is_some_and(|record| {
        let cookie = record.cookie;
        cookie[0] != 0
            && cookie[0] == words[0]
            && cookie[1] == words[1]
            && cookie[2] == words[2]
            && cookie[3] == words[3]
    })
}

/// The first twelve bytes of a frame with its two addresses exchanged.
#[inline(always)]
pub fn swapped(macs: [u32; 3]) -> [u32; 3] {
    let pair = |low: u32, high: u32| low >> 16 | high << 16;
    [pair(macs[1], macs[2]), pair(macs[2], macs[0]), pair(macs[0], macs[1])]
}
