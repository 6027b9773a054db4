// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Working memory: what stages hand on to each other, as plain data, and the scratch space on each CPU that it stands in.
//!
//! The stack has 512 bytes, and global functions take plain numbers only.

use aya_ebpf::{
    macros::map,
    maps::{PerCpuArray, lpm_trie::Key},
};
use lb_common::{
    address::{Family, V4, V6},
    flow::{
        Control, Entry, FlowKey, Hook, flow_flags,
        next_hop::NextHop,
        protocol,
        table::{Candidates, Sets},
        tcp_flags,
    },
    fragment::{Fragment, FragmentKey},
    frontend::{Affinity, AffinityKey, Frontend, FrontendKey, SourceRange, Target},
    verdict::{Reason, Stage, Stop},
};

#[map]
static SCRATCH_V4: PerCpuArray<Scratch<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_V6: PerCpuArray<Scratch<V6>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static QUOTE: PerCpuArray<Quote> = PerCpuArray::with_max_entries(1, 0);

/// What the later stages need of a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Parsed<F: Family> {
    pub key: FlowKey<F>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP's flags, or those that mean the same for SCTP; 0 for UDP.
    pub tcp_flags: u8,
    /// 1 for a question of `trace`: nothing may be written but the answer. Else 0.
    pub is_trace: u16,
    /// TCP's sequence number, that of the first byte: one more than the field of a SYN says.
    pub sequence: u32,
    /// TCP's acknowledgement number.
    pub acknowledgement: u32,
}

impl<F: Family> Parsed<F> {
    /// Whether the packet opens a connection: TCP's SYN, or SCTP's INIT.
    #[inline(always)]
    pub fn is_opening(&self) -> bool {
        tcp_flags::is_opening(self.tcp_flags)
    }

    /// Whether the packet is the answer to TCP's SYN.
    #[inline(always)]
    pub fn is_answer(&self) -> bool {
        self.key.protocol == protocol::TCP && tcp_flags::is_answer(self.tcp_flags)
    }

    /// Whether it is of a connection that must have been opened before.
    #[inline(always)]
    pub fn is_picked_up(&self) -> bool {
        self.key.protocol != protocol::UDP && !self.is_opening()
    }
}

/// What is done with a packet of a flow: a copy of the flow's entry, as far as packets need it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Instruction<F: Family> {
    /// Source address to write.
    pub src: F::Addr,
    /// Destination address to write.
    pub dst: F::Addr,
    /// Both ports to write, as they stand in memory.
    pub ports: u32,
    /// Checksum difference of both addresses.
    pub address_delta: u16,
    /// Checksum difference of both ports.
    pub port_delta: u16,
    /// Index of the backend.
    pub backend: u32,
    /// The backend's generation when this was decided.
    pub generation: u32,
    /// Index of the next hop.
    pub next_hop: u32,
    /// Slot of the entry; [`Instruction::NO_SLOT`] where there is none.
    pub slot: u32,
    /// [`flow_flags`].
    pub flags: u32,
}

impl<F: Family> Instruction<F> {
    /// No slot of the flow table.
    pub const NO_SLOT: u32 = u32::MAX;

    /// What an entry says.
    #[inline(always)]
    pub fn of(entry: &Entry<F>, slot: u32) -> Self {
        Self {
            src: entry.new_src,
            dst: entry.new_dst,
            ports: u32::from(entry.new_sport_be) | u32::from(entry.new_dport_be) << 16,
            address_delta: entry.address_delta,
            port_delta: entry.port_delta,
            backend: entry.backend,
            generation: entry.generation,
            next_hop: entry.next_hop.into(),
            slot,
            flags: entry.flags().into(),
        }
    }

    /// Whether packets are sent on by route at once.
    #[inline(always)]
    pub fn is_forwarded(&self) -> bool {
        flow_flags::is_forwarded(self.flags as u8)
    }

    /// Whether packets are translated at this hook.
    #[inline(always)]
    pub fn is_at(&self, hook: Hook) -> bool {
        flow_flags::is_at(self.flags as u8, hook)
    }

    /// Whether packets go on to the stack as they arrive, and nobody sends them anywhere.
    #[inline(always)]
    pub fn stays_with_stack(&self) -> bool {
        self.flags & u32::from(flow_flags::SNAT | flow_flags::NET) == 0
    }

