// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The memory of the flow table (conntrack) and of the next hops: a room with `unsafe`. Who may write what, and when, is said in
//! `lb_common::flow`; here stand the loads, stores and atomics that it wants.

use core::{arch::asm, marker::PhantomData, ptr::NonNull};

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use lb_common::{
    address::{Family, V4, V6},
    flow::{
        Control,
        next_hop::{self, NextHop, Stamp},
        table::{self, WAYS},
        word,
    },
    maps::{FlowSet, capacity},
};

use super::globals;

#[map]
static FLOWS_V4: Array<FlowSet<V4>> = Array::with_max_entries(capacity::FLOWS / WAYS, BPF_F_MMAPABLE);
#[map]
static FLOWS_V6: Array<FlowSet<V6>> = Array::with_max_entries(capacity::FLOWS / WAYS, BPF_F_MMAPABLE);
#[map]
static NEXT_HOPS_V4: Array<NextHop> = Array::with_max_entries(next_hop::CAPACITY, BPF_F_MMAPABLE);
#[map]
static NEXT_HOPS_V6: Array<NextHop> = Array::with_max_entries(next_hop::CAPACITY, BPF_F_MMAPABLE);

/// A slot of the flow table, in memory that other CPUs write.
#[derive(Clone, Copy)]
pub struct Slot(NonNull<u64>);

impl table::Slot for Slot {
    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: the word is one of the slot's, and the map's memory stays for as long as the program runs. Other CPUs store whole
        // words or halves of it, which the machine does not tear; volatile, so that it is loaded here and once.
        unsafe { self.0.as_ptr().add(word).read_volatile() }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.0.as_ptr().add(word).write_volatile(value) };
    }

    #[inline(always)]
    fn store_half(self, half: usize, value: u32) {
        // SAFETY: as in `load`.
        unsafe { self.0.as_ptr().cast::<u32>().add(half).write_volatile(value) };
    }

    #[inline(always)]
    fn store_quarter(self, quarter: usize, value: u16) {
        // SAFETY: as in `load`.
        unsafe { self.0.as_ptr().cast::<u16>().add(quarter).write_volatile(value) };
    }

    #[inline(always)]
    fn compare_exchange(self, word: usize, old: u64, new: u64) -> bool {
        // SAFETY: as in `load`.
        unsafe { compare_exchange(self.0.as_ptr().add(word), old, new) }
    }

    #[inline(always)]
    fn barrier(self) {
        // An atomic operation that gives the old value is a full barrier (Documentation/bpf/standardization/instruction-set.rst,
        // and the kernel's memory model for operations of this kind); this one changes nothing.
        // SAFETY: as in `load`; the control word is the slot's first.
        unsafe {
            asm!(
                "{value} = atomic_fetch_or((u64 *)({address} + 0), {value})",
                value = inout(reg) 0_u64 => _,
                address = in(reg) self.0.as_ptr(),
                options(nostack)
            );
        }
    }
}

/// Stores `new` where `old` stands.
///
/// # Safety
/// There must be a live, aligned word at `address`.
#[inline(always)]
unsafe fn compare_exchange(address: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({address} + 0, r0, {new})",
            address = in(reg) address,
            new = in(reg) new,
            inout("r0") old => found,
            options(nostack)
        );
    }
    found == old
}

/// The flow table of a family.
pub struct FlowTable<F>(PhantomData<F>);

impl<F> FlowTable<F> {
    pub const NEW: Self = Self(PhantomData);
}

impl<F> Clone for FlowTable<F> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for FlowTable<F> {}

impl<F: Family> table::Table<F> for FlowTable<F> {
    type Slot = Slot;
    type Set = NonNull<u64>;

    #[inline(always)]
    fn mask(self) -> u32 {
        globals::flow_mask(F::IS_V4)
    }

    #[inline(always)]
    fn set(self, index: u32) -> Option<NonNull<u64>> {
        let set: *mut u64 =
            if F::IS_V4 { FLOWS_V4.get_ptr_mut(index)?.cast() } else { FLOWS_V6.get_ptr_mut(index)?.cast() };
        NonNull::new(set)
    }

