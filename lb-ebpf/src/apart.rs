// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Functions that the verifier proves apart from their callers: *global* functions in its terms.
//!
//! It follows every path through an ordinary call, from every state of the caller; what branches much, like the search for
//! a source port, multiplies (on 6.18: 80,000 instructions verified in the XDP program before, 12,000 after). A global function is proven
//! once, for any arguments. The price: arguments are the context and plain numbers only (that is what 5.10 takes), so the
//! packet's parsed form travels in the scratch space; and it must have a name and no type parameters.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use lb_common::{
    address::{Family, V4, V6},
    flow::FlowState,
    verdict::Packed,
};

use crate::{
    flow,
    header::Header,
    install,
    packet::{Packet, SkbPacket, XdpPacket},
    select, service,
};

/// Per-family functions, proven apart.
pub trait Apart: Family {
    /// [`select::select`].
    fn select_apart(hash: u32, now: u32, dry: bool) -> Packed;
    /// [`install::choose_source_port`].
    fn choose_source_port_apart(start: u32, now: u32) -> u32;
    /// [`install::holder`].
    fn holder_apart(now: u32) -> u32;
    /// [`flow::touch`].
    fn touch_apart(now: u32) -> Packed;
    /// [`flow::advance`].
    fn advance_apart(next: FlowState) -> Packed;
}

/// The slow path, per door and family.
pub trait SlowPath<F: Header>: Packet {
    /// [`service::decide`].
    fn decide_apart(&self, now: u32) -> Packed;
    /// [`service::settle`].
    fn settle_apart(&self, start: u32, now: u32) -> Packed;
}

macro_rules! family_apart {
    ($family:ty, $select:ident, $choose_source_port:ident, $holder:ident, $touch:ident, $advance:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $select(hash: u32, now: u32, dry: u32) -> u64 {
            Packed::pack(select::select::<$family>(hash, now, dry != 0)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose_source_port(start: u32, now: u32) -> u32 {
            install::choose_source_port::<$family>(start, now)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $holder(now: u32) -> u32 {
            install::holder::<$family>(now)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $touch(now: u32) -> u64 {
            Packed::pack(flow::touch::<$family>(now)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $advance(next: u32) -> u64 {
            Packed::pack(flow::advance::<$family>(FlowState::from_bits(next as u8))).to_bits()
        }

        impl Apart for $family {
            #[inline(always)]
            fn select_apart(hash: u32, now: u32, dry: bool) -> Packed {
                Packed::from_bits($select(hash, now, u32::from(dry)))
            }

            #[inline(always)]
            fn choose_source_port_apart(start: u32, now: u32) -> u32 {
                $choose_source_port(start, now)
            }

            #[inline(always)]
            fn holder_apart(now: u32) -> u32 {
                $holder(now)
            }

            #[inline(always)]
            fn touch_apart(now: u32) -> Packed {
                Packed::from_bits($touch(now))
            }

            #[inline(always)]
            fn advance_apart(next: FlowState) -> Packed {
                Packed::from_bits($advance(u32::from(next.to_bits())))
            }
        }
    };
}

macro_rules! slow_path_apart {
    ($packet:ty, $context:ty, $family:ty, $decide:ident, $settle:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $decide(context: *mut $context, now: u32) -> u64 {
            Packed::pack(service::decide::<_, $family>(&<$packet>::new(context), now)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $settle(context: *mut $context, start: u32, now: u32) -> u64 {
            let packet = <$packet>::new(context);
            Packed::pack(service::settle::<_, $family>(&packet, start, now)).to_bits()
        }

        impl SlowPath<$family> for $packet {
            #[inline(always)]
            fn decide_apart(&self, now: u32) -> Packed {
                Packed::from_bits($decide(self.context().cast(), now))
            }

            #[inline(always)]
            fn settle_apart(&self, start: u32, now: u32) -> Packed {
                Packed::from_bits($settle(self.context().cast(), start, now))
            }
        }
    };
}

family_apart!(V4, select_v4, choose_source_port_v4, holder_v4, touch_v4, advance_v4);
family_apart!(V6, select_v6, choose_source_port_v6, holder_v6, touch_v6, advance_v6);
slow_path_apart!(XdpPacket, xdp_md, V4, decide_xdp_v4, settle_xdp_v4);
slow_path_apart!(XdpPacket, xdp_md, V6, decide_xdp_v6, settle_xdp_v6);
slow_path_apart!(SkbPacket, __sk_buff, V4, decide_tc_v4, settle_tc_v4);
slow_path_apart!(SkbPacket, __sk_buff, V6, decide_tc_v6, settle_tc_v6);