    /// Whether the flow is the net's.
    #[inline(always)]
    pub fn is_nets(&self) -> bool {
        self.flags & u32::from(flow_flags::NET) != 0
    }

    /// Whether packets go on as ones that arrive by the net's device.
    #[inline(always)]
    pub fn is_handed_to_net(&self) -> bool {
        flow_flags::is_handed_to_net(self.flags as u8)
    }

    /// Whether it is the reply's.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.flags & u32::from(flow_flags::REPLY) != 0
    }
}

/// What a walk over headers has found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Offsets {
    /// Of the IP header; at least the length of an Ethernet header.
    pub l3: u32,
    /// Of layer 4.
    pub l4: u32,
}

/// What a packet that is not plain has turned out to be.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dissected {
    /// One of [`kind`].
    pub kind: u32,
    /// Of a fragment, whose: its datagram's identification as it stands in memory.
    pub identification_be: u32,
    /// Where its headers begin.
    pub at: Offsets,
    /// Where the packet ends by its own account; not behind the frame's end.
    pub end: u32,
    /// Of an ICMP error, where the headers begin of the packet that it is about.
    pub quote: Offsets,
}

/// What a packet is to us.
pub mod kind {
    /// One with ports.
    pub const SEGMENT: u32 = 0;
    /// One with ports that is the beginning of a datagram.
    pub const FIRST_FRAGMENT: u32 = 1;
    /// One without, that is what follows.
    pub const LATER_FRAGMENT: u32 = 2;
    /// An ICMP error about a packet.
    pub const ERROR: u32 = 3;
}

/// A packet that may have a backend.
#[repr(C)]
pub struct Admitted {
    pub frontend: Frontend,
    /// The table that serves it; never empty.
    pub target: Target,
    /// The [`backend_flags`](lb_common::frontend::backend_flags) bit of the list behind that table.
    pub list: u32,
    /// 1 where it entered this node from one of its pods: a reply finds its way back by itself. Else 0.
    pub comes_from_pod: u32,
    /// Whose share of the flow table it takes: [`Entry::class`].
    pub class: u32,
}

/// A way to a destination.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    /// The device.
    pub ifindex: u32,
    /// The next hop's Ethernet address and the device's own, as they stand at the start of a frame.
    pub macs: [u32; 3],
    /// 0 where it is not known.
    pub mtu: u32,
    /// [`next_hop_flags`](lb_common::flow::next_hop::next_hop_flags), and [`Way::RESOLVED`].
    pub flags: u32,
}

impl Way {
    /// For packets that the stack routes.
    pub const NONE: Self = Self { ifindex: 0, macs: [0; 3], mtu: 0, flags: 0 };
    /// The neighbour is known.
    pub const RESOLVED: u32 = 1 << 31;

    /// Whether the neighbour is known.
    #[inline(always)]
    pub fn is_resolved(&self) -> bool {
        self.flags & Self::RESOLVED != 0
    }
}

/// Parameters of `bpf_fib_lookup`: `struct bpf_fib_lookup` of the kernel's UAPI, with its unions resolved to the
/// members that are used here.
#[repr(C)]
pub struct FibParameters {
    pub family: u8,
    pub protocol: u8,
    pub sport_be: u16,
    pub dport_be: u16,
    /// In: length of the packet, to be checked against the route's MTU. Out: that MTU.
    pub total_len: u16,
    /// In: the device of arrival. Out: the device to leave by.
    pub ifindex: u32,
    pub flow_info: u32,
    /// An IPv4 address stands in the first word.
    pub src: [u32; 4],
    pub dst: [u32; 4],
    pub vlan: u32,
    pub source_mac: [u16; 3],
    pub destination_mac: [u16; 3],
}

impl FibParameters {
    /// Both Ethernet addresses as they stand at the start of a frame.
    #[inline(always)]
    pub fn macs(&self) -> [u32; 3] {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let (to, from) = (&self.destination_mac, &self.source_mac);
        [pair(to[0], to[1]), pair(to[2], from[0]), pair(from[1], from[2])]
    }
}