    #[inline(always)]
    fn slot(self, set: NonNull<u64>, way: u32) -> Slot {
        // SAFETY: a set has four ways of so many words.
        Slot(unsafe { set.add((way & (WAYS - 1)) as usize * word::stride::<F>()) })
    }

    // verifier: on 6.18 it followed the rest of the program eight times, once for each place where a flow can be found.
    #[inline(always)]
    fn found_at(self, way: u32, control: Control) -> u32 {
        // The upper two bits are always zero, which the verifier does not know.
        (way + (control.to_bits() >> 62) as u32) & (WAYS - 1)
    }
}

/// An element of the table of next hops, in memory that other CPUs write.
#[derive(Clone, Copy)]
pub struct NextHopRef(NonNull<NextHop>);

impl NextHopRef {
    /// The element of an index.
    #[inline(always)]
    pub fn at<F: Family>(index: u32) -> Option<Self> {
        let element = if F::IS_V4 { NEXT_HOPS_V4.get_ptr_mut(index)? } else { NEXT_HOPS_V6.get_ptr_mut(index)? };
        NonNull::new(element).map(Self)
    }

    /// Under which generation it was found.
    #[inline(always)]
    pub fn stamp(self) -> Stamp {
        // SAFETY: the map's element, which stays for as long as the program runs; a single word.
        Stamp::from_bits(unsafe { (&raw const (*self.0.as_ptr()).stamp).read_volatile() })
    }

    /// Whether it is for this destination.
    #[inline(always)]
    pub fn is_for<F: Family>(self, dst: &F::Addr) -> bool {
        let (mut differences, mut index) = (0, 0);
        while index < F::WORDS {
            // SAFETY: as in `stamp`.
            differences |= unsafe { (&raw const (*self.0.as_ptr()).dst[index]).read_volatile() } ^ F::word(dst, index);
            index += 1;
        }
        differences == 0
    }

    /// The device.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: as in `stamp`.
        unsafe { (&raw const (*self.0.as_ptr()).ifindex).read_volatile() }
    }

    /// Both Ethernet addresses.
    #[inline(always)]
    pub fn macs(self) -> [u32; 3] {
        // SAFETY: as in `stamp`.
        [0, 1, 2].map(|index: usize| unsafe { (&raw const (*self.0.as_ptr()).macs[index]).read_volatile() })
    }

    /// The MTU.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        // SAFETY: as in `stamp`.
        unsafe { (&raw const (*self.0.as_ptr()).mtu).read_volatile() }
    }

    /// [`next_hop::next_hop_flags`].
    #[inline(always)]
    pub fn flags(self) -> u32 {
        // SAFETY: as in `stamp`.
        unsafe { (&raw const (*self.0.as_ptr()).flags).read_volatile() }
    }

    /// The source address for packets by this way.
    #[inline(always)]
    pub fn source(self) -> [u32; 4] {
        // SAFETY: as in `stamp`.
        [0, 1, 2, 3].map(|index: usize| unsafe { (&raw const (*self.0.as_ptr()).source[index]).read_volatile() })
    }

    /// Replaces the element; false where another CPU is doing so.
    #[inline(always)]
    pub fn replace(self, seen: Stamp, new: &NextHop, generation: u32) -> bool {
        if seen.is_claimed() {
            return false;
        }
        let element = self.0.as_ptr();
        let claimed = seen.claimed();
        // SAFETY: as in `stamp`. Readers see the stamp of no generation until all else is written.
        unsafe {
            if !compare_exchange(&raw mut (*element).stamp, seen.to_bits(), claimed.to_bits()) {
                return false;
            }
            let mut index = 0;
            while index < 4 {
                (&raw mut (*element).dst[index]).write_volatile(new.dst[index]);
                (&raw mut (*element).source[index]).write_volatile(new.source[index]);
                index += 1;
            }
            (&raw mut (*element).ifindex).write_volatile(new.ifindex);
            let mut index = 0;
            while index < 3 {
                (&raw mut (*element).macs[index]).write_volatile(new.macs[index]);
                index += 1;
            }
            (&raw mut (*element).mtu).write_volatile(new.mtu);
            (&raw mut (*element).flags).write_volatile(new.flags);
            (&raw mut (*element).stamp).write_volatile(claimed.published(generation).to_bits());
        }
        true
    }
}