/// Working memory of the slow path: its keys and values would not fit into 512 bytes of stack.
///
/// One per CPU and family. Programs of one CPU don't interleave: XDP and both TC hooks run with softirqs off.
#[repr(C)]
pub struct Scratch<F: Family> {
    /// The packet in question.
    pub parsed: Parsed<F>,
    /// What it is, if it is not a plain one.
    pub dissected: Dissected,
    pub fragment_key: FragmentKey,
    pub fragment: Fragment,
    /// The instruction that the packet follows, if it did not come by the fast path.
    pub instruction: Instruction<F>,
    /// The original direction's entry of a new flow; of a flow that is kept up, the packet's own direction's.
    pub original: Entry<F>,
    /// The key of the other direction's entry.
    pub peer_key: FlowKey<F>,
    /// The other direction's entry.
    pub peer: Entry<F>,
    /// Who has the reply's tuple: the slot, and how urgently that flow yields it.
    pub holder_slot: u32,
    pub holder_urge: u32,
    /// Control word of that flow, 0 where nobody has it: one that came since is another CPU's.
    pub holder_control: u64,
    /// From which answer on the first port is taken that gives it.
    pub take_from: u32,
    /// The port that can be had most easily.
    pub best_port_be: u32,
    /// How many of the ports that were tried can be had.
    pub ports_to_be_had: u32,
    /// Whether the packet is at the net.
    pub is_net: u32,
    /// Whether the packet is no Service's, but one of a pod to a backend itself.
    pub is_direct: u32,
    /// Whether the packet's key stands in the table.
    pub is_known: u32,
    /// Whether the other direction's entry is to be seen to, and the slot where that was found.
    pub is_due: u32,
    pub due_peer: u32,
    /// Where an entry may stand, and who may have to yield a place there.
    pub sets: Sets,
    pub candidates: Candidates,
    /// A flow that is removed: its control word when its slot was claimed, its entry, and the key of its other direction.
    pub victim_control: Control,
    pub victim: Entry<F>,
    pub victim_key: FlowKey<F>,
    /// The key of an entry, where a function wants it in memory.
    pub entry_key: FlowKey<F>,
    /// The slot that must not yield: that of the same flow's other entry.
    pub spared: u32,
    /// The control word of the other direction's entry, where that was found.
    pub peer_control: Control,
    /// The control word of the entry that was looked up last.
    pub wanted_control: Control,
    /// The key that is looked up.
    pub wanted_key: FlowKey<F>,
    /// [`Entry::class`] of the flow that wants a place.
    pub wanted_class: u32,
    pub frontend_key: FrontendKey,
    /// The answer of `admit`.
    pub admitted: Admitted,
    pub affinity_key: AffinityKey,
    pub affinity: Affinity,
    /// A [`SourceRange`] of full length, as the trie wants it.
    pub source: Key<SourceRange>,
    pub fib: FibParameters,
    /// Where a packet is to be sent, and from which address: all zero where that is to be found.
    pub next_hop_dst: F::Addr,
    pub next_hop_src: F::Addr,
    /// What the kernel would take for one; zero where it was not asked.
    pub preferred_src: [u32; 4],
    /// The way there, and as an element of the table of next hops.
    pub way: Way,
    pub next_hop: NextHop,
}

/// The slow path's working memory on this CPU.
#[inline(always)]
pub fn scratch<F: Family>() -> Stage<&'static mut Scratch<F>> {
    let scratch: Option<*mut Scratch<F>> = if F::IS_V4 {
        SCRATCH_V4.get_ptr_mut(0).map(<*mut _>::cast)
    } else {
        SCRATCH_V6.get_ptr_mut(0).map(<*mut _>::cast)
    };
    // SAFETY: element 0 exists, is zeroed by the kernel, is of the family that the constant names, and is this CPU's own (see
    // `Scratch`). References that overlap in time are those of a function and of a global function that it calls; the compiler
    // can't see through such a call.
    scratch.map(|scratch| unsafe { &mut *scratch }).ok_or(Stop::drop(Reason::MapMissing))
}

/// Longest quote in an ICMP error, in bytes: errors stay below 576 (RFC 1812 section 4.3.2.3), and a checksum helper takes no
/// more than 512 at once.
pub const QUOTE_LEN: usize = 508;

/// Where a quote is kept while its packet is reshaped. Twice as long as it need be, so that an offset and a length that are
/// bounded each by itself fit.
#[repr(C, align(8))]
pub struct Quote(pub [u8; 2 * (QUOTE_LEN + 4)]);

/// This CPU's room for a quote.
#[inline(always)]
pub fn quote() -> Option<&'static mut Quote> {
    // SAFETY: this CPU's own element, see `Scratch`.
    QUOTE.get_ptr_mut(0).map(|quote| unsafe { &mut *quote })
}
